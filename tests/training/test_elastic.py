"""Machines of a DeepSpeed run leave, with and without notice, and others join: nobody can tell afterwards."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from infra.cluster import worker_environment
from training.checkpoints import CheckpointStore
from training.config import CheckpointConfig, ClusterConfig, TrainConfig, ZeroConfig
from training.reduction import Workers
from training.trainer import run_on_ray
from training.worker import STOP, Job, run_worker

System = Any
# It waits most of its minutes: other clusters may run meanwhile.
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.xdist_group("elastic")]

SECONDS_A_READ, INTERVAL, MOST_SECONDS = 0.5, 16, 600
ELASTIC = ClusterConfig(
    launcher="ray",
    min_workers=1,
    max_workers=2,
    resize_interval_s=1.0,
    max_failures=-1,
    engine="deepspeed",
    zero=ZeroConfig(stage=2),
    cpus_per_worker=1.0,
)


def read_slowly() -> None:
    """Make steps on Ray's workers last, so that there is time for machines to come and go."""

    def change() -> None:
        # Most of Ray's processes never read: they are spared seconds of imports.
        while not (source := getattr(sys.modules.get("training.sources"), "LatentSource", None)):
            time.sleep(0.05)
        original = source.read

        def read(self: Any, refs: Any) -> Any:
            time.sleep(SECONDS_A_READ)
            return original(self, refs)

        source.read = read

    threading.Thread(target=change, daemon=True).start()


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", "0.5")
    # Sockets live below this folder and a socket's path is limited to 107 bytes.
    folder = Path(f"/tmp/vldm-e{os.getpid()}")
    (folder / "ray").mkdir(parents=True)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    environment = {
        **worker_environment(),
        "DS_ACCELERATOR": "cpu",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    }
    hooks = {"env_vars": environment, "worker_process_setup_hook": read_slowly}
    ray.init(address=cluster.address, log_to_driver=False, runtime_env=hooks)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def train_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def count_workers() -> int:
    return len(train_workers())


def newest_step(job: Job) -> int:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    return found.step if found else 0


def result(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    return dict(found.progress), {f"{f}/{n}": v for f, values in found.load().items() for n, v in values.items()}


def assert_same_run(actual: Job, expected: Job) -> None:
    progress, tensors = result(actual)
    expected_progress, expected_tensors = result(expected)
    assert progress == expected_progress
    assert tensors.keys() == expected_tensors.keys()
    for name, value in expected_tensors.items():
        assert torch.equal(tensors[name], value), name


def wait_for(claim: Callable[[], bool], run: threading.Thread) -> None:
    until = time.monotonic() + MOST_SECONDS
    while not claim():
        assert time.monotonic() < until
        run.join(0.2)
        assert run.is_alive(), "the run ended early"


def come_and_go(
    cluster: Cluster, nodes: list[Any], job: Job, run: threading.Thread, seen: list[tuple[str, int, int]]
) -> None:
    """Take a machine away after a notice, add one, kill a worker and a machine; then stop."""

    def note(what: str) -> None:
        seen.append((what, newest_step(job), count_workers()))

    wait_for(lambda: newest_step(job) >= INTERVAL and count_workers() == 2, run)
    # Right after a save by interval, so that the one on notice comes well before the next.
    step = newest_step(job)
    wait_for(lambda: newest_step(job) > step, run)
    note("two")
    gcs = ray._raylet.GcsClient(address=cluster.address)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    deadline = int(time.time() * 1000) + 10**6
    assert gcs.drain_node(nodes[0].node_id, reason, "the machine is taken away", deadline)[0]
    wait_for(lambda: newest_step(job) % INTERVAL > 0, run)
    note("saved on notice")
    cluster.remove_node(nodes[0])
    wait_for(lambda: count_workers() == 1, run)
    step = newest_step(job)
    wait_for(lambda: newest_step(job) > step, run)
    note("alone")
    cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    wait_for(lambda: count_workers() == 2, run)
    step = newest_step(job)
    wait_for(lambda: newest_step(job) > step, run)
    note("two again")
    train_workers()[0].send_signal(signal.SIGKILL)
    cluster.remove_node(nodes[1], allow_graceful=False)
    step = newest_step(job)
    wait_for(lambda: newest_step(job) > step, run)
    note("killed")
    (Path(job.run_uri) / STOP).touch()


def test_run_whose_machines_come_and_go_equals_an_undisturbed_one(
    system: System, make_config: Callable[..., TrainConfig], cluster: Cluster
) -> None:
    checkpoints = CheckpointConfig(every_steps=INTERVAL)
    config = make_config("keyframes", steps=100_000, track=False, cluster=ELASTIC, checkpoints=checkpoints)
    disturbed = system.job(config, "disturbed")
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20) for _ in range(2)]
    seen: list[tuple[str, int, int]] = []
    outcomes: list[Any] = []
    # Nodes may be added and removed in the main thread alone.
    thread = threading.Thread(target=lambda: outcomes.append(run_on_ray(disturbed)), daemon=True)
    thread.start()
    come_and_go(cluster, nodes, disturbed, thread, seen)
    thread.join(MOST_SECONDS)
    (outcome,) = outcomes
    assert [what for what, _, _ in seen] == ["two", "saved on notice", "alone", "two again", "killed"]
    alone = system.job(replace(config, steps=outcome.step, cluster=ClusterConfig()), "alone")
    expected = run_worker(alone, Workers(), torch.device("cpu"))
    assert outcome.loss == expected.loss
    assert_same_run(disturbed, alone)

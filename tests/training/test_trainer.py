"""Runs on Ray with DeepSpeed: killed workers and other numbers of workers leave no trace in the result."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from training.checkpoints import CheckpointStore
from training.config import ClusterConfig, TrainConfig, ZeroConfig
from training.reduction import Workers
from training.trainer import run_on_ray
from training.worker import Job, run_worker

MakeConfig = Callable[..., TrainConfig]
System = Any
pytestmark = [pytest.mark.ray, pytest.mark.slow]

TWO = ClusterConfig(
    launcher="ray", min_workers=2, max_workers=2, engine="deepspeed", zero=ZeroConfig(stage=2), cpus_per_worker=1.0
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    root = Path(__file__).parents[2]
    # Ray's sockets live below this folder and a socket's path is limited to 107 bytes.
    folder = f"/tmp/vldm-{os.getpid()}"
    ray.init(
        address="local",
        num_cpus=2,
        _temp_dir=folder,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": str(root), "DS_ACCELERATOR": "cpu"}},
        _system_config={"prestart_worker_first_driver": False},
    )
    yield
    ray.shutdown()


def train_workers() -> list[psutil.Process]:
    own = psutil.Process().children(recursive=True)
    return [process for process in own if "RayTrainWorker" in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def newest_step(job: Job) -> int:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    return found.step if found else 0


def kill_after(job: Job, steps: list[int], killed: list[int]) -> threading.Thread:
    """For each step, SIGKILL one worker once a checkpoint of that step or later is committed."""
    pause = threading.Event()

    def watch() -> None:
        for number, step in enumerate(steps):
            while newest_step(job) < step:
                pause.wait(0.02)
            while not (found := train_workers()):
                pause.wait(0.02)
            victim = found[number % len(found)]
            os.kill(victim.pid, signal.SIGKILL)
            killed.append(newest_step(job))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


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


def test_killed_run_equals_an_undisturbed_one(system: System, make_config: MakeConfig, cluster: None) -> None:
    config = make_config("keyframes", steps=60, cluster=TWO)
    disturbed, alone = system.job(config, "ray"), system.job(replace(config, cluster=ClusterConfig()), "alone")
    killed: list[int] = []
    thread = kill_after(disturbed, [4], killed)
    outcome = run_on_ray(disturbed)
    thread.join(5)
    assert len(killed) == 1
    assert 4 <= killed[0] < 60, "the worker was to be killed in the middle of the run"
    assert (outcome.step, outcome.is_done) == (60, True)
    expected = run_worker(alone, Workers(), torch.device("cpu"))
    assert outcome.loss == expected.loss
    assert_same_run(disturbed, alone)

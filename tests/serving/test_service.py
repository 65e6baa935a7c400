"""The service as an operator starts it: `python -m serving` on a Ray cluster, with a checkpoint of random weights."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import openai
import psutil
import pytest

from infra.ports import free_port
from tests.serving.processes import descendants
from tests.serving.tiny import make_tiny

ROOT = Path(__file__).resolve().parents[2]
# Twelve seconds of imports and a dozen processes: minutes where other work has most of the machine.
PATIENCE_S = 600
pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "serving", *arguments]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


class Service:
    """A running service: its process, its address, and its replicas."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process, self.url = process, url
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=8)

    def replicas(self, name: str) -> list[psutil.Process]:
        title = f"ray::ServeReplica:videoldm:{name}"
        return [process for process in descendants(os.getpid()) if title in process.cmdline()[0]]

    def kill(self, name: str) -> None:
        for process in self.replicas(name):
            process.send_signal(signal.SIGKILL)

    def submit(self, **extra: object) -> str:
        return str(self.client.videos.create(prompt="busy road at night", extra_body={"seed": 1, **extra}).id)

    def result(self, video_id: str) -> bytes:
        video = self.client.videos.poll(video_id, poll_interval_ms=100)
        assert video.status == "completed", video.error
        return self.client.videos.download_content(video_id).read()

    def wait_steps(self, video_id: str, steps: int) -> None:
        for _ in range(PATIENCE_S * 50):
            video = self.client.videos.retrieve(video_id)
            if video.steps_done >= steps or video.status not in ("queued", "in_progress"):
                return
            time.sleep(0.02)
        raise AssertionError(f"{video_id} did not reach step {steps}")


@contextmanager
def running(cluster: str, checkpoint: str, state: Path, *arguments: str) -> Iterator[Service]:
    port = free_port()
    line = [sys.executable, "-m", "serving", "--checkpoint", checkpoint, "--port", str(port), "--state", str(state)]
    environment = {**os.environ, "RAY_ADDRESS": cluster, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*line, *arguments], cwd=ROOT, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(PATIENCE_S * 5):
            assert process.poll() is None, "the service ended while starting"
            try:
                if httpx.get(f"{url}/ready").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        yield Service(process, url)
    finally:
        process.terminate()
        assert process.wait(timeout=PATIENCE_S) == 0


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return make_tiny(folder / "first"), make_tiny(folder / "second", seed=1)


@pytest.fixture(scope="module")
def service(checkpoints, tmp_path_factory, shared_cluster) -> Iterator[Service]:
    state = tmp_path_factory.mktemp("state")
    quick = ("--worker.lease-s", "2", "--worker.save-every-s", "0.1")
    with running(shared_cluster, checkpoints[0], state, *quick) as service:
        service.state = state  # type: ignore[attr-defined]
        yield service


def test_service_makes_a_video_that_the_client_can_fetch(service):
    data = service.result(service.submit())
    assert data[4:8] == b"ftyp"
    assert service.result(service.submit()) == data
    assert service.result(service.submit(seed=2)) != data


def test_all_replicas_killed_in_the_middle_change_nothing_in_the_result(service):
    steps = 40
    expected = service.result(service.submit(num_inference_steps=steps))
    video_id = service.submit(num_inference_steps=steps)
    service.wait_steps(video_id, 5)
    for victim in ("denoise", "decode", "ingress", "conductor"):
        service.kill(victim)
    assert service.result(video_id) == expected


def test_rollout_moves_new_jobs_and_a_broken_checkpoint_moves_nothing(service, checkpoints, tmp_path):
    state = str(service.state)
    before = service.client.videos.retrieve(service.submit())
    done = command("rollout", checkpoints[1], "--state", state)
    assert done.returncode == 0, done.stderr
    after = service.client.videos.retrieve(service.submit())
    assert before.release != after.release
    assert service.result(before.id) != service.result(after.id)
    broken = Path(make_tiny(tmp_path / "broken", seed=2))
    weights = broken / "temporal" / "keyframes" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100] + bytes(100))
    failed = command("rollout", str(broken), "--state", state)
    assert failed.returncode == 2
    assert "model.safetensors" in failed.stderr
    assert service.client.videos.retrieve(service.submit()).release == after.release


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoint", "/nowhere"], "/nowhere"),
        (["--checkpoint", "CHECKPOINT", "--port", "PORT"], "--port"),
        (["--checkpoint", "CHECKPOINT", "--database", "mysql://x/y"], "mysql"),
        (["rollout", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_arguments_end_in_one_line_and_code_2(checkpoints, tmp_path, arguments, words):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        known = {"CHECKPOINT": checkpoints[0], "PORT": str(taken.getsockname()[1])}
        done = command(*[known.get(word, word) for word in arguments], "--state", str(tmp_path / "state"))
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "state").exists()

"""SIGKILL at every durable step of a run; a second run must end as if nothing had happened."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infra.cli import ExitCode
from preprocessing.arguments import Job
from preprocessing.config import ClipForm, PreprocessConfig

CONFIG = PreprocessConfig(clips=(ClipForm(num_frames=4, fps="4"),), sizes=((32, 64),), min_groups=2)
DURABLE = ("fsync", "replace", "link")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(2):
        make_video(folder / f"{i}.mp4", 12, seed=i)
    (folder / "text.mp4").write_text("no video")
    return folder


def content(shards: Path) -> dict[str, bytes]:
    """Everything that must not depend on the run's history: not who did the work, not leftovers."""
    files = [p for p in shards.rglob("*") if p.is_file() and p.name != "job.json" and "ledger" not in p.parts]
    return {str(p.relative_to(shards)): p.read_bytes() for p in files if not p.name.startswith(".tmp-")}


def in_child(work: Callable[[], object], kill_at: int) -> tuple[int, int]:
    """Run in a fork that kills itself at the given durable call: odd before it, even after it.

    Returns the signal that ended it (0 if none) and the number of durable calls made.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def hooked(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if 2 * calls - 1 == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = real(*args, **kwargs)
                if 2 * calls == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        for name in DURABLE:
            setattr(os, name, hooked(getattr(os, name)))
        Path.replace = os.replace  # type: ignore[assignment,method-assign]
        code = 1
        try:
            work()
            code = 0
        finally:
            os.write(writer, calls.to_bytes(4, "little"))
            os._exit(code)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    calls = int.from_bytes(os.read(reader, 4), "little")
    os.close(reader)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, calls


def test_a_kill_at_any_durable_step_loses_and_doubles_nothing(
    corpus: Path, vae_folder: Path, tmp_path: Path, run_job: Callable[[Job], ExitCode]
) -> None:
    torch.set_num_threads(1)

    def job(name: str) -> Job:
        return Job(corpus=str(corpus), shards=str(tmp_path / name), checkpoint=str(vae_folder), config=CONFIG)

    ended, points = in_child(lambda: run_job(job("undisturbed")), 0)
    assert ended == 0
    expected = content(tmp_path / "undisturbed")
    assert "_SUCCESS.json" in expected
    assert points > 25
    # Every third place: before and after a call in turn.
    for kill_at in range(1, 2 * points + 1, 3):
        name = f"killed-{kill_at}"
        ended, _ = in_child(lambda name=name: run_job(job(name)), kill_at)  # type: ignore[misc]
        assert ended == signal.SIGKILL, kill_at
        ended, _ = in_child(lambda name=name: run_job(job(name)), 0)  # type: ignore[misc]
        assert content(tmp_path / name) == expected, kill_at

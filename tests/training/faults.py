"""Run a job on forked workers that are killed at chosen moments, and restart it until it is done."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.distributed import destroy_process_group, init_process_group

from infra import storage
from training import worker
from training.checkpoints import CheckpointStore
from training.reduction import Workers
from training.task import LossNetwork
from training.torch_engine import TorchEngine
from training.worker import Job, run_worker

MOMENTS: dict[str, tuple[Any, str]] = {
    "forward": (LossNetwork, "forward"),
    "backward": (TorchEngine, "gradient"),
    "step": (TorchEngine, "step"),
    "save": (worker, "snapshot"),
    "upload": (storage, "publish"),
    "commit": (storage, "write_atomic"),
}
"""Where a worker can be killed: the function at whose call (before or after it) it dies."""

JOIN_S = 120


@dataclass(frozen=True)
class Kill:
    """Kill worker `rank` at call number `call` of a moment, before or after the call."""

    rank: int
    moment: str
    call: int
    after: bool


@dataclass(frozen=True)
class Attempt:
    """One start of the job: with how many workers, and which of them dies when."""

    count: int
    kill: Kill | None = None


@dataclass(frozen=True)
class Record:
    """What became of an attempt: whether a worker was killed, at which step, and the newest checkpoint after it."""

    is_done: bool
    killed_at: int | None
    checkpoint: int


def run_attempts(job: Job, attempts: Sequence[Attempt], folder: Path) -> list[Record]:
    """Start the job again and again, as each attempt says, until it is done; the last attempt should kill nobody."""
    records = []
    for number, attempt in enumerate(attempts):
        note = folder / f"killed-{number}"
        context = get_context("fork")
        processes = [
            context.Process(target=_work, args=(rank, attempt, job, str(folder / f"group-{number}"), str(note)))
            for rank in range(attempt.count)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(JOIN_S)
            if process.is_alive():
                process.kill()
                process.join()
        newest = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
        is_done = all(process.exitcode == 0 for process in processes)
        killed_at = int(note.read_text()) if note.exists() else None
        records.append(Record(is_done, killed_at, newest.step if newest else 0))
        if is_done:
            break
    return records


def _work(rank: int, attempt: Attempt, job: Job, group: str, note: str) -> None:
    torch.set_num_threads(1)
    # The peers' complaints about a killed worker are not news.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    if attempt.count > 1:
        init_process_group("gloo", init_method=f"file://{group}", rank=rank, world_size=attempt.count)
    kill = attempt.kill
    if kill is not None and kill.rank == rank:
        _arm(kill, job, note)
    outcome = run_worker(job, Workers(rank=rank, count=attempt.count), torch.device("cpu"))
    if attempt.count > 1:
        destroy_process_group()
    os._exit(0 if outcome.is_done else 1)


def _arm(kill: Kill, job: Job, note: str) -> None:
    place, name = MOMENTS[kill.moment]
    original: Callable[..., Any] = getattr(place, name)
    calls = 0
    steps = _count_steps()

    def die() -> None:
        Path(note).write_text(str(steps()))
        os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == kill.call and not kill.after:
            die()
        result = original(*args, **kwargs)
        if calls == kill.call:
            die()
        return result

    setattr(place, name, wrapped)


def _count_steps() -> Callable[[], int]:
    """Count the steps this worker has taken, from its first one on."""
    first: list[int] = []
    original = worker._Run._record

    def record(run: Any, result: Any) -> None:
        first[:] = [result.step + 1]
        original(run, result)

    setattr(worker._Run, "_record", record)  # noqa: B010 - wrapped for this process alone
    return lambda: first[0] if first else -1

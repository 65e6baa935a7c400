"""The gates of training that count failures: bits, kills, bad samples, damaged checkpoints, stalls."""

import dataclasses
import os
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from tests.training import test_checkpoints, test_engine, test_loop
from tests.training.conftest import build_system, micro_config
from tests.training.faults import MOMENTS, Attempt, Kill, run_attempts
from tests.training.test_loop import CONFIG, Run, ToySource, losses
from training.checkpoints import CheckpointStore, refuse_other_run
from training.config import CheckpointConfig, ZeroConfig
from training.data import Order, Reader
from training.reduction import Workers
from training.worker import run_worker


class Row(NamedTuple):
    """One gate: lower is better; the floor alone is reached with fewer trials than the target asks for."""

    gate: str
    what: str
    figure: float
    floor: float
    target: float
    is_short: bool = False

    @property
    def verdict(self) -> str:
        """In one word."""
        if self.figure <= self.target and not self.is_short:
            return "target"
        return "floor" if self.figure <= self.floor else "missed"


def spawn(target: Any, count: int, *arguments: object) -> None:
    """Run a function in forked processes."""
    start_processes(target, args=arguments, nprocs=count, start_method="fork")  # type: ignore[no-untyped-call]


def t1(folder: Path, amount: int) -> list[Row]:
    """Losses and weights over 1, 2, 3 and 4 workers; kills and resizes are T3."""
    alone = Run(ToySource(23))
    expected, worst = losses(alone.go()), 0.0
    for count in (2, 3, 4):
        place = folder / str(count)
        place.mkdir()
        spawn(test_loop.worker, count, count, {}, str(place))
        actual, tensors, _ = torch.load(place / "0.pt")
        pairs = [(torch.tensor(actual), torch.tensor(expected)), *((tensors[k], v) for k, v in alone.tensors().items())]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    return [Row("T1", "largest difference of losses, weights, moments over 1, 2, 3, 4 workers", worst, 1e-6, 0.0)]


def t2(folder: Path, amount: int) -> list[Row]:
    """Every ZeRO stage against the plain torch loop, at one and two workers."""
    os.environ.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0")
    # Before the fork, so that it is imported once.
    import training.engine  # noqa: F401, PLC0415

    expected, worst = test_engine.torch_reference(0, 5), 0.0
    for stage in (0, 1, 2, 3):
        for count in (1, 2):
            place = folder / f"{stage}-{count}"
            place.mkdir()
            zero = ZeroConfig(stage=stage)  # type: ignore[arg-type]
            actual = test_engine.run_deepspeed(spawn, zero, count, range(5), place)
            worst = max(worst, *(float((actual[k] - v).abs().max()) for k, v in expected.items()))
    return [Row("T2", "largest difference of ZeRO 0 to 3, 1 and 2 workers, to plain torch", worst, 1e-6, 0.0)]


def t3(folder: Path, amount: int) -> list[Row]:
    """Seeded SIGKILLs at random step, moment and rank, with another number of workers each time."""
    system = build_system(folder)
    config = micro_config("image", steps=3 * amount, virtual_shards=4, track=False)
    rng = random.Random(0)
    attempts = []
    for _ in range(amount):
        count, moment = rng.choice((1, 2, 4)), rng.choice(list(MOMENTS))
        rank = 0 if moment in ("upload", "commit") else rng.randrange(count)
        attempts.append(Attempt(count, Kill(rank, moment, rng.randint(1, 5), rng.random() < 0.5)))
    disturbed, alone = system.job(config, "disturbed"), system.job(config, "alone")
    records = run_attempts(disturbed, [*attempts, Attempt(2), Attempt(1)], folder)
    run_worker(alone, Workers(), torch.device("cpu"))
    found, expected = (CheckpointStore(job.run_uri, config.checkpoints).newest() for job in (disturbed, alone))
    assert found is not None
    assert expected is not None
    done = sum(record.killed_at is not None for record in records)
    wrong = float(found.progress != expected.progress) + float(found.files != expected.files)
    lost = [record.killed_at - record.checkpoint for record in records if (record.killed_at or -1) > 0]
    what = f"{done} kills: differences of the ledger of samples and of the files' digests"
    share = max(lost) / config.checkpoints.every_steps
    return [
        Row("T3", what, wrong, 0.0, 0.0, is_short=done < 200),
        Row("T4", "most steps lost by a kill / checkpoint interval", share, 1.0, 1.0),
    ]


def t6(folder: Path, amount: int) -> list[Row]:
    """Stall of the training thread per checkpoint, copies included, against a save that is waited for."""
    tensors = {name: {"w": torch.randn(4_000_000)} for name in ("weights", "moments", "ema")}
    stalls, waits = [], []
    for number in range(7):
        store = CheckpointStore(str(folder / f"run{number}"), CheckpointConfig())
        started = time.perf_counter()
        copies: dict[str, dict[str, Tensor]] = {k: {n: t.clone() for n, t in v.items()} for k, v in tensors.items()}
        store.save(1, copies, identity={}, progress={})
        stalls.append(time.perf_counter() - started)
        store.wait()
        waits.append(time.perf_counter() - started)
    share = statistics.median(stalls) / statistics.median(waits)
    return [Row("T6", "stall per checkpoint / synchronous save, 48 MB", share, 0.3, 0.1)]


def t9(folder: Path, amount: int) -> list[Row]:
    """Mutated checkpoints, and checkpoints of other runs, that load or are refused without their cause."""
    taken, total = 0, 0
    for number, mutate in enumerate(test_checkpoints.MUTATIONS.values()):
        place = folder / str(number)
        target = test_checkpoints.store(place)
        test_checkpoints.save(target, 5)
        test_checkpoints.save(target, 10)
        newest = Path(test_checkpoints.newest(place).uri)
        mutate(newest)
        total += 1
        try:
            test_checkpoints.newest(place).load()
            taken += 1
        except ValueError as err:
            taken += newest.name not in str(err)
    identity = test_checkpoints.IDENTITY
    for change in ({"shards": "other"}, {"backbone": "other"}, {"config": {**identity["config"], "batch_size": 8}}):
        total += 1
        try:
            refuse_other_run(identity, {**identity, **change}, "checkpoint")
            taken += 1
        except ValueError as err:
            taken += next(iter(change)) not in str(err)
    return [Row("T9", f"of {total} mutated checkpoints not refused by name", float(taken), 0.0, 0.0)]


def t13(folder: Path, amount: int) -> list[Row]:
    """Injected bad samples that are missed, that change a weight, and good ones put aside in 1,000 steps."""
    missed = 0
    for number in range(60):
        factor = (float("nan"), float("inf"), 1e4)[number % 3]
        name = f"s{number % 8}"
        config = dataclasses.replace(CONFIG, steps=1)
        run, clean = Run(ToySource(8, {name: factor}), config=config), Run(ToySource(8), config=config)
        clean.progress.quarantine[name] = "left out"
        (result,), _ = run.go(), clean.go()
        same = all(torch.equal(value, clean.tensors()[key]) for key, value in run.tensors().items())
        missed += list(result.put_aside) != [name] or not same
    long = Run(ToySource(64), config=dataclasses.replace(CONFIG, steps=1000))
    long.go()
    what = "of 60 bad samples not caught, unnamed or of effect, plus false alarms in 1,000 steps"
    return [Row("T13", what, float(missed + len(long.progress.quarantine)), 0.0, 0.0)]


def t15(folder: Path, amount: int) -> list[Row]:
    """Waiting for data while each read takes as long as a step."""
    step_s = 0.2

    class Slow(ToySource):
        def read(self, refs: Sequence[Any]) -> list[Tensor]:
            time.sleep(step_s)
            return super().read(refs)

    source = Slow(23)
    order = Order(source.buckets, batch_size=8, seed=0)
    reader: Reader[Tensor, object] = Reader(source, order, test_loop.collate, shards=range(4), num_shards=4)
    next(reader)
    started, before = time.perf_counter(), reader.waited_s
    for _ in range(50):
        next(reader)
        time.sleep(step_s)
    share = (reader.waited_s - before) / (time.perf_counter() - started)
    reader.close()
    return [Row("T15", "share of time waiting for data, storage as slow as a step, 50 steps", share, 0.03, 0.01)]

"""Gates of training that two cores can measure: one row each with figure, floor, target and verdict.

`python tests/benchmarks/bench_training.py [--kills 40] [GATE ...]`; exact gates count failures, the others compare
with the plain way of doing the same thing in the same process.
"""

import argparse
import dataclasses
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.training import test_loop
from tests.training.conftest import build_system, micro_config
from tests.training.faults import MOMENTS, Attempt, Kill, run_attempts
from tests.training.test_loop import CONFIG, Run, ToySource, losses
from training.checkpoints import CheckpointStore
from training.config import CheckpointConfig
from training.data import Order, Reader
from training.reduction import Workers
from training.worker import run_worker

ROOT = Path(__file__).resolve().parents[2]


def row(gate: str, what: str, figure: float, floor: float, target: float, *, unit: str = "") -> None:
    """Print one gate; lower is better."""
    word = "target" if figure <= target else "floor" if figure <= floor else "missed"
    print(f"{gate:4} {what:68} {figure:10.4g}{unit:3} floor {floor:<6g} target {target:<6g} {word}", flush=True)


def t1(folder: Path, kills: int) -> None:
    """Losses and weights over 1, 2, 3 and 4 workers."""
    alone = Run(ToySource(23))
    expected, worst = losses(alone.go()), 0.0
    for count in (2, 3, 4):
        place = folder / str(count)
        place.mkdir()
        start_processes(test_loop.worker, args=(count, {}, str(place)), nprocs=count, start_method="fork")  # type: ignore[no-untyped-call]
        actual, tensors, _ = torch.load(place / "0.pt")
        pairs = [(torch.tensor(actual), torch.tensor(expected)), *((tensors[k], v) for k, v in alone.tensors().items())]
        worst = max(worst, *(float((a - b).abs().max()) for a, b in pairs))
    row("T1", "largest difference of losses, weights, moments over 1, 2, 3, 4 workers", worst, 1e-6, 0.0)


def t3(folder: Path, kills: int) -> None:
    """Seeded SIGKILLs at random step, moment and rank, with another number of workers each time."""
    system = build_system(folder)
    config = micro_config("image", steps=3 * kills, virtual_shards=4, track=False)
    rng = random.Random(0)
    attempts = []
    for _ in range(kills):
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
    is_same = found.progress == expected.progress and found.files == expected.files
    row(
        "T3", f"{done} kills: other samples in the ledger, or another digest of any file", 0.0 if is_same else 1.0, 0, 0
    )
    lost = [record.killed_at - record.checkpoint for record in records if (record.killed_at or -1) > 0]
    row("T4", "most steps lost by a kill / checkpoint interval", max(lost) / config.checkpoints.every_steps, 1.0, 1.0)


def t6(folder: Path, kills: int) -> None:
    """Stall of the training thread per checkpoint against a save that is waited for."""
    tensors = {name: {"w": torch.randn(2_000_000)} for name in ("weights", "moments", "ema")}
    stalls, waits = [], []
    for number in range(6):
        store = CheckpointStore(str(folder / f"run{number}"), CheckpointConfig())
        started = time.perf_counter()
        copies: dict[str, dict[str, Tensor]] = {k: {n: t.clone() for n, t in v.items()} for k, v in tensors.items()}
        store.save(1, copies, identity={}, progress={})
        stalls.append(time.perf_counter() - started)
        store.wait()
        waits.append(time.perf_counter() - started)
    row("T6", "stall per checkpoint / synchronous save", statistics.median(stalls) / statistics.median(waits), 0.3, 0.1)


def t7(folder: Path, kills: int) -> None:
    """Size of the temporal weights in bf16 against two bytes a parameter."""
    weights = {f"layer{i}": torch.randn(300, 301).bfloat16() for i in range(40)}
    save_file(weights, folder / "adapter.safetensors")
    bare = sum(2 * tensor.numel() for tensor in weights.values())
    row(
        "T7",
        "safetensors file / bytes of its weights",
        (folder / "adapter.safetensors").stat().st_size / bare,
        1.05,
        1.02,
    )


def t9(folder: Path, kills: int) -> None:
    """Mutated checkpoints that load."""
    line = [sys.executable, "-m", "pytest", "-q", "tests/training/test_checkpoints.py", "-k", "mutated or another_run"]
    finished = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    last = finished.stdout.strip().splitlines()[-1]
    row("T9", f"mutated checkpoints that were not refused ({last})", float(finished.returncode != 0), 0, 0)


def t13(folder: Path, kills: int) -> None:
    """Injected bad samples that are missed, and good ones put aside in 1,000 steps."""
    missed = 0
    for number in range(60):
        factor = (float("nan"), float("inf"), 1e4)[number % 3]
        name = f"s{number % 8}"
        run = Run(ToySource(8, {name: factor}), config=dataclasses.replace(CONFIG, steps=1))
        (result,) = run.go()
        missed += list(result.put_aside) != [name]
    clean = Run(ToySource(64), config=dataclasses.replace(CONFIG, steps=1000))
    clean.go()
    row("T13", "of 60 bad samples not caught in their step, plus false alarms in 1,000 steps",
        missed + len(clean.progress.quarantine), 0, 0)  # fmt: skip


def t15(folder: Path, kills: int) -> None:
    """Waiting for data while each read takes as long as a step."""
    step_s = 0.1

    class Slow(ToySource):
        def read(self, refs: Sequence[object]) -> list[Tensor]:
            time.sleep(step_s)
            return super().read(refs)  # type: ignore[arg-type]

    source = Slow(23)
    order = Order(source.buckets, batch_size=8, seed=0)
    reader: Reader[Tensor, object] = Reader(source, order, test_loop.collate, shards=range(4), num_shards=4)
    next(reader)
    started, before = time.perf_counter(), reader.waited_s
    for _ in range(50):
        next(reader)
        time.sleep(step_s)
    share = (reader.waited_s - before) / (time.perf_counter() - started)
    row("T15", "share of time waiting for data, storage as slow as a step", share, 0.03, 0.01)
    reader.close()


GATES: dict[str, Callable[[Path, int], None]] = {
    "T1": t1, "T3": t3, "T6": t6, "T7": t7, "T9": t9, "T13": t13, "T15": t15,
}  # fmt: skip


def main() -> None:
    """Measure the gates named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gates", nargs="*", default=list(GATES))
    parser.add_argument("--kills", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for gate in arguments.gates:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            GATES[gate](Path(folder), arguments.kills)


if __name__ == "__main__":
    main()

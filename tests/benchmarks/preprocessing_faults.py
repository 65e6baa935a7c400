"""P7 and P9: broken inputs, and damaged shard sets."""

import shutil
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

from preprocessing import card, looks
from preprocessing.arguments import read_job
from preprocessing.encoder import find_autoencoder
from preprocessing.plan import Looked, make_plan
from preprocessing.run import execute
from preprocessing.sandbox import Sandbox, SandboxError
from preprocessing.sources import Source
from preprocessing.verify import find_faults, repair
from tests.benchmarks.preprocessing_gates import cpu_s, run_small
from tests.preprocessing.conftest import SerialEngine, write_video
from tests.preprocessing.test_golden import CONFIG as GOLDEN_CONFIG
from tests.preprocessing.test_golden import GOLDEN


def broken_inputs(folder: Path, inputs: int) -> tuple[float, float, int]:
    """P7: of many inputs a fifth broken: share of good ones kept, of broken ones rightly named, ways to be broken."""
    bad = [name for name, (_, allowed, _) in GOLDEN.items() if "good" not in allowed]
    good = [name for name, (_, allowed, clips) in GOLDEN.items() if allowed == {"good"} and clips]
    made = {name: folder / f"golden-{name}" for name in [*bad, *good]}
    for name, path in made.items():
        GOLDEN[name][0](path)
    sandbox = Sandbox(memory_bytes=4 * 2**30, timeout_s=600)
    right = {"good": [0, 0], "bad": [0, 0]}
    for i in range(inputs):
        kind, names = ("bad", bad) if i % 5 == 0 else ("good", good)
        name = names[i // 5 % len(names)] if kind == "bad" else names[i % len(names)]
        right[kind][0] += _verdict(sandbox, name, made[name]) in GOLDEN[name][1]
        right[kind][1] += 1
    sandbox.close()
    return right["good"][0] / right["good"][1], right["bad"][0] / right["bad"][1], len(bad)


def _verdict(sandbox: Sandbox, name: str, path: Path) -> str:
    try:
        [sight] = sandbox.stream(looks.look, str(path), GOLDEN_CONFIG)
        plan = make_plan([Looked(source=Source(uri=name, name=name, size_bytes=1), sight=sight)], GOLDEN_CONFIG)
        requests = [(k, clip.window.pts, (32, 48)) for k, clip in enumerate(plan.clips)]
        return "good" if list(sandbox.stream(looks.decode_clips, str(path), sight.info, requests)) else "none"
    except SandboxError as err:
        return err.reason


def faults_found(folder: Path, vae: Path, faults: int) -> tuple[int, float]:
    """P9: how many faults `verify` finds, one at a time, and what repair costs over the share of what was damaged."""
    corpus, shards = folder / "flips", folder / "flips-shards"
    for i in range(4):
        write_video(corpus / f"{i}.mp4", 24, seed=i)
    run_small(corpus, shards, vae)
    card.main([str(shards)])
    files = sorted(p for p in shards.rglob("*") if p.is_file())
    rng = np.random.default_rng(0)
    found = 0
    for number in range(faults):
        path = files[int(rng.integers(len(files)))]
        sound = path.read_bytes()
        # One fault in ten is of the whole file.
        touched = _spoil(path, rng, files) if number % 10 == 0 else _flip(path, sound, rng)
        found += any(fault.path == str(touched.relative_to(shards)) for fault in find_faults(str(shards)))
        if touched != path:
            touched.unlink()
        path.write_bytes(sound)
    return found, _repair_cost(folder, vae)


def _flip(path: Path, sound: bytes, rng: np.random.Generator) -> Path:
    bit = int(rng.integers(8 * len(sound)))
    damaged = bytearray(sound)
    damaged[bit // 8] ^= 1 << bit % 8
    path.write_bytes(damaged)
    return path


def _spoil(path: Path, rng: np.random.Generator, files: list[Path]) -> Path:
    """Truncate, empty, lengthen, replace or delete a file, or lay a foreign one beside it; gives the faulty path."""
    sound, other = path.read_bytes(), files[int(rng.integers(len(files)))].read_bytes()

    def write(content: bytes) -> Callable[[], None]:
        return lambda: path.write_bytes(content) and None

    ways: list[Callable[[], object]] = [
        write(sound[: len(sound) // 2]), write(b""), write(sound + b"\0"), write(other if other != sound else b"x"),
        path.unlink,
    ]  # fmt: skip
    way = int(rng.integers(len(ways) + 1))
    if way < len(ways):
        # The card is optional as a whole: a file of it that is gone is missed only if stats.json is left.
        ways[way if path.name != "stats.json" or way != 4 else 0]()
        return path
    foreign = path.with_name("foreign.bin")
    foreign.write_bytes(other)
    return foreign


def _repair_cost(folder: Path, vae: Path) -> float:
    """CPU of repairing a quarter of the groups over a quarter of the CPU of encoding them all, median of 5."""
    corpus, shards = folder / "repairs", folder / "repairs-shards"
    for i in range(16):
        write_video(corpus / f"{i:02d}.mp4", 80, seed=i)
    run_small(corpus, shards, vae)
    engine = SerialEngine()

    def encode() -> None:
        job = read_job(str(shards))
        execute(job, (), find_autoencoder(job.checkpoint), engine)

    ratios = []
    for _ in range(5):
        groups = sorted((shards / "ledger").iterdir())
        for path in groups:
            path.unlink()
        shutil.rmtree(shards / "data")
        whole = cpu_s(encode)
        for path in sorted((shards / "data").rglob("*.parquet"))[: len(groups) // 4]:
            path.write_bytes(b"damaged")
        faults = list(find_faults(str(shards)))
        ratios.append(cpu_s(lambda faults=faults: repair(str(shards), faults, encode)) / (whole / 4))  # type: ignore[misc]
    return statistics.median(ratios)

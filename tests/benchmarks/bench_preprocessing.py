"""Gates of preprocessing, one row each: id, figure, floor, target, word, what it is, the command that made it.

`python tests/benchmarks/bench_preprocessing.py [--gates P2,P9] [--scale 0.1] [--peers]`, or `make bench-preprocessing`.
CPU time, interleaved with what it is compared to, median of 5. `--scale` makes fewer frames, kills, inputs and flips;
every row says how many there were. `--peers` adds rows for other ways to do the same work.
"""

import argparse
import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from tests.benchmarks import (
    cut_films,
    preprocessing_faults,
    preprocessing_gates,
    preprocessing_kills,
    preprocessing_peers,
    preprocessing_store,
    preprocessing_throughput,
)
from tests.preprocessing.conftest import VAE


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure with its limits; larger is better unless `at_most`. Peers have a figure alone."""

    id: str
    figure: float
    what: str
    floor: float = float("nan")
    target: float = float("nan")
    at_most: bool = False

    @property
    def word(self) -> str:
        """target, floor, missed, or peer."""
        if self.floor != self.floor:
            return "peer"
        sign = -1 if self.at_most else 1
        if sign * self.figure >= sign * self.target:
            return "target"
        return "floor" if sign * self.figure >= sign * self.floor else "missed"


def at_most(gate: str, figure: float, floor: float, target: float, what: str) -> Gate:
    """A gate whose figure should be small."""
    return Gate(id=gate, figure=figure, floor=floor, target=target, what=what, at_most=True)


def at_least(gate: str, figure: float, floor: float, target: float, what: str) -> Gate:
    """A gate whose figure should be large."""
    return Gate(id=gate, figure=figure, floor=floor, target=target, what=what)


def measure(folder: Path, vae: Path, scale: float, peers: bool) -> dict[str, Callable[[], Iterator[Gate]]]:
    """The gates by id, to be measured when called."""
    gates = preprocessing_gates

    def many(full: int, least: int) -> int:
        return max(int(full * scale), least)

    def beside(gate: str, figures: dict[str, float]) -> Iterator[Gate]:
        for name, figure in figures.items():
            yield Gate(id=gate, figure=figure, what=f"peer: {name}")

    def efficiency(size: tuple[int, int]) -> Gate:
        least = preprocessing_throughput.GROUP_FRAMES * preprocessing_throughput.ROUNDS
        frames = -(-many(10_000, least) // least) * least
        figure, bare_ms = preprocessing_throughput.efficiency(folder, frames, size)
        made_by = f"{preprocessing_throughput.ENCODERS} encoders, {bare_ms:.1f} ms a frame bare"
        what = f"encode-bound frames per CPU-s / bare encoder, {frames} frames of {size[0]}x{size[1]}, {made_by}"
        return at_least("P1", figure, 0.90, 0.95, what)

    def p1() -> Iterator[Gate]:
        yield efficiency(preprocessing_throughput.LARGE)

    def p1_small() -> Iterator[Gate]:
        yield efficiency(preprocessing_throughput.SIZE)
        if peers:
            yield from beside("P1", preprocessing_peers.efficiency(folder, many(2000, 400)))

    def p2() -> Iterator[Gate]:
        yield at_least("P2", gates.decode_bound(folder), 2.5, 4, "30 -> 2 fps, CPU of read-all-then-stride / ours")
        if peers:
            yield from beside("P2", preprocessing_peers.decode_bound(folder))

    def p3() -> Iterator[Gate]:
        yield at_most("P3", gates.decode_passes(folder), 1, 1, "decode passes per source, 4 rates, 2 sizes")

    def p4() -> Iterator[Gate]:
        yield at_most("P4", gates.peak_memory(folder, vae), 1.10, 1.05, "peak memory, 200 sources / 2 sources")

    def p5() -> Iterator[Gate]:
        forks = many(90, 8)
        result = preprocessing_kills.kills(folder, vae, forks=forks, ray_runs=0)
        what = f"of {forks} runs in one process end otherwise after SIGKILL: durable points and random instants"
        yield at_most("P5", result.different, 0, 0, what)
        yield at_most("P6", result.twice, 1, 1, "shards done again by one worker")

    def p5_ray() -> Iterator[Gate]:
        result = preprocessing_kills.kills(folder, vae, forks=0, ray_runs=many(10, 3))
        what = f"of {result.ray_runs} runs on Ray end otherwise after SIGKILL: {result.where}"
        yield at_most("P5", result.different, 0, 0, what)
        yield at_most("P6", result.twice, 1, 1, "shards done again by one worker, on Ray")

    def p7() -> Iterator[Gate]:
        inputs = many(1000, 100)
        good, broken, ways = preprocessing_faults.broken_inputs(folder, inputs)
        yield at_least("P7", good, 1, 1, f"good ones kept of {inputs} inputs, a fifth broken in {ways} ways")
        yield at_least("P7", broken, 0.97, 0.99, "broken ones quarantined with the right reason")
        if peers:
            yield from beside("P7", preprocessing_peers.broken_inputs(folder))

    def p8() -> Iterator[Gate]:
        workers = (1, 2, 4) if scale >= 1 else (1, 2)
        figure = preprocessing_kills.digests(folder, vae, workers)
        yield at_most(
            "P8", figure, 1, 1, f"different digests: {workers} workers on Ray, in one process, shuffled listing"
        )

    def p9() -> Iterator[Gate]:
        faults = many(1000, 100)
        found, cost = preprocessing_faults.faults_found(folder, vae, faults)
        yield at_least("P9", found, faults, faults, f"of {faults} flipped bits and file faults found")
        yield at_most("P9", cost, float("inf"), 1.1, "CPU of repair / the damaged groups' share of the run")

    def p10() -> Iterator[Gate]:
        gets, mib = preprocessing_store.gets(folder, vae)
        yield at_most("P10", gets, 1, 1, "GETs of data for one clip by id from S3")
        yield at_most("P10", mib, float("inf"), 8, "MiB of that GET, row groups at full size")

    def p11() -> Iterator[Gate]:
        reader, tar, tensor = gates.read_cost(folder)
        yield at_most("P11", tar, 1 / 3, 1 / 4, f"read CPU / {reader}")
        yield at_most("P11", tensor, 1 / 3, 1 / 4, "read CPU / fixed-shape-tensor Parquet")

    def p12() -> Iterator[Gate]:
        slow, lost = preprocessing_store.slow_down(folder, vae)
        yield at_most("P12", slow, 1.5, 1.3, "slow-down, 10 % of requests answered 503, reset or timed out")
        yield at_most("P12", lost, 0, 0, "clips lost to that")

    def p13() -> Iterator[Gate]:
        films = many(12, 4)
        score = cut_films.score(films, seed=41)
        found, present = score.fades
        hard = score.right + score.missed
        yield at_least("P13", score.f1, 0.95, 0.97, f"F1 of hard cuts at one frame, {hard} cuts in {films} films")
        rest = f"dissolves {score.dissolves[0]} of {score.dissolves[1]}, invented {score.invented_gradual}"
        yield at_least("P13", found / present, 0.75, 0.85, f"share of {present} fades found; {rest}")

    def p14() -> Iterator[Gate]:
        yield at_most("P14", gates.worst_time_error(folder), 0.5, 0.5, "worst time error, source frames")

    return {
        "P1": p1, "P1-small": p1_small, "P2": p2, "P3": p3, "P4": p4, "P5": p5, "P5-ray": p5_ray, "P7": p7, "P8": p8,
        "P9": p9, "P10": p10, "P11": p11, "P12": p12, "P13": p13, "P14": p14,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", default="")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--peers", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for noisy in ("werkzeug", "diffusers", "ray"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="vldm") as name:
        vae = Path(name) / "vae"
        torch.manual_seed(3)
        AutoencoderKL(**VAE).save_pretrained(vae)
        for gate_id, call in measure(Path(name), vae, arguments.scale, arguments.peers).items():
            if arguments.gates and gate_id not in arguments.gates.split(","):
                continue
            command = f"bench_preprocessing.py --gates {gate_id} --scale {arguments.scale:g}"
            said = io.StringIO()
            with contextlib.redirect_stdout(said):
                rows = list(call())
            for gate in rows:
                limits = f"{gate.floor:8.3g} {gate.target:8.3g}"
                print(f"{gate.id:4} {gate.figure:10.4g} {limits}  {gate.word:7} {gate.what}  [{command}]", flush=True)
        sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

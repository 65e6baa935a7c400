"""Gates of preprocessing, one row each: id, figure, floor, target, word, what.

`python tests/benchmarks/bench_preprocessing.py [--gates P2,P9] [--quick]`; CPU time, interleaved with what it is
compared to, median of 5. `--quick` makes fewer kills, inputs and flips.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from tests.benchmarks import cut_films, preprocessing_gates, preprocessing_store, preprocessing_throughput
from tests.preprocessing.conftest import VAE


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A figure with its limits; larger is better unless `at_most`."""

    id: str
    figure: float
    floor: float
    target: float
    what: str
    at_most: bool = False

    @property
    def word(self) -> str:
        """target, floor or missed."""
        sign = -1 if self.at_most else 1
        if sign * self.figure >= sign * self.target:
            return "target"
        return "floor" if sign * self.figure >= sign * self.floor else "missed"


def measure(folder: Path, vae: Path, quick: bool) -> dict[str, Callable[[], Iterator[Gate]]]:
    """The gates by id, to be measured when called."""
    kills, inputs, flips = (10, 200, 150) if quick else (100, 1000, 1000)
    gates = preprocessing_gates

    def p1() -> Iterator[Gate]:
        figure = preprocessing_throughput.efficiency(folder, frames=1_000 if quick else 10_000)
        yield Gate(id="P1", figure=figure, floor=0.90, target=0.95, what="encode-bound frames per CPU-s / bare encoder")

    def p2() -> Iterator[Gate]:
        yield Gate(
            id="P2", figure=gates.decode_bound(folder), floor=2.5, target=4, what="30 -> 2 fps against read all, stride"
        )

    def p3() -> Iterator[Gate]:
        figure = gates.decode_passes(folder)
        yield Gate(id="P3", figure=figure, floor=1, target=1, what="decode passes, 4 rates, 2 sizes", at_most=True)

    def p4() -> Iterator[Gate]:
        figure = gates.peak_memory(folder, vae)
        yield Gate(id="P4", figure=figure, floor=1.10, target=1.05, what="peak memory, 100x corpus", at_most=True)

    def p5() -> Iterator[Gate]:
        different, twice = gates.random_kills(folder, vae, kills)
        yield Gate(
            id="P5", figure=different, floor=0, target=0, what=f"{kills} SIGKILLs: runs that differ", at_most=True
        )
        yield Gate(id="P6", figure=twice, floor=1, target=1, what="shards done again by one worker", at_most=True)

    def p7() -> Iterator[Gate]:
        good, broken = gates.broken_inputs(folder, inputs)
        yield Gate(id="P7", figure=good, floor=1, target=1, what=f"good of {inputs} inputs kept")
        yield Gate(id="P7", figure=broken, floor=0.97, target=0.99, what="broken ones named rightly")

    def p9() -> Iterator[Gate]:
        found = gates.flips_found(folder, vae, flips)
        yield Gate(id="P9", figure=found, floor=flips, target=flips, what="flipped bits found")

    def p10() -> Iterator[Gate]:
        figure, slow = preprocessing_store.gets_and_slow_down(folder, vae)
        yield Gate(id="P10", figure=figure, floor=1, target=1, what="GETs for one clip from S3", at_most=True)
        yield Gate(id="P12", figure=slow, floor=1.5, target=1.3, what="slow-down, 10 % of requests fail", at_most=True)

    def p11() -> Iterator[Gate]:
        tar, tensor = gates.read_cost(folder)
        yield Gate(
            id="P11", figure=tar, floor=1 / 3, target=1 / 4, what="read CPU / bare tarfile of .npy", at_most=True
        )
        yield Gate(
            id="P11", figure=tensor, floor=1 / 3, target=1 / 4, what="read CPU / Arrow tensor column", at_most=True
        )

    def p13() -> Iterator[Gate]:
        score = cut_films.score(12, seed=41)
        found, present = score.fades
        yield Gate(id="P13", figure=score.f1, floor=0.95, target=0.97, what="F1 of hard cuts at one frame")
        yield Gate(
            id="P13",
            figure=found / present,
            floor=0.75,
            target=0.85,
            what=f"fades of {present} found; dissolves {score.dissolves}, invented {score.invented_gradual}",
        )

    def p14() -> Iterator[Gate]:
        figure = gates.worst_time_error(folder)
        yield Gate(id="P14", figure=figure, floor=0.5, target=0.5, what="worst time error, source frames", at_most=True)

    return {
        "P1": p1,
        "P2": p2,
        "P3": p3,
        "P4": p4,
        "P5": p5,
        "P7": p7,
        "P9": p9,
        "P10": p10,
        "P11": p11,
        "P13": p13,
        "P14": p14,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gates", default="")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vldm") as name:
        vae = Path(name) / "vae"
        torch.manual_seed(3)
        AutoencoderKL(**VAE).save_pretrained(vae)
        for gate_id, call in measure(Path(name), vae, arguments.quick).items():
            if arguments.gates and gate_id not in arguments.gates.split(","):
                continue
            for gate in call():
                limits = f"{gate.floor:8.3g} {gate.target:8.3g}"
                print(f"{gate.id:4} {gate.figure:10.4g} {limits}  {gate.word:7} {gate.what}", flush=True)


if __name__ == "__main__":
    main()

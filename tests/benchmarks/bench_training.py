"""Gates of training that two cores can measure: one row each with figure, floor, target and verdict.

`python tests/benchmarks/bench_training.py [--kills 40] [GATE ...]`, or `make bench-training`. Exact gates count
failures; the others compare with the plain way of doing the same thing on the same machine.
"""

import argparse
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks import training_costs as costs
from tests.benchmarks import training_gates as gates
from tests.benchmarks.training_gates import Row

GATES: dict[str, Callable[[Path, int], list[Row]]] = {
    "T1": gates.t1,
    "T2": gates.t2,
    "T3": gates.t3,
    "T8": costs.t8,
    "T5": costs.t5,
    "T6": gates.t6,
    "T7": costs.t7,
    "T9": gates.t9,
    "T10": costs.t10,
    "T11": costs.t11,
    "T12": costs.t12,
    "T13": gates.t13,
    "T14": costs.t14,
    "T15": gates.t15,
}


def show(row: Row) -> None:
    """Print one gate; lower is better."""
    limits = f"floor {row.floor:<8.4g} target {row.target:<8.4g}"
    print(f"{row.gate:4} {row.what:92} {row.figure:10.4g}  {limits} {row.verdict}", flush=True)


def main() -> None:
    """Measure the gates named on the command line, or all; T4 comes with T3."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("gates", nargs="*", default=list(GATES))
    parser.add_argument("--kills", type=int, default=40)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning)
    print(
        f"$ python tests/benchmarks/bench_training.py --kills {arguments.kills} {' '.join(arguments.gates)}", flush=True
    )
    # In the order of GATES: those that fork workers come before those that are a worker themselves.
    for gate in sorted(arguments.gates, key=list(GATES).index):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            os.environ["GROUP"] = f"{folder}/group"
            for row in GATES[gate](Path(folder), arguments.kills):
                show(row)


if __name__ == "__main__":
    main()

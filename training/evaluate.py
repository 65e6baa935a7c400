"""`python -m training evaluate`: sample a checkpoint with Ray Data, measure the clips, print and write the figures."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from tqdm import tqdm

from infra.cli import ExitCode
from infra.cluster import connect
from training.evaluation.command import evaluate, parse
from training.evaluation.measuring import Job, Measurer, Result, Settings
from training.evaluation.rows import job_of, job_row, result_of, result_row


class MeasureRows:
    """An actor of the graph: rows of jobs to rows of results."""

    def __init__(self, settings: Settings) -> None:
        self.measurer = Measurer(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[bytes]]:
        """Carry out the jobs of a batch."""
        results = (result for job in batch["job"] for result in self.measurer.run(job_of(job)))
        return {"result": [result_row(result) for result in results]}


def run_on_ray(settings: Settings, jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """Carry out jobs in a pool of actors; only their numbers and the shown frames come back."""
    with connect(object_store_bytes=300 * 2**20):
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.issue_detectors_config.detectors = []
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        gpus: dict[str, Any] = {"num_gpus": 1.0} if settings.device == "cuda" else {}
        measured = ray.data.from_items(
            [{"job": job_row(job)} for job in jobs], override_num_blocks=len(jobs)
        ).map_batches(
            MeasureRows,
            fn_constructor_args=(settings,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(workers, len(jobs))),
            num_cpus=settings.threads,
            **gpus,
        )
        for row in measured.iter_rows():
            yield result_of(row["result"])


def run_here(settings: Settings, jobs: Sequence[Job]) -> Iterator[Result]:
    """Carry out jobs one after the other in this process."""
    measurer = Measurer(settings)
    for job in jobs:
        yield from measurer.run(job)


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line and evaluate."""
    parsed = parse(arguments)

    def run(settings: Settings, jobs: Sequence[Job]) -> Iterable[Result]:
        results = run_on_ray(settings, jobs, parsed.workers) if parsed.workers else run_here(settings, jobs)
        return tqdm(results, total=len(jobs), unit="clip", disable=None)

    return evaluate(parsed, run)

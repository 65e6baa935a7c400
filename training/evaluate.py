"""`python -m training evaluate`: sample a checkpoint with Ray Data, measure the clips, print and write the figures."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext
from tqdm import tqdm

from infra.cli import ExitCode
from infra.cluster import connect
from training.evaluation.command import Run, evaluate, parse
from training.evaluation.measuring import Job, Measurer, Result, Settings
from training.evaluation.rows import job_of, job_row, pack, unpack


class MeasureRows:
    """An actor of the graph: rows of jobs to rows of results."""

    def __init__(self, settings: Settings) -> None:
        self.measurer = Measurer(settings)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Carry out the jobs of a batch."""
        return {
            "number": list(batch["number"]),
            "results": [pack(list(self.measurer.run(job_of(job)))) for job in batch["job"]],
        }


def run_on_ray(settings: Settings, jobs: Sequence[Job], workers: int) -> Iterator[tuple[int, list[Result]]]:
    """Carry out jobs in a pool of actors; only their numbers and the shown frames come back."""
    with connect(object_store_bytes=300 * 2**20):
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.issue_detectors_config.detectors = []
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        gpus: dict[str, Any] = {"num_gpus": 1.0} if settings.device == "cuda" else {}
        measured = ray.data.from_items(
            [{"number": number, "job": job_row(job)} for number, job in enumerate(jobs)],
            override_num_blocks=len(jobs),
        ).map_batches(
            MeasureRows,
            fn_constructor_args=(settings,),
            batch_size=1,
            compute=ActorPoolStrategy(size=min(workers, len(jobs))),
            num_cpus=settings.threads,
            **gpus,
        )
        for row in measured.iter_rows():
            yield int(row["number"]), unpack(row["results"])


def run_here(settings: Settings, jobs: Sequence[Job]) -> Iterator[tuple[int, list[Result]]]:
    """Carry out jobs one after the other in this process."""
    measurer = Measurer(settings)
    for number, job in enumerate(jobs):
        yield number, list(measurer.run(job))


def runner(workers: int) -> Run:
    """Carry out jobs with some workers, or here if there are none, with a bar of progress."""

    def run(settings: Settings, jobs: Sequence[Job]) -> Iterable[tuple[int, list[Result]]]:
        results = run_on_ray(settings, jobs, workers) if workers else run_here(settings, jobs)
        return tqdm(results, total=len(jobs), unit="clip", disable=None)

    return run


def main(arguments: Sequence[str]) -> ExitCode:
    """Parse a command line and evaluate."""
    parsed = parse(arguments)
    return evaluate(parsed, runner(parsed.workers))

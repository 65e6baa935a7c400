"""A whole run in this process, and what it left."""

from typing import Any

import torch

from training.checkpoints import CheckpointStore
from training.reduction import Workers
from training.worker import Job, Outcome, run_worker


def go(job: Job) -> Outcome:
    outcome = run_worker(job, Workers(), torch.device("cpu"))
    if outcome.error is not None:
        raise ValueError(outcome.error)
    return outcome


def tensors(job: Job) -> dict[str, torch.Tensor]:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    return {f"{file}/{name}": value for file, values in found.load().items() for name, value in values.items()}


def progress(job: Job) -> dict[str, Any]:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    return dict(found.progress["loop"])

"""From a run's newest checkpoint to the checkpoint folder: the averaged weights, in the form everyone loads."""

from pathlib import Path
from typing import Any

import torch

from training.checkpoints import CheckpointStore, refuse_other_run
from training.phases import load_weights
from training.tasks import make_task
from training.worker import Job, identity_of


def export(job: Job, folder: Path) -> None:
    """Write the averaged weights of a run into a checkpoint folder.

    Raises:
        ValueError: if the run has no checkpoint, or its checkpoint does not fit the inputs.
    """
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    if found is None:
        raise ValueError(f"no checkpoint in {job.run_uri!r}; train first")
    torch.set_num_threads(job.config.threads)
    task = make_task(job.config, job.inputs)
    refuse_other_run(found.identity, identity_of(job.config, task), found.uri)
    averaged = found.load()["ema"]
    for spec in task.phases:
        load_weights(spec, averaged)
        spec.network.eval()
    record: dict[str, Any] = {"preset": job.config.name, "step": found.step, **task.identity}
    task.export(folder, record)

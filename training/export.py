"""From a run's newest checkpoint to the checkpoint folder: the averaged weights, in the form everyone loads."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infra import storage
from pipelines import checkpoint
from training.checkpoints import CheckpointStore, refuse_other_run
from training.phases import load_weights
from training.tasks import make_task
from training.worker import Job, identity_of


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was put into a checkpoint folder.

    Attributes:
        parts: paths of the parts in the folder, such as "temporal/keyframes".
        lineage: what they were made from: preset, step, digests of data and frozen weights.
    """

    parts: list[str]
    lineage: dict[str, Any]


def export(job: Job, folder: Path) -> Exported:
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
    has_manifest = (folder / checkpoint.MANIFEST).exists()
    before = len(checkpoint.read_manifest(folder).history) if has_manifest else 0
    task.export(folder, record)
    history = checkpoint.read_manifest(folder).history[before:]
    return Exported(parts=[entry["part"] for entry in history], lineage=record)


@contextmanager
def local_copy(out: str) -> Iterator[Path]:
    """Give a local folder to export to; what the block puts in goes to `out`, if that is remote, its manifest last."""
    if not storage.is_remote(out):
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="export-") as temporary:
        folder = Path(temporary)
        manifest = storage.join(out, checkpoint.MANIFEST)
        if storage.exists(manifest):
            # A part is put in by the manifest alone; the other parts stay where they are.
            (folder / checkpoint.MANIFEST).write_bytes(storage.read_bytes(manifest))
        yield folder
        files = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
        for name in sorted(files, key=lambda name: name == checkpoint.MANIFEST):
            storage.write_atomic(storage.join(out, name), (folder / name).read_bytes())

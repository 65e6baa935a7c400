"""Results of finished jobs on disk, each under a digest of all that made it: a second run measures only what is new."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from infra import storage
from pipelines.checkpoint import Manifest
from pipelines.configs import to_json
from training.evaluation.measuring import Job, Kind, Result, Settings
from training.evaluation.rows import pack, unpack

VERSION = 2
"""Raised when making or measuring changes, so that older results are not taken up."""

MADE_BY: dict[Kind, tuple[str, ...]] = {
    "real": (),
    "decoder": ("backbone/vae/", "decoder/"),
    "upsampler": ("upsampler/", "temporal/upsampler/"),
    # An image model samples as the stage says that it is made for.
    "boxes": ("backbone/vae/", "decoder/", "boxes/", "temporal/"),
    "interpolation": ("backbone/", "decoder/", "temporal/interpolation/"),
    "clip": ("backbone/", "decoder/", "temporal/"),
    "rollout": ("backbone/", "decoder/", "temporal/"),
}
"""Parts of a checkpoint that decide what comes of each kind of job."""

_MAKING = ("making", "backbone")
WITHOUT_EFFECT: dict[Kind, tuple[str, ...]] = {
    "real": (*_MAKING, "minutes", "upsampler_steps", "seed"),
    "decoder": (*_MAKING, "minutes", "upsampler_steps", "seed"),
    "interpolation": ("minutes", "upsampler_steps"),
    "upsampler": (*_MAKING, "minutes"),
    "boxes": ("backbone", "minutes", "upsampler_steps"),
    "clip": ("minutes", "upsampler_steps"),
    "rollout": ("upsampler_steps",),
}
"""Settings that do not touch what comes of each kind of job."""


class KeptResults:
    """A folder of results.

    Args:
        folder: local or s3://.
        manifest: of the checkpoint.
        settings: of the evaluation; where things lie and how many threads work does not count.
        networks: sha256 of everything that measures, by name.
    """

    def __init__(self, folder: str, manifest: Manifest, settings: Settings, networks: dict[str, str]) -> None:
        self.folder, self.manifest = folder, manifest
        same = replace(settings, checkpoint="", weights=Path(), reader=Path(), clip=None, device="", threads=0)
        backbone = None if settings.backbone is None else _folder_digest(Path(settings.backbone))
        self._shared = {**to_json(same), "backbone": backbone, "networks": networks, "version": VERSION}
        self._videos: dict[str, str] = {}

    def key(self, job: Job) -> str:
        """Digest of all that decides the results of a job."""
        path = job.window.path
        if path not in self._videos:
            self._videos[path] = storage.sha256_of(Path(path))
        parts = {part: self.manifest.digest(part) for part in MADE_BY[job.kind]}
        named = to_json(replace(job, window=replace(job.window, path="")))
        shared = {name: value for name, value in self._shared.items() if name not in WITHOUT_EFFECT[job.kind]}
        text = json.dumps([named, self._videos[path], parts, shared], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def find(self, job: Job) -> list[Result] | None:
        """Results of a job, if it has been carried out."""
        uri = storage.join(self.folder, self.key(job))
        return unpack(storage.read_bytes(uri)) if storage.exists(uri) else None

    def keep(self, job: Job, results: Sequence[Result]) -> None:
        """Keep the results of a job."""
        storage.write_atomic(storage.join(self.folder, self.key(job)), pack(results))


def with_kept(
    kept: KeptResults, jobs: Sequence[Job], run: Callable[[Sequence[Job]], Iterable[tuple[int, list[Result]]]]
) -> Iterator[tuple[int, list[Result]]]:
    """Carry out jobs, those with kept results without work; yields the number of each job with its results."""
    todo: list[int] = []
    for number, job in enumerate(jobs):
        found = kept.find(job)
        if found is None:
            todo.append(number)
        else:
            yield number, found
    for place, results in run([jobs[number] for number in todo]) if todo else ():
        kept.keep(jobs[todo[place]], results)
        yield todo[place], results


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")):
        digest.update(f"{path.relative_to(folder)} {storage.sha256_of(path)}\n".encode())
    return digest.hexdigest()

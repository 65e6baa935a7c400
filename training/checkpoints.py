"""Checkpoints of a run: written in the background, committed by one manifest, refused if anything does not match.

    RUN/checkpoints/step-00000120-3f9c/
      weights.safetensors  moments.safetensors  ema.safetensors      trained parameters only, whole, by name
      manifest.json                                                  written last; its presence is the commit

The newest manifest decides where a run goes on. Any worker count and any ZeRO stage loads it as it is.
"""

import hashlib
import json
import logging
import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor

from infra import storage
from training.config import CheckpointConfig

logger = logging.getLogger(__name__)

LAYOUT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A committed checkpoint.

    Attributes:
        uri: its folder.
        step: the next step of the run.
        identity: what the run is: configuration, digests of data and frozen weights.
        progress: the loop's place, and whatever else goes on with the run.
        files: sha256 by file name.
        saved_at: seconds since the epoch.
        metric: validation loss, if there was one; the lowest is kept as the best.
        worker_s: seconds of all workers that went into it.
    """

    uri: str
    step: int
    identity: Mapping[str, Any]
    progress: Mapping[str, Any]
    files: Mapping[str, str]
    saved_at: float
    metric: float | None = None
    worker_s: float = 0.0
    layout: int = LAYOUT

    def load(self) -> dict[str, dict[str, Tensor]]:
        """Read all tensors, by file and name.

        Raises:
            ValueError: naming the first file that is missing or is not the one that was written.
        """
        return {Path(name).stem: self._load_file(name, digest) for name, digest in self.files.items()}

    def _load_file(self, name: str, digest: str) -> dict[str, Tensor]:
        where = f"checkpoint {self.uri}: {name}"
        advice = "delete this checkpoint's folder to go on from the one before"
        try:
            data = storage.read_bytes(storage.join(self.uri, name))
        except FileNotFoundError as err:
            raise ValueError(f"{where} is missing; {advice}") from err
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{where} is not the file that was written (sha256 differs); {advice}")
        try:
            return load_tensors(data)
        except SafetensorError as err:
            raise ValueError(f"{where} is no safetensors file ({err}); {advice}") from err


@dataclass
class CheckpointStore:
    """The checkpoints of one run.

    Attributes:
        uri: folder of the run, local or s3://.
        config: which checkpoints are kept.
        stalled_s: seconds the training thread has waited for writing.
        written_at: when the last checkpoint was committed, by the monotonic clock; first when the run started.
    """

    uri: str
    config: CheckpointConfig
    stalled_s: float = 0.0
    written_at: float = field(default_factory=time.monotonic)
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"), repr=False)
    _pending: Future[None] | None = field(default=None, repr=False)

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        *,
        identity: Mapping[str, Any],
        progress: Mapping[str, Any],
        metric: float | None = None,
        worker_s: float = 0.0,
    ) -> None:
        """Write a checkpoint in the background; waits first for the one before, and hands on its error.

        Args:
            step: the next step.
            tensors: by file ("weights", "moments", "ema") and name; must not change until written, so pass copies.
            identity: see Checkpoint.
            progress: see Checkpoint; copied.
            metric: see Checkpoint.
            worker_s: see Checkpoint.
        """
        self.wait()
        frozen = json.loads(json.dumps({"identity": identity, "progress": progress}))
        figures = {"saved_at": time.time(), "metric": metric, "worker_s": worker_s}
        record = {"layout": LAYOUT, "step": step, **figures, **frozen}
        self._pending = self._writer.submit(self._write, step, tensors, record)

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            OSError: if writing failed, such as on a full disk; earlier checkpoints are untouched.
        """
        started = time.perf_counter()
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()
        self.stalled_s += time.perf_counter() - started

    @property
    def age_s(self) -> float:
        """Seconds since the last checkpoint was committed."""
        return time.monotonic() - self.written_at

    def newest(self) -> Checkpoint | None:
        """Find the committed checkpoint with the highest step; None if there is none.

        Raises:
            ValueError: if its manifest is damaged or of another layout.
        """
        found = self._committed()
        return read_manifest(found[-1]) if found else None

    def _committed(self) -> list[str]:
        """Folders with a manifest, by step."""
        root = storage.join(self.uri, "checkpoints")
        files = storage.list_files(root, suffix=f"/{MANIFEST}")
        return [file.uri.removesuffix(f"/{MANIFEST}") for file in files]

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], record: dict[str, Any]) -> None:
        folder = storage.join(self.uri, "checkpoints", f"step-{step:08d}-{secrets.token_hex(2)}")
        digests = {}
        with tempfile.TemporaryDirectory(prefix="checkpoint-") as temporary:
            for name, values in tensors.items():
                local = Path(temporary) / f"{name}.safetensors"
                save_file({key: value.contiguous() for key, value in values.items()}, local)
                digests[local.name] = storage.sha256_of(local)
                storage.publish(local, storage.join(folder, local.name))
        record = {**record, "files": digests}
        storage.write_atomic(storage.join(folder, MANIFEST), _sealed(record))
        self.written_at = time.monotonic()
        logger.info("checkpoint written uri=%s step=%d", folder, step)
        self._clean()

    def _clean(self) -> None:
        """Delete what retention does not keep: all but the last K, one per interval, and the best."""
        found = self._committed()
        kept = set(found[-self.config.keep_last :])
        records = {uri: read_manifest(uri) for uri in found}
        if self.config.keep_every_hours:
            first_of: dict[int, str] = {}
            for uri, record in records.items():
                first_of.setdefault(int(record.saved_at / (3600 * self.config.keep_every_hours)), uri)
            kept |= set(first_of.values())
        rated = {uri: record.metric for uri, record in records.items() if record.metric is not None}
        if self.config.keep_best and rated:
            kept.add(min(rated, key=lambda uri: rated[uri]))
        for uri in found:
            if uri not in kept:
                # The manifest goes first, so that a kill in between leaves no checkpoint without its files.
                storage.delete(storage.join(uri, MANIFEST))
                storage.delete(uri, recursive=True)


def read_manifest(uri: str) -> Checkpoint:
    """Read the manifest of a checkpoint folder.

    Raises:
        ValueError: if it is missing, damaged, changed or of another layout.
    """
    path = storage.join(uri, MANIFEST)
    advice = "delete this checkpoint's folder to go on from the one before"
    try:
        values = json.loads(storage.read_bytes(path))
        seal = values.pop("seal")
    except FileNotFoundError as err:
        raise ValueError(f"no checkpoint at {uri}: it has no {MANIFEST}") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise ValueError(f"{path} is damaged ({err!r}); {advice}") from err
    if seal != _seal(values):
        raise ValueError(f"{path} was changed after it was written; {advice}")
    if values["layout"] != LAYOUT:
        raise ValueError(f"{path} has layout {values['layout']}; this version reads layout {LAYOUT}")
    return Checkpoint(uri=uri, **values)


def refuse_other_run(found: Mapping[str, Any], own: Mapping[str, Any], uri: str) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        ValueError: naming the first difference, both values and what to do.
    """
    differences = list(_differences("", found, own))
    if differences:
        name, old, new = differences[0]
        more = f" and {len(differences) - 1} more" if len(differences) > 1 else ""
        raise ValueError(
            f"checkpoint {uri} was made with {name}={old!r}, this run has {new!r}{more}; change it back, or start anew "
            "with another --run-dir"
        )


def _differences(name: str, old: Any, new: Any) -> Sequence[tuple[str, Any, Any]]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [
            difference
            for key in keys
            for difference in _differences(f"{name}.{key}".lstrip("."), old.get(key), new.get(key))
        ]
    return [] if old == new else [(name, old, new)]


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _sealed(record: Mapping[str, Any]) -> bytes:
    # Through JSON and back first: the seal is over what a reader will see.
    values = json.loads(json.dumps(record))
    return (json.dumps({**values, "seal": _seal(values)}, indent=1) + "\n").encode()

"""The Ray Data graphs of preprocessing, and their resources; nothing else.

    plan:  sources -> look (decoder processes)
    run:   groups -> decode (decoder processes) -> encode (actor pool with the autoencoder) -> write (one actor)

Between stages a row is one clip: its frames, then its latents. Whole videos never enter the object store.
"""

import logging
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from infra.cli import IncompleteError
from pipelines.shard_format import ShardConfig
from preprocessing.config import MIB, PreprocessConfig, Resources
from preprocessing.look_stage import LookAtSources, pack
from preprocessing.plan import Looked
from preprocessing.sandbox import Sandbox
from preprocessing.sources import Source
from preprocessing.stages import DecodeGroups, EncodeClips, WriteShards
from preprocessing.text import EncodeCaptions

# Sources that one task looks at.
LOOK_BATCH = 8
GROUPS_PER_ENCODER = 8
# The pools are sized by hand; their actors ask for little, so that all of them start on any machine.
_SHARE = 0.05


def look_at_sources(sources: Sequence[Source], config: PreprocessConfig, resources: Resources) -> Iterator[Looked]:
    """Look at every source, in no particular order."""
    _set_context()
    tables = [pack(sources[i : i + LOOK_BATCH]) for i in range(0, len(sources), LOOK_BATCH)]
    looked = ray.data.from_arrow(tables).map_batches(
        LookAtSources,
        fn_constructor_args=(config, _sandbox(resources)),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(_cpus(), len(tables))),
        num_cpus=_SHARE,
    )
    for row in _rows(looked):
        yield pickle.loads(row["packed"])


def encode_groups(
    shards: str,
    groups: Sequence[int],
    config: ShardConfig,
    vae: Path,
    settings: PreprocessConfig,
    resources: Resources,
) -> Iterator[dict[str, Any]]:
    """Work off groups; yields a row (group, clips, rejected) for each as it is committed.

    Raises:
        IncompleteError: if Ray or a machine of it goes down.
    """
    _set_context()
    numbers = pa.array(groups, pa.int32())
    gpus = int(_cluster_has("GPU"))
    decoders = resources.decoders or max(1, _cpus() // 2)
    encoders = resources.encoders or (max(1, int(gpus / resources.gpus_per_encoder)) if gpus else _cpus())
    if not resources.encoders:
        # An encoder takes ten CPU-seconds to start: more than one must have enough to do.
        encoders = min(encoders, max(1, len(groups) // GROUPS_PER_ENCODER))
    device = _device(resources)
    rows = ray.data.from_arrow([pa.table({"group": numbers.slice(i, 1)}) for i in range(len(numbers))])
    clips = rows.map_batches(
        DecodeGroups,
        fn_constructor_args=(shards, settings.faces, _sandbox(resources)),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(decoders, len(numbers)), max_tasks_in_flight_per_actor=1),
        num_cpus=_SHARE,
    )
    latents = clips.map_batches(
        EncodeClips,
        fn_constructor_args=(vae, settings, "cuda" if gpus else "cpu", shards),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=encoders),
        num_cpus=_SHARE,
        **device,
    )
    written = latents.map_batches(
        WriteShards,
        fn_constructor_args=(shards, config, bool(settings.faces)),
        batch_size=None,
        batch_format="pyarrow",
        # One writer sees all clips of a group; latents are a twelfth of the frames.
        compute=ActorPoolStrategy(size=1),
        num_cpus=_SHARE,
    )
    yield from _rows(written)


def encode_captions(shards: str, parts: Sequence[int], folder: Path, resources: Resources) -> Iterator[dict[str, Any]]:
    """Encode parts of the captions; yields a row (part, shortened) for each as it is written.

    Raises:
        IncompleteError: if Ray or a machine of it goes down.
    """
    _set_context()
    device = _device(resources)
    numbers = pa.array(parts, pa.int32())
    rows = ray.data.from_arrow([pa.table({"part": numbers.slice(i, 1)}) for i in range(len(numbers))])
    written = rows.map_batches(
        EncodeCaptions,
        fn_constructor_args=(shards, folder, "cuda" if device else "cpu"),
        batch_size=1,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=min(resources.encoders or _cpus(), len(parts))),
        num_cpus=_SHARE,
        **device,
    )
    yield from _rows(written)


def _rows(dataset: ray.data.Dataset) -> Iterator[dict[str, Any]]:
    try:
        yield from dataset.iter_rows()
    except RayError as err:
        line = next(iter(str(err).strip().splitlines()), type(err).__name__)
        raise IncompleteError(f"Ray stopped: {line}; run the same command again to go on") from err


def _device(resources: Resources) -> dict[str, Any]:
    return {"num_gpus": resources.gpus_per_encoder} if _cluster_has("GPU") else {}


def _sandbox(resources: Resources) -> Sandbox:
    return Sandbox(memory_bytes=resources.decoder_memory_bytes, timeout_s=resources.decoder_timeout_s)


def _set_context() -> None:
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # Frames move on in small blocks: the encoder starts early and memory stays low.
    context.target_max_block_size = 16 * MIB


def _cpus() -> int:
    return max(1, int(_cluster_has("CPU")))


def _cluster_has(resource: str) -> float:
    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return total.get(resource, 0.0)

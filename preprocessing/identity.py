"""What a shard set is made of: its config, and refusing a folder that holds another set."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from infra import storage
from pipelines.shard_format import ShardConfig
from preprocessing.arguments import Job
from preprocessing.config import PreprocessConfig
from preprocessing.encoder import AutoencoderFile
from preprocessing.finish import read_success
from preprocessing.plan import buckets_of
from preprocessing.plan_store import PlanSummary, read_summary
from preprocessing.sources import Source, listing_digest
from preprocessing.text import find_text_encoder, text_encoder_digest

# Libraries whose version can change a byte of a shard.
LIBRARIES = ("av", "diffusers", "numpy", "opencv-python-headless", "pyarrow", "torch", "transformers")
_OWN_FOLDERS = ("plan/", "ledger/", "data/", "captions/", ".tmp-")


def shard_config(job: Job, vae: AutoencoderFile, summary: PlanSummary) -> ShardConfig:
    """Everything that decides the bytes of a job's shards."""
    text_encoder = find_text_encoder(job.checkpoint) if summary.captions else None
    return ShardConfig(
        autoencoder=vae.name,
        autoencoder_digest=vae.digest,
        latent_kind="kl_mean" if job.config.mean_only and vae.kind == "kl_moments" else vae.kind,
        latent_channels=vae.latent_channels,
        downsampling=vae.downsampling,
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor,
        buckets=buckets_of(job.config),
        corpus_digest=summary.corpus_digest,
        preprocessing={
            **json.loads(json.dumps(asdict(job.config))),
            "networks": network_digests(job.config),
            "text_encoder": text_encoder_digest(text_encoder) if text_encoder else "",
            "resize": "cover and cut evenly; area filter to shrink, cubic to grow",
            "frame_rule": "shown nearest, of two the earlier",
            "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        },
    )


def network_digests(config: PreprocessConfig) -> dict[str, str]:
    """sha256 of the networks that a config names, by the field that names them.

    Raises:
        ValueError: if one is missing.
    """
    named = {"cuts.transnet": config.cuts.transnet, "faces": config.faces}
    for field, path in named.items():
        if path and not Path(path).is_file():
            raise ValueError(f"{field}={path!r} is no file on this machine; give the path of the network's weights")
    return {field: storage.sha256_of(Path(path)) for field, path in named.items() if path}


def is_done(job: Job, sources: Sequence[Source], vae: AutoencoderFile) -> bool:
    """Say whether the set is finished; refuse a folder that holds something else.

    Raises:
        ValueError: if `shards` was made from another corpus, config or autoencoder.
    """
    network_digests(job.config)
    summary = read_summary(job.shards)
    if summary is None:
        foreign = storage.list_files(job.shards)
        if foreign and not all(_is_own(file.relative) for file in foreign):
            raise ValueError(f"{job.shards} holds other files, such as {foreign[0].relative}; give an empty folder")
        return False
    _refuse_other(job, listing_digest(list(sources)), summary)
    config_uri = storage.join(job.shards, "config.json")
    if storage.exists(config_uri):
        found = ShardConfig.from_json(storage.read_bytes(config_uri).decode())
        _refuse_other_bytes(job, found, shard_config(job, vae, summary))
    return not job.dry_run and read_success(job.shards) is not None


def _is_own(relative: str) -> bool:
    return relative.startswith(_OWN_FOLDERS) or relative in ("config.json", "job.json")


def _refuse_other(job: Job, listing: str, summary: PlanSummary) -> None:
    if summary.listing_digest != listing:
        raise ValueError(
            f"{job.shards} was planned for another state of the corpus ({summary.corpus}: {summary.sources} sources); "
            "give an empty folder for the new one"
        )
    if summary.config_digest != job.config.digest:
        raise ValueError(f"{job.shards} was planned with another config; see its job.json, or give an empty folder")


def _refuse_other_bytes(job: Job, found: ShardConfig, wanted: ShardConfig) -> None:
    if found.autoencoder_digest != wanted.autoencoder_digest:
        raise ValueError(
            f"{job.shards} was made with another autoencoder ({found.autoencoder}, {found.autoencoder_digest[:12]}) "
            f"than {job.checkpoint} ({wanted.autoencoder_digest[:12]}); give an empty folder"
        )
    if found.preprocessing != wanted.preprocessing:
        differing = [key for key in wanted.preprocessing if found.preprocessing.get(key) != wanted.preprocessing[key]]
        raise ValueError(f"{job.shards} was made with other {', '.join(differing)}; give an empty folder")

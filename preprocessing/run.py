"""`python -m preprocessing plan|run CORPUS SHARDS`: plan a shard set, then encode what the ledger lacks."""

import importlib.metadata
import json
import logging
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from infra import storage
from infra.cli import ExitCode, IncompleteError
from pipelines.shard_format import ShardConfig
from preprocessing.arguments import Job, parse_job, read_job
from preprocessing.config import PreprocessConfig, Resources
from preprocessing.encoder import AutoencoderFile, find_autoencoder
from preprocessing.finish import finish, read_quarantine, read_success
from preprocessing.forecast import show_forecast
from preprocessing.ledger import committed_groups, read_sound_records
from preprocessing.plan import Looked, Plan, buckets_of, make_plan
from preprocessing.plan_store import PlanSummary, read_summary, write_plan
from preprocessing.rejection import Rejection
from preprocessing.sources import Source, find_sources, listing_digest

T = TypeVar("T")

logger = logging.getLogger(__name__)

# Libraries whose version can change a byte of a shard.
LIBRARIES = ("av", "diffusers", "numpy", "opencv-python-headless", "pyarrow", "torch")
# A lost actor takes the clips it held with it; their groups are not committed and are done again.
PASSES = 3


class Engine(Protocol):
    """Who looks at sources and who works off groups: Ray, or anything that composes the same stages."""

    def look_at_sources(
        self, sources: Sequence[Source], config: PreprocessConfig, resources: Resources
    ) -> Iterable[Looked]:
        """Look at every source, in any order."""

    def encode_groups(
        self, shards: str, groups: Sequence[int], config: ShardConfig, vae: Path, precision: str, resources: Resources
    ) -> Iterable[dict[str, Any]]:
        """Commit groups; yields (group, clips, rejected) for each."""


def main_plan(arguments: Sequence[str]) -> ExitCode:
    """Plan only."""
    job = parse_job(arguments, "plan")
    sources, vae = find_sources(job.corpus), find_autoencoder(job.checkpoint)
    _is_done(job, sources, vae)
    with _ray_engine() as engine:
        summary = make_or_read_plan(job, sources, vae, engine)
    show_forecast(summary)
    return ExitCode.DONE_WITH_QUARANTINE if summary.rejected else ExitCode.DONE


def main_run(arguments: Sequence[str]) -> ExitCode:
    """Plan if there is no plan yet, then encode what is missing."""
    job = parse_job(arguments, "run")
    if job.dry_run:
        return main_plan(arguments)
    sources, vae = find_sources(job.corpus), find_autoencoder(job.checkpoint)
    if _is_done(job, sources, vae):
        rejections = read_quarantine(job.shards)
        print(f"nothing to do: {job.shards} is complete{_clause(rejections)}")
        return _code(rejections)
    with _ray_engine() as engine:
        return execute(job, sources, vae, engine)


def main_repair(shards: str, checkpoint: str | None) -> ExitCode:
    """Encode what the ledger of an existing set lacks, with the settings it was made with.

    Raises:
        ValueError: if the set has no job.json, or its autoencoder is gone or another.
    """
    job = read_job(shards, checkpoint)
    vae = find_autoencoder(job.checkpoint)
    summary = read_summary(shards)
    if summary is None:
        raise ValueError(f"{shards} has no plan")
    wanted = _shard_config(job, vae, summary).digest
    if any(record.config_digest != wanted for record in read_sound_records(shards)):
        raise ValueError(
            f"{shards} was encoded with another autoencoder than {job.checkpoint} or with other library versions; "
            "give the autoencoder by --checkpoint, or encode into an empty folder"
        )
    with _ray_engine() as engine:
        return execute(job, (), vae, engine)


def execute(job: Job, sources: Sequence[Source], vae: AutoencoderFile, engine: Engine) -> ExitCode:
    """Plan, encode, finish; every step is skipped if it has been done."""
    summary = make_or_read_plan(job, sources, vae, engine)
    config = _shard_config(job, vae, summary)
    storage.write_atomic(storage.join(job.shards, "config.json"), config.to_json().encode())
    _write_job(job)
    _encode_all(job, summary, config, vae, engine)
    rejections = finish(job.shards, config)
    lost = sum(rejection.clips for rejection in rejections)
    print(f"{summary.clips - lost} clips in {job.shards}{_clause(rejections)}")
    return _code(rejections)


def _is_done(job: Job, sources: Sequence[Source], vae: AutoencoderFile) -> bool:
    """Say whether the set is finished; refuse a folder that holds something else.

    Raises:
        ValueError: if `shards` was made from another corpus, config or autoencoder.
    """
    summary = read_summary(job.shards)
    if summary is None:
        foreign = storage.list_files(job.shards)
        if foreign and not all(_is_own(file.relative) for file in foreign):
            raise ValueError(f"{job.shards} holds other files, such as {foreign[0].relative}; give an empty folder")
        return False
    _refuse_other(job, listing_digest(list(sources)), summary)
    config_uri = storage.join(job.shards, "config.json")
    if storage.exists(config_uri):
        _refuse_other_bytes(job, ShardConfig.from_json(storage.read_bytes(config_uri).decode()), vae, summary)
    return not job.dry_run and read_success(job.shards) is not None


def _is_own(relative: str) -> bool:
    return relative.startswith(("plan/", "ledger/", "data/", ".tmp-")) or relative in ("config.json", "job.json")


def _refuse_other(job: Job, listing: str, summary: PlanSummary) -> None:
    if summary.listing_digest != listing:
        raise ValueError(
            f"{job.shards} was planned for another state of the corpus ({summary.corpus}: {summary.sources} sources); "
            "give an empty folder for the new one"
        )
    if summary.config_digest != job.config.digest:
        raise ValueError(f"{job.shards} was planned with another config; see its job.json, or give an empty folder")


def _refuse_other_bytes(job: Job, found: ShardConfig, vae: AutoencoderFile, summary: PlanSummary) -> None:
    wanted = _shard_config(job, vae, summary)
    if found.autoencoder_digest != wanted.autoencoder_digest:
        raise ValueError(
            f"{job.shards} was made with another autoencoder ({found.autoencoder}, {found.autoencoder_digest[:12]}) "
            f"than {job.checkpoint} ({wanted.autoencoder_digest[:12]}); give an empty folder"
        )
    if found.preprocessing != wanted.preprocessing:
        differing = [key for key in wanted.preprocessing if found.preprocessing.get(key) != wanted.preprocessing[key]]
        raise ValueError(f"{job.shards} was made with other {', '.join(differing)}; give an empty folder")


@contextmanager
def _ray_engine() -> Iterator[Engine]:
    # Ray takes seconds to import; bad arguments and a run with nothing to do need none of it.
    from infra.cluster import connect  # noqa: PLC0415
    from preprocessing import dataset  # noqa: PLC0415

    with connect():
        yield dataset


def make_or_read_plan(job: Job, sources: Sequence[Source], vae: AutoencoderFile, engine: Engine) -> PlanSummary:
    """Read the plan, or make and write it.

    Raises:
        ValueError: if no clip can be cut from the corpus.
    """
    if (summary := read_summary(job.shards)) is not None:
        return summary
    looked = list(_progress(engine.look_at_sources(sources, job.config, job.resources), len(sources), "plan", "source"))
    latent_bytes = {bucket: vae.latent_bytes(bucket, job.config.mean_only) for bucket in buckets_of(job.config)}
    plan = make_plan(looked, job.config, latent_bytes)
    summary = PlanSummary(
        corpus=job.corpus,
        listing_digest=listing_digest(list(sources)),
        corpus_digest=plan.corpus_digest,
        config_digest=job.config.digest,
        sources=len(sources),
        rejected=len(plan.rejections),
        refused=len(plan.refusals),
        clips=len(plan.clips),
        groups=plan.num_groups,
        latent_bytes=sum(latent_bytes[clip.window.bucket] for clip in plan.clips),
        seconds_of_video=sum(clip.window.bucket.num_frames / clip.window.bucket.fps for clip in plan.clips),
    )
    _refuse_empty(job, plan)
    if not job.dry_run:
        write_plan(job.shards, plan, summary)
    return summary


def _refuse_empty(job: Job, plan: Plan) -> None:
    if plan.clips:
        return
    reasons = Counter([rejection.reason for rejection in plan.rejections] + [r.reason for r in plan.refusals])
    known = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "all are shorter than one clip"
    raise ValueError(f"{job.corpus}: no clip can be cut from its {len(plan.sources)} videos: {known}")


def _encode_all(job: Job, summary: PlanSummary, config: ShardConfig, vae: AutoencoderFile, engine: Engine) -> None:
    """Encode until the ledger is full.

    Raises:
        IncompleteError: if groups are missing after PASSES passes.
    """
    for _ in range(PASSES):
        missing = sorted(set(range(summary.groups)) - committed_groups(job.shards))
        if not missing:
            return
        rows = engine.encode_groups(job.shards, missing, config, vae.folder, job.config.precision, job.resources)
        bar = _progress(rows, len(missing), "encode", "group")
        clips = rejected = 0
        for row in bar:
            clips, rejected = clips + row["clips"], rejected + row["rejected"]
            bar.set_postfix(clips=clips, quarantined=rejected)
            logger.info("group committed group=%d clips=%d rejected=%d", row["group"], row["clips"], row["rejected"])
    missing = sorted(set(range(summary.groups)) - committed_groups(job.shards))
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {summary.groups} groups are missing; run the same command again to go on"
        )


def _shard_config(job: Job, vae: AutoencoderFile, summary: PlanSummary) -> ShardConfig:
    kind = "kl_mean" if job.config.mean_only and vae.kind == "kl_moments" else vae.kind
    settings = json.loads(json.dumps(asdict(job.config)))
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return ShardConfig(
        autoencoder=vae.name,
        autoencoder_digest=vae.digest,
        latent_kind=kind,
        latent_channels=vae.latent_channels,
        downsampling=vae.downsampling,
        scaling_factor=vae.scaling_factor,
        shift_factor=vae.shift_factor,
        buckets=buckets_of(job.config),
        corpus_digest=summary.corpus_digest,
        preprocessing={
            **settings,
            "resize": "cover and cut evenly; area filter to shrink, cubic to grow",
            "frame_rule": "shown nearest, of two the earlier",
            "versions": versions,
        },
    )


def _write_job(job: Job) -> None:
    text = json.dumps(asdict(job), indent=1, sort_keys=True) + "\n"
    storage.write_atomic(storage.join(job.shards, "job.json"), text.encode())


def _progress(items: Iterable[T], total: int, title: str, unit: str) -> "tqdm[T]":
    return tqdm(items, total=total, desc=title, unit=unit, disable=None, file=sys.stderr)


def _clause(rejections: Sequence[Rejection]) -> str:
    if not rejections:
        return ""
    reasons = Counter(rejection.reason for rejection in rejections)
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"; quarantined: {listed} (see quarantine.parquet)"


def _code(rejections: Sequence[Rejection]) -> ExitCode:
    return ExitCode.DONE_WITH_QUARANTINE if rejections else ExitCode.DONE

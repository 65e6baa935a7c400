"""`python -m preprocessing plan|run CORPUS SHARDS`: plan a shard set, then encode what the ledger lacks."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from infra import storage
from infra.cli import ExitCode, IncompleteError
from pipelines.shard_format import ShardConfig
from preprocessing.arguments import Job, parse_job, read_job
from preprocessing.config import PreprocessConfig, Resources
from preprocessing.encoder import AutoencoderFile, find_autoencoder
from preprocessing.finish import finish, read_quarantine
from preprocessing.forecast import encoding_seconds, here, show_forecast
from preprocessing.identity import is_done, shard_config
from preprocessing.ledger import committed_groups, read_sound_records
from preprocessing.plan import Looked, Plan, buckets_of, make_plan
from preprocessing.plan_store import PlanSummary, read_summary, write_plan
from preprocessing.progress import Progress, Report, bar, serve_prometheus
from preprocessing.rejection import Rejection
from preprocessing.sealed import seal
from preprocessing.sources import Source, find_sources, listing_digest
from preprocessing.text import distinct_captions, find_text_encoder, part_numbers, written_parts

logger = logging.getLogger(__name__)

# A lost actor takes the clips it held with it; their groups are not committed and are done again.
PASSES = 3


class Engine(Protocol):
    """Who looks at sources and who works off groups: Ray, or anything that composes the same stages."""

    def look_at_sources(
        self, sources: Sequence[Source], config: PreprocessConfig, resources: Resources
    ) -> Iterable[Looked]:
        """Look at every source, in any order."""

    def encode_groups(
        self,
        shards: str,
        groups: Sequence[int],
        config: ShardConfig,
        vae: Path,
        settings: PreprocessConfig,
        resources: Resources,
    ) -> Iterable[dict[str, Any]]:
        """Commit groups; yields (group, clips, rejected) for each."""

    def encode_captions(
        self, shards: str, parts: Sequence[int], folder: Path, resources: Resources
    ) -> Iterable[dict[str, Any]]:
        """Write parts of the captions; yields (part, shortened) for each."""


def main_plan(arguments: Sequence[str]) -> ExitCode:
    """Plan only."""
    job = parse_job(arguments, "plan")
    sources, vae = find_sources(job.corpus), find_autoencoder(job.checkpoint)
    is_done(job, sources, vae)
    with _ray_engine() as engine:
        summary = make_or_read_plan(job, sources, vae, engine)
    counts = [(bucket, summary.buckets.get(bucket.name, 0)) for bucket in buckets_of(job.config)]
    show_forecast(summary, encoding_seconds([one for one in counts if one[1]], vae, job.config), here())
    return ExitCode.DONE_WITH_QUARANTINE if summary.rejected else ExitCode.DONE


def main_run(arguments: Sequence[str]) -> ExitCode:
    """Plan if there is no plan yet, then encode what is missing."""
    job = parse_job(arguments, "run")
    if job.dry_run:
        return main_plan(arguments)
    sources, vae = find_sources(job.corpus), find_autoencoder(job.checkpoint)
    if is_done(job, sources, vae):
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
    wanted = shard_config(job, vae, summary).digest
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
    config = shard_config(job, vae, summary)
    storage.write_atomic(storage.join(job.shards, "config.json"), config.to_json().encode())
    storage.write_atomic(storage.join(job.shards, "job.json"), seal(asdict(job)))
    with _recorded(job, summary) as progress:
        _encode_all(job, summary, config, vae, engine, progress)
        _encode_captions(job, config, engine)
    rejections = finish(job.shards, config)
    lost = sum(rejection.clips for rejection in rejections)
    print(f"{summary.clips - lost} clips in {job.shards}{_clause(rejections)}")
    return _code(rejections)


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
    looked = list(bar(engine.look_at_sources(sources, job.config, job.resources), len(sources), "plan", "source"))
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
        shards=len({(clip.group, clip.window.bucket) for clip in plan.clips}),
        captions=len({clip.caption for clip in plan.clips} - {""}),
        buckets=dict(Counter(clip.window.bucket.name for clip in plan.clips)),
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


@contextmanager
def _recorded(job: Job, summary: PlanSummary) -> Iterator[Progress]:
    """Progress that MLflow and Prometheus see if the job says so."""
    reports: list[Report] = []
    status = "FAILED"
    close = None
    if job.track:
        # Seconds to import, and not wanted by default.
        from infra.tracking import Run  # noqa: PLC0415

        run = Run("preprocessing", job.shards)
        run.parameters(asdict(job.config) | {"corpus": job.corpus, "shards": job.shards, "checkpoint": job.checkpoint})
        run.tags({"corpus_digest": summary.corpus_digest, "config_digest": summary.config_digest})
        reports, close = [run.metrics], run.close
    progress = Progress(summary.groups, len(committed_groups(job.shards)), reports)
    if job.metrics_port:
        serve_prometheus(progress, job.metrics_port)
    try:
        yield progress
        progress.tell()
        status = "FINISHED"
    finally:
        if close:
            close(status)


def _encode_all(
    job: Job, summary: PlanSummary, config: ShardConfig, vae: AutoencoderFile, engine: Engine, progress: Progress
) -> None:
    """Encode until the ledger is full.

    Raises:
        IncompleteError: if groups are missing after PASSES passes.
    """
    for _ in range(PASSES):
        missing = sorted(set(range(summary.groups)) - committed_groups(job.shards))
        if not missing:
            return
        rows = engine.encode_groups(job.shards, missing, config, vae.folder, job.config, job.resources)
        for _ in progress.follow(rows):
            pass
    missing = sorted(set(range(summary.groups)) - committed_groups(job.shards))
    if missing:
        raise IncompleteError(
            f"{len(missing)} of {summary.groups} groups are missing; run the same command again to go on"
        )


def _encode_captions(job: Job, config: ShardConfig, engine: Engine) -> None:
    """Encode the parts of the captions that are not there.

    Raises:
        IncompleteError: if some are missing afterwards.
    """
    folder = find_text_encoder(job.checkpoint)
    if folder is None or not config.preprocessing["text_encoder"]:
        return
    wanted = part_numbers(distinct_captions(job.shards))
    missing = sorted(wanted - written_parts(job.shards).keys())
    if missing:
        rows = engine.encode_captions(job.shards, missing, folder, job.resources)
        shortened = sum(row["shortened"] for row in bar(rows, len(missing), "captions", "part"))
        if shortened:
            logger.warning("captions longer than the text encoder takes were shortened count=%d", shortened)
    if wanted - written_parts(job.shards).keys():
        raise IncompleteError("some captions are not encoded; run the same command again to go on")


def _clause(rejections: Sequence[Rejection]) -> str:
    if not rejections:
        return ""
    reasons = Counter(rejection.reason for rejection in rejections)
    listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    return f"; quarantined: {listed} (see quarantine.parquet)"


def _code(rejections: Sequence[Rejection]) -> ExitCode:
    return ExitCode.DONE_WITH_QUARANTINE if rejections else ExitCode.DONE

"""`python -m preprocessing card SHARDS`: card.md, stats.json and a sheet of frames; every clip is accounted for."""

import hashlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import tyro

from infra import storage
from infra.cli import ExitCode, parse
from pipelines.shards import ShardSet, open_shards
from pipelines.tensors import VideoFrames
from pipelines.video_decode import VideoError
from pipelines.video_io import contact_sheet, read_clip
from preprocessing.finish import read_quarantine
from preprocessing.plan import PlannedClip
from preprocessing.plan_store import PlanReader, PlanSummary, read_refusals, read_summary, to_info
from preprocessing.sealed import seal
from preprocessing.sources import local_copy

logger = logging.getLogger(__name__)

SHEET_CLIPS = 6
_BARS = 8
_LONGEST_BAR = 24


@dataclass(frozen=True, kw_only=True)
class Card:
    """Describe a finished shard set: card.md, stats.json, card.png beside its data.

    Attributes:
        shards: folder or s3:// prefix.
    """

    shards: Annotated[str, tyro.conf.Positional]


def main(arguments: Sequence[str]) -> ExitCode:
    """Write the card."""
    shards = parse(Card, arguments, program="python -m preprocessing card").shards
    stats = collect(shards)
    sheet = _sheet(shards)
    files = {"card.md": render(stats, has_sheet=bool(sheet)).encode(), **({"card.png": sheet} if sheet else {})}
    for name, content in files.items():
        storage.write_atomic(storage.join(shards, name), content)
    if not sheet:
        storage.delete(storage.join(shards, "card.png"))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    storage.write_atomic(storage.join(shards, "stats.json"), seal({**stats, "files": digests}))
    print(f"wrote card.md, stats.json{' and card.png' if sheet else ''} to {shards}")
    return ExitCode.DONE


def collect(shards: str) -> dict[str, Any]:
    """Count everything.

    Raises:
        ValueError: if the set is unfinished, or a source or clip is not accounted for.
    """
    summary, written = read_summary(shards), open_shards(shards)
    if summary is None:
        raise ValueError(f"{shards} has no plan")
    plan = PlanReader(shards)
    sources = plan.sources()
    quarantine, refusals = read_quarantine(shards), read_refusals(shards)
    clips = list(plan.all_clips())
    planned = Counter(clip.source for clip in clips)
    whole = Counter(r.reason for r in refusals if not r.clip_id)
    unusable = Counter(r.reason for r in quarantine if not r.clip_id)
    stats = {
        "sources": {
            "found": len(sources),
            "planned": len(planned),
            "left out": dict(whole),
            "unusable": dict(unusable),
            "without clips": len(sources) - len(planned) - whole.total() - unusable.total(),
        },
        "clips": {
            "cut": summary.clips + sum(bool(r.clip_id) for r in refusals),
            "left out": dict(Counter(r.reason for r in refusals if r.clip_id)),
            "planned": summary.clips,
            "written": len(written),
            "quarantined": dict(Counter(f"{r.stage}: {r.reason}" for r in quarantine if r.clip_id)),
        },
        "licences": dict(Counter(clip.licence or "unknown" for clip in clips)),
        "codecs": dict(Counter(f"{row['codec']} {row['pixel_format']}" for row in sources if row["name"] in planned)),
        "histograms": _histograms(sources, clips, planned),
        **_describe(written, summary),
    }
    _check_sums(stats)
    return stats


def render(stats: dict[str, Any], *, has_sheet: bool = False) -> str:
    """The card as Markdown."""
    clips, sources = stats["clips"], stats["sources"]
    lines = ["# Latent shards", "", f"Digest `{stats['digest']}`, corpus `{stats['corpus digest']}`.", ""]
    lines += ["![frames of some clips](card.png)", ""] if has_sheet else []
    lines += ["| sources | |", "| --- | ---: |", f"| found | {sources['found']} |"]
    lines += [f"| left out: {reason} | {count} |" for reason, count in sorted(sources["left out"].items())]
    lines += [f"| unusable: {reason} | {count} |" for reason, count in sorted(sources["unusable"].items())]
    lines += [f"| without clips | {sources['without clips']} |", f"| **planned** | **{sources['planned']}** |", ""]
    lines += ["| clips | |", "| --- | ---: |", f"| cut | {clips['cut']} |"]
    lines += [f"| left out: {reason} | {count} |" for reason, count in sorted(clips["left out"].items())]
    lines += [f"| planned | {clips['planned']} |"]
    lines += [f"| quarantined: {reason} | {count} |" for reason, count in sorted(clips["quarantined"].items())]
    lines += [f"| **written** | **{clips['written']}** |", ""]
    for title in ("buckets", "licences", "codecs", "night", "crowdedness", "autoencoder", "privacy"):
        lines += [f"| {title} | |", "| --- | ---: |"]
        lines += [f"| {name} | {value} |" for name, value in stats[title].items()]
        lines.append("")
    for title, histogram in stats["histograms"].items():
        lines += [f"{title}:", "", "```", *_bars(histogram), "```", ""]
    return "\n".join(lines) + "\n"


def _histograms(
    sources: Sequence[dict[str, Any]], clips: Sequence[PlannedClip], planned: Counter[str]
) -> dict[str, dict[str, int]]:
    """Counts over equal steps: of sources, of what was measured, and of labels that are numbers."""
    values: dict[str, list[float]] = {
        "seconds of a source": [row["duration_s"] for row in sources if row["name"] in planned],
        "clips of a source": [float(count) for count in planned.values()],
    }
    for clip in clips:
        for name, value in [*clip.scores.items(), *clip.labels.items()]:
            values.setdefault(name, []).append(value)
    return {name: _histogram(own) for name, own in values.items() if own}


def _histogram(values: Sequence[float]) -> dict[str, int]:
    counts, edges = np.histogram(values, bins=1 if min(values) == max(values) else _BARS)
    return {f"{low:.4g} to {high:.4g}": int(n) for n, low, high in zip(counts, edges, edges[1:], strict=False)}


def _bars(histogram: dict[str, int]) -> list[str]:
    most, width = max(histogram.values()), max(map(len, histogram))
    return [
        f"{name:>{width}}  {'#' * round(_LONGEST_BAR * n / most):<{_LONGEST_BAR}} {n}" for name, n in histogram.items()
    ]


def _describe(written: ShardSet, summary: PlanSummary) -> dict[str, Any]:
    labels = list(written.labels.values())
    crowded = Counter(label.crowdedness for label in labels)
    config = asdict(written.config)
    return {
        "digest": written.digest,
        "corpus digest": summary.corpus_digest,
        "hours": round(summary.seconds_of_video / 3600, 4),
        "bytes": sum(file.size_bytes for file in written.files),
        "buckets": {bucket.name: len(refs) for bucket, refs in written.buckets.items()},
        "night": _named(Counter(label.night for label in labels)),
        "crowdedness": {str(key): crowded[key] for key in sorted(crowded, key=lambda k: (k is None, k))},
        "captions": len({label.caption for label in labels}),
        "autoencoder": {
            "name": config["autoencoder"],
            "digest": config["autoencoder_digest"],
            "latents": f"{config['latent_kind']}, {config['latent_channels']} channels, fp16",
            "scale": config["scaling_factor"],
        },
        "privacy": {"faces blurred": "yes" if config["preprocessing"].get("faces") else "no"},
        "preprocessing": config["preprocessing"],
    }


def _named(counts: Counter[int | None]) -> dict[str, int]:
    names = {0: "day", 1: "night", None: "unknown"}
    return {name: counts[key] for key, name in names.items() if counts[key]}


def _check_sums(stats: dict[str, Any]) -> None:
    sources, clips = stats["sources"], stats["clips"]
    left = clips["planned"] - clips["written"] - sum(clips["quarantined"].values())
    if left or sources["without clips"] < 0:
        raise ValueError(
            f"{left} clips and {min(sources['without clips'], 0)} sources are not accounted for; run verify"
        )


def _sheet(shards: str) -> bytes | None:
    """Frames of some planned clips, one a row, from the sources if they are still there."""
    plan = PlanReader(shards)
    by_name = {row["name"]: row for row in plan.sources() if not row["reason"]}
    rows: list[VideoFrames] = []
    seen: set[str] = set()
    for clip in plan.all_clips():
        if clip.source in seen or len(rows) == SHEET_CLIPS:
            continue
        seen.add(clip.source)
        info, bucket = to_info(by_name[clip.source]), clip.window.bucket
        try:
            with local_copy(by_name[clip.source]["uri"]) as path:
                start = clip.window.start - info.start
                frames = read_clip(
                    str(path), num_frames=bucket.num_frames, fps=bucket.fps, start_s=start, size=(64, 128), info=info
                )
        except (OSError, VideoError) as err:
            logger.warning("no frames for the card source=%s error=%s", clip.source, err)
            continue
        rows.append(frames)
    return contact_sheet(rows) if rows else None

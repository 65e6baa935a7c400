"""The plan: every clip of a corpus with its id, its frames and its place, fixed before anything is encoded.

Pure functions: what they return depends on the sources' content and the config alone, not on the order of listing.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pipelines.shard_format import Bucket
from preprocessing.config import PreprocessConfig
from preprocessing.labels import Boxes, BoxLabels, crop_boxes, crowdedness
from preprocessing.looks import Sight
from preprocessing.measure import duplicates, refusal
from preprocessing.rejection import Rejection
from preprocessing.sources import Source
from preprocessing.windows import Window, choose_size, clip_id, cut_windows, upscale


@dataclass(frozen=True, kw_only=True)
class Looked:
    """A source that has been looked at: what was seen, or why it cannot be used."""

    source: Source
    sight: Sight | None = None
    rejection: Rejection | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedClip:
    """One clip to be encoded.

    Attributes:
        clip_id: hash of source content, frames, rate and size.
        source: name of the source.
        window: which frames, and the bucket.
        group: unit of work and of commit; a group has one shard per bucket.
        slot: row within the group's shard of this bucket.
        caption, night, crowdedness, labels, licence, boxes: see pipelines.shard_format.LatentClip.
        scores: see preprocessing.measure; empty if nothing was measured.
    """

    clip_id: str
    source: str
    window: Window
    group: int = -1
    slot: int = -1
    caption: str = ""
    night: int | None = None
    crowdedness: int | None = None
    labels: Mapping[str, float] = field(default_factory=dict)
    licence: str | None = None
    boxes: Boxes = ()
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A clip or a source left out on purpose: reason, score, and how many clips that cost."""

    source: str
    clip_id: str
    reason: str
    score: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it, in the order in which it is worked off."""

    sources: tuple[Looked, ...]
    clips: tuple[PlannedClip, ...]
    refusals: tuple[Refusal, ...]
    num_groups: int

    @property
    def rejections(self) -> tuple[Rejection, ...]:
        """Sources that could not be read."""
        return tuple(looked.rejection for looked in self.sources if looked.rejection)

    @property
    def corpus_digest(self) -> str:
        """Identify the content that is encoded."""
        lines = sorted(f"{one.source.name} {one.sight.digest if one.sight else ''}" for one in self.sources)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def make_plan(
    looked: Iterable[Looked], config: PreprocessConfig, latent_bytes: Mapping[Bucket, int] | None = None
) -> Plan:
    """Plan all clips of a corpus.

    Args:
        looked: the sources, in any order.
        config: what to cut.
        latent_bytes: bytes of one stored clip by bucket, if known; else estimated for 8 channels and a factor of 8.
    """
    sources = tuple(sorted(looked, key=lambda one: one.source.name))
    refusals: list[Refusal] = []
    labels = BoxLabels()
    planned = [_clips_of(source, sight, config, labels) for source, sight in _usable(sources, config, refusals)]
    if config.filters.measure:
        planned = _filtered(planned, {one.source.name: one.sight for one in sources if one.sight}, config, refusals)
    planned = sorted((clips for clips in planned if clips), key=lambda clips: _rank(config.seed, clips))
    clips, num_groups = _deal(planned, config, latent_bytes or {})
    return Plan(sources=sources, clips=clips, refusals=tuple(refusals), num_groups=num_groups)


def buckets_of(config: PreprocessConfig) -> tuple[Bucket, ...]:
    """All forms that clips of this config can have."""
    return tuple(
        Bucket(num_frames=form.num_frames, height=height, width=width, rate=str(form.rate))
        for form in config.clips
        for height, width in config.sizes
    )


def _usable(
    sources: Sequence[Looked], config: PreprocessConfig, refusals: list[Refusal]
) -> Iterator[tuple[Source, Sight]]:
    seen: dict[str, str] = {}
    for one in sources:
        if one.sight is None:
            continue
        info, digest = one.sight.info, one.sight.digest
        factor = upscale(info, choose_size(info, config.sizes))
        reason, score = "", 0.0
        if not one.source.consent:
            reason = "no_consent"
        elif digest in seen:
            reason = "same_file"
        elif factor > config.filters.max_upscale:
            reason, score = "too_small", factor
        if reason:
            refusals.append(Refusal(source=one.source.name, clip_id="", reason=reason, score=score))
            continue
        seen[digest] = one.source.name
        yield one.source, one.sight


def _clips_of(source: Source, sight: Sight, config: PreprocessConfig, labels: BoxLabels) -> list[PlannedClip]:
    info = sight.info
    size = choose_size(info, config.sizes)
    boxes = labels.of(source.uri)
    clips = []
    for form in config.clips:
        for window in cut_windows(info, sight.shots, form, size):
            times = [time * info.time_base - info.start for time in window.pts]
            own = crop_boxes(boxes.at(times), (info.height, info.width), size) if boxes else ()
            clips.append(
                PlannedClip(
                    clip_id=clip_id(sight.digest, window),
                    source=source.name,
                    window=window,
                    caption=source.caption,
                    night=source.night,
                    crowdedness=crowdedness(own) if own else source.crowdedness,
                    labels=source.labels,
                    licence=source.licence,
                    boxes=own,
                    scores=sight.scores.get(window.pts, {}),
                )
            )
    clips.sort(key=lambda clip: (clip.window.start, clip.window.bucket))
    return clips


def _filtered(
    planned: Sequence[Sequence[PlannedClip]],
    sights: Mapping[str, Sight],
    config: PreprocessConfig,
    refusals: list[Refusal],
) -> list[list[PlannedClip]]:
    """Leave out clips by their scores, then those that look like a clip of an earlier source."""
    kept: list[list[PlannedClip]] = []
    for clips in planned:
        kept.append([])
        for clip in clips:
            refused = refusal(clip.scores, config.filters)
            if refused:
                refusals.append(Refusal(source=clip.source, clip_id=clip.clip_id, reason=refused[0], score=refused[1]))
            else:
                kept[-1].append(clip)
    flat = [clip for clips in kept for clip in clips]
    hashes = [sights[clip.source].hashes[clip.window.pts] for clip in flat]
    twins = duplicates(hashes, [clip.source for clip in flat], config.filters.max_duplicate_bits)
    for i, (_, bits) in twins.items():
        refusals.append(Refusal(source=flat[i].source, clip_id=flat[i].clip_id, reason="duplicate", score=bits))
    doubled = {flat[i].clip_id for i in twins}
    return [[clip for clip in clips if clip.clip_id not in doubled] for clips in kept]


def _rank(seed: int, clips: Sequence[PlannedClip]) -> str:
    """Place of a source in the seeded permutation; depends on nothing but its own first clip."""
    return hashlib.sha256(f"{seed} {clips[0].clip_id}".encode()).hexdigest() if clips else ""


def _deal(
    planned: Sequence[Sequence[PlannedClip]], config: PreprocessConfig, latent_bytes: Mapping[Bucket, int]
) -> tuple[tuple[PlannedClip, ...], int]:
    """Give each clip its group and slot: whole sources, in order, until a group is full; larger sources are split."""
    total = sum(_bytes(clip, latent_bytes) for clips in planned for clip in clips)
    limit = max(min(config.shard_bytes, -(-total // config.min_groups)), 1)
    placed: list[PlannedClip] = []
    group, filled = 0, 0
    slots: dict[Bucket, int] = {}
    for clips in planned:
        size = sum(_bytes(clip, latent_bytes) for clip in clips)
        if filled and filled + size > limit:
            group, filled, slots = group + 1, 0, {}
        for clip in clips:
            if filled >= limit and size > limit:
                group, filled, slots = group + 1, 0, {}
            bucket = clip.window.bucket
            placed.append(replace(clip, group=group, slot=slots.get(bucket, 0)))
            slots[bucket] = slots.get(bucket, 0) + 1
            filled += _bytes(clip, latent_bytes)
    return tuple(placed), group + 1 if placed else 0


def _bytes(clip: PlannedClip, latent_bytes: Mapping[Bucket, int]) -> int:
    bucket = clip.window.bucket
    return latent_bytes.get(bucket, bucket.num_frames * 16 * (bucket.height // 8) * (bucket.width // 8))

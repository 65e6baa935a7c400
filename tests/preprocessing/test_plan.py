import dataclasses
import random
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.video_decode import VideoInfo
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.looks import Sight
from preprocessing.plan import Looked, make_plan
from preprocessing.plan_store import PlanReader, PlanSummary, read_refusals, read_summary, to_info, write_plan
from preprocessing.rejection import Rejection
from preprocessing.sources import Source

CONFIG = PreprocessConfig(
    clips=(ClipForm(num_frames=4, fps="4"), ClipForm(num_frames=5, fps="8", stride_s=1.0)), sizes=((32, 64), (64, 32))
)


def looked(name: str, frames: int, *, size: tuple[int, int] = (36, 64), digest: str = "", **source: object) -> Looked:
    info = VideoInfo(
        pts=tuple(i * 100 for i in range(frames)), key_pts=tuple(range(0, frames * 100, 1000)),
        time_base=Fraction(1, 1000), height=size[0], width=size[1], rotation=0,
        codec="h264", pixel_format="yuv420p", has_audio=False,
    )  # fmt: skip
    return Looked(
        source=Source(uri=f"/corpus/{name}", name=name, size_bytes=frames, **source),  # type: ignore[arg-type]
        sight=Sight(digest=digest or f"digest of {name}", info=info, shots=((info.start, info.end),)),
    )


def refused(name: str) -> Looked:
    source = Source(uri=name, name=name, size_bytes=3)
    return Looked(
        source=source, rejection=Rejection(source=name, clip_id="", stage="probe", reason="open", message="no")
    )


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=12),
    groups=st.integers(1, 9),
    limit=st.sampled_from([10_000, 60_000, 10**9]),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_clip_has_one_place_and_the_plan_does_not_depend_on_listing_order(
    lengths: list[int], groups: int, limit: int, shuffle: random.Random
) -> None:
    config = dataclasses.replace(CONFIG, min_groups=groups, shard_bytes=limit)
    sources = [looked(f"{i}.mp4", length) for i, length in enumerate(lengths)]
    plan = make_plan(sources, config)
    other = list(sources)
    shuffle.shuffle(other)
    assert make_plan(other, config) == plan
    assert len({clip.clip_id for clip in plan.clips}) == len(plan.clips)
    # Slots of each shard are 0, 1, 2 ... and groups are numbered without gaps.
    shards: dict[tuple[int, str], list[int]] = {}
    for clip in plan.clips:
        shards.setdefault((clip.group, clip.window.bucket.name), []).append(clip.slot)
    assert all(slots == list(range(len(slots))) for slots in shards.values())
    assert sorted({clip.group for clip in plan.clips}) == list(range(plan.num_groups))
    # A source lies in one group, unless it is larger than a group may be.
    for name in {clip.source for clip in plan.clips}:
        own = [clip for clip in plan.clips if clip.source == name]
        if sum(clip.window.bucket.num_frames * 16 * 32 for clip in own) <= min(
            limit, -(-sum(clip.window.bucket.num_frames * 16 * 32 for clip in plan.clips) // groups)
        ):
            assert len({clip.group for clip in own}) == 1


def test_clips_are_the_same_whatever_else_is_in_the_corpus() -> None:
    alone = {clip.clip_id for clip in make_plan([looked("a.mp4", 90)], CONFIG).clips}
    among = {clip.clip_id for clip in make_plan([looked("b.mp4", 70), looked("a.mp4", 90)], CONFIG).clips}
    assert alone < among


def test_each_refusal_has_a_row() -> None:
    plan = make_plan(
        [
            looked("a.mp4", 60),
            looked("b.mp4", 60, digest="digest of a.mp4"),
            looked("c.mp4", 60, consent=False),
            looked("d.mp4", 60, size=(8, 16)),
            refused("e.mp4"),
        ],
        CONFIG,
    )
    assert {(r.source, r.reason) for r in plan.refusals} == {
        ("b.mp4", "same_file"),
        ("c.mp4", "no_consent"),
        ("d.mp4", "too_small"),
    }
    assert [r.source for r in plan.rejections] == ["e.mp4"]
    assert {clip.source for clip in plan.clips} == {"a.mp4"}


def test_the_size_follows_each_source() -> None:
    plan = make_plan([looked("wide.mp4", 40), looked("tall.mp4", 40, size=(64, 36))], CONFIG)
    assert {(c.source, c.window.bucket.height) for c in plan.clips} == {("wide.mp4", 32), ("tall.mp4", 64)}


def test_a_stored_plan_reads_back(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, min_groups=3)
    own = looked("a.mp4", 60, caption="a road", night=1, licence="MIT", labels={"fog": 0.25})
    plan = make_plan([own, looked("b.mp4", 99), refused("c.mp4"), looked("d.mp4", 60, consent=False)], config)
    summary = PlanSummary(
        corpus="/corpus", listing_digest="l", corpus_digest=plan.corpus_digest, config_digest=config.digest, sources=4,
        rejected=1, refused=1, shards=3, captions=1, buckets={},
        clips=len(plan.clips), groups=plan.num_groups, latent_bytes=1, seconds_of_video=2.0,
    )  # fmt: skip
    assert read_summary(str(tmp_path)) is None
    write_plan(str(tmp_path), plan, summary)
    stored = read_summary(str(tmp_path))
    assert stored is not None
    assert dataclasses.replace(stored, files={}) == summary
    reader = PlanReader(str(tmp_path))
    by_place = sorted(plan.clips, key=lambda c: (c.group, c.window.bucket.name, c.slot))
    assert list(reader.all_clips()) == by_place
    assert read_refusals(str(tmp_path)) == list(plan.refusals)
    [row] = reader.sources(["a.mp4"])
    assert own.sight is not None
    assert to_info(row) == own.sight.info
    assert [row["reason"] for row in reader.sources()] == [None, None, "open", None]


def test_config_digest_follows_the_config() -> None:
    assert CONFIG.digest != dataclasses.replace(CONFIG, seed=1).digest
    with pytest.raises(ValueError, match="precision"):
        dataclasses.replace(CONFIG, precision="int8")

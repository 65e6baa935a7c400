import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines import shard_format
from pipelines.shard_format import Bucket, LatentClip, ShardConfig
from pipelines.shard_order import epoch_order
from pipelines.shard_writer import write_shards
from pipelines.shards import ClipRef, open_shards

SLOW = Bucket(num_frames=3, height=40, width=56, rate="2")
FAST = Bucket(num_frames=6, height=24, width=32, rate="15/2")


def make_config(**changes: Any) -> ShardConfig:
    config = ShardConfig(
        autoencoder="tiny",
        autoencoder_digest="ab" * 32,
        latent_kind="kl_moments",
        latent_channels=4,
        downsampling=8,
        scaling_factor=0.9,
        shift_factor=0.1,
        buckets=(SLOW, FAST),
    )
    return dataclasses.replace(config, **changes)


def make_clip(name: str, bucket: Bucket, **labels: Any) -> LatentClip:
    rng = np.random.default_rng(list(name.encode()))
    shape = (bucket.num_frames, 8, bucket.height // 8, bucket.width // 8)
    return LatentClip(
        clip_id=name, moments=rng.normal(size=shape).astype(np.float16), fps=bucket.fps, source=f"{name}.mp4", **labels
    )


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_format, "ROW_GROUP_BYTES", 6000)


@pytest.fixture
def folder(tmp_path: Path, small_groups: None) -> Path:
    slow = [[make_clip(f"slow-{s}-{i}", SLOW, night=i % 2, crowdedness=i) for i in range(7)] for s in range(3)]
    boxes = tuple(((0.1, 0.2, 0.3, 0.4),) * i for i in range(6))
    fast = [[make_clip("fast-0", FAST, boxes=boxes, caption="a road", labels={"fog": 0.5}, times_s=(0.0, 0.5))]]
    write_shards(tmp_path, make_config(), {SLOW: slow, FAST: fast})
    return tmp_path


def test_read_returns_the_clips_written_in_the_order_asked(folder: Path) -> None:
    shards = open_shards(str(folder))
    refs = list(reversed(shards.buckets[SLOW]))
    clips = shards.read(refs)
    assert [clip.clip_id for clip in clips] == [f"slow-{s}-{i}" for s in (2, 1, 0) for i in range(6, -1, -1)]
    for clip in clips:
        np.testing.assert_array_equal(clip.moments, make_clip(clip.clip_id, SLOW).moments)
        assert clip.fps == 2.0


def test_read_keeps_every_label(folder: Path) -> None:
    shards = open_shards(str(folder))
    [clip] = shards.read(shards.buckets[FAST])
    assert clip.caption == "a road"
    assert clip.night is None
    assert [len(frame) for frame in clip.boxes] == [0, 1, 2, 3, 4, 5]
    assert clip.boxes[3][2] == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert clip.labels == {"fog": 0.5}
    assert clip.times_s == (0.0, 0.5)
    assert clip.source == "fast-0.mp4"
    assert shards.labels[shards.buckets[SLOW][3]].crowdedness == 3


def test_find_locates_a_clip_by_id(folder: Path) -> None:
    shards = open_shards(str(folder))
    assert shards.read([shards.find("slow-1-5")])[0].clip_id == "slow-1-5"
    with pytest.raises(ValueError, match="slow-9-9"):
        shards.find("slow-9-9")


def test_shard_bytes_are_the_same_twice_and_pages_are_checked(folder: Path, tmp_path: Path) -> None:
    clips = [make_clip(f"c{i}", SLOW) for i in range(5)]
    content = shard_format.to_parquet(clips, make_config(), SLOW)
    assert content == shard_format.to_parquet(clips, make_config(), SLOW)
    shards = open_shards(str(folder))
    path = folder / shards.files[shards.buckets[SLOW][0].shard].path
    damaged = bytearray(path.read_bytes())
    at = bytes(damaged).find(make_clip("slow-0-1", SLOW).moments.tobytes())
    damaged[at + 100] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=path.name):
        open_shards(str(folder)).read(shards.buckets[SLOW][:2])


def test_open_refuses_missing_unfinished_foreign_and_empty_sets(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        open_shards(str(tmp_path / "nothing"))
    success = (folder / "_SUCCESS.json").read_text()
    (folder / "_SUCCESS.json").unlink()
    with pytest.raises(ValueError, match="unfinished"):
        open_shards(str(folder))
    (folder / "_SUCCESS.json").write_text(success)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"layout": 1', '"layout": 99'))
    with pytest.raises(ValueError, match="99"):
        open_shards(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    write_shards(empty, make_config(), {})
    with pytest.raises(ValueError, match="no clips"):
        open_shards(str(empty))


def test_config_round_trips_and_its_digest_follows_the_content() -> None:
    config = make_config(preprocessing={"crop": "centre", "seed": 3})
    assert ShardConfig.from_json(config.to_json()) == config
    assert make_config().digest != make_config(scaling_factor=0.91).digest
    assert make_config().rates == ("2", "15/2")
    with pytest.raises(ValueError, match="latent_kind"):
        make_config(latent_kind="png")


def test_bucket_name_round_trips() -> None:
    assert Bucket.parse(FAST.name) == FAST
    assert FAST.fps == 7.5
    with pytest.raises(ValueError, match="positive"):
        Bucket(num_frames=0, height=8, width=8, rate="1")


def test_kinds_without_variance_store_half_and_read_back_nearly_certain(tmp_path: Path) -> None:
    config = make_config(latent_kind="vq_prequant", buckets=(SLOW,))
    clip = make_clip("vq", SLOW)
    write_shards(tmp_path, config, {SLOW: [[clip]]})
    shards = open_shards(str(tmp_path))
    [read] = shards.read(shards.buckets[SLOW])
    np.testing.assert_array_equal(read.moments[:, :4], clip.moments[:, :4])
    assert (read.moments[:, 4:] == -30).all()
    column = pq.read_schema(tmp_path / shards.files[0].path).field("latent").type
    assert column.byte_width == 3 * 4 * 5 * 7 * 2


def test_wrong_shape_and_overflow_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill"):
        shard_format.to_parquet([make_clip("x", FAST)], make_config(), SLOW)
    clip = make_clip("x", SLOW)
    clip.moments[1, 2, 3, 4] = np.inf
    with pytest.raises(ValueError, match="finite"):
        shard_format.to_parquet([clip], make_config(), SLOW)


def grid(shards: int, groups: int, rows: int) -> list[ClipRef]:
    return [ClipRef(s, g, r) for s in range(shards) for g in range(groups) for r in range(rows)]


def test_epoch_order_is_a_permutation_and_a_pure_function_of_seed_and_epoch() -> None:
    refs = grid(5, 4, 7)
    order = epoch_order(refs, seed=3, epoch=2)
    assert sorted(order) == refs
    assert order == epoch_order(list(reversed(refs)), seed=3, epoch=2)
    assert order != epoch_order(refs, seed=3, epoch=1)
    assert order != epoch_order(refs, seed=4, epoch=2)


def test_epoch_order_opens_few_row_groups_at_a_time() -> None:
    order = epoch_order(grid(6, 5, 8), seed=0, epoch=0, buffer_groups=3)
    first_seen: dict[tuple[int, int], int] = {}
    for place, ref in enumerate(order):
        first_seen.setdefault((ref.shard, ref.row_group), place)
    # A group is opened only when the two before it in the buffer have been mixed in: at most 3 groups per 8 places.
    opened = sorted(first_seen.values())
    assert all(place >= (i - 2) * 8 for i, place in enumerate(opened))
    assert len({(ref.shard, ref.row_group) for ref in order[:24]}) >= 3


def test_epoch_order_lanes_read_disjoint_row_groups() -> None:
    order = epoch_order(grid(4, 3, 5), seed=1, epoch=0, lanes=4)
    groups = [{(ref.shard, ref.row_group) for ref in order[lane::4]} for lane in range(4)]
    assert sum(len(g) for g in groups) == len(set.union(*groups))
    assert len(order) % 4 == 0
    with pytest.raises(ValueError, match="lanes=13"):
        epoch_order(grid(4, 3, 5), seed=1, epoch=0, lanes=13)

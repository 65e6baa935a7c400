"""The whole run without Ray: the same stage classes, composed by hand."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel

from infra.cli import ExitCode
from pipelines.shard_format import ShardConfig
from pipelines.shards import open_shards
from pipelines.video_io import read_clip
from preprocessing.arguments import Job
from preprocessing.config import ClipForm, PreprocessConfig
from preprocessing.encoder import find_autoencoder, load_encoder
from preprocessing.finish import finish, read_quarantine
from preprocessing.ledger import committed_groups
from preprocessing.look_stage import LookAtSources
from preprocessing.plan import buckets_of, make_plan
from preprocessing.plan_store import PlanSummary, write_plan
from preprocessing.sandbox import Sandbox
from preprocessing.sources import find_sources
from preprocessing.stages import DecodeGroups, EncodeClips, WriteShards

CONFIG = PreprocessConfig(
    clips=(ClipForm(num_frames=4, fps="4", stride_s=0.5), ClipForm(num_frames=3, fps="8")),
    sizes=((32, 64),),
    min_groups=3,
)
SANDBOX = Sandbox(memory_bytes=4 * 2**30, timeout_s=60.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_video: Callable[..., Path]) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(4):
        make_video(folder / f"{i}.mp4", 17 + 2 * i, seed=i)
    (folder / "text.mp4").write_text("no video")
    return folder


def shard_config(vae_folder: Path) -> ShardConfig:
    vae = find_autoencoder(str(vae_folder))
    return ShardConfig(
        autoencoder=vae.name, autoencoder_digest=vae.digest, latent_kind=vae.kind, latent_channels=vae.latent_channels,
        downsampling=vae.downsampling, scaling_factor=vae.scaling_factor, shift_factor=vae.shift_factor,
        buckets=buckets_of(CONFIG),
    )  # fmt: skip


def plan_into(shards: Path, corpus: Path) -> int:
    look = LookAtSources(CONFIG, SANDBOX)
    sources = find_sources(str(corpus))
    plan = make_plan([look.look(source) for source in sources], CONFIG)
    summary = PlanSummary(
        corpus=str(corpus), listing_digest="", corpus_digest=plan.corpus_digest, config_digest=CONFIG.digest,
        sources=len(sources), rejected=len(plan.rejections), refused=0, shards=0, captions=0, buckets={},
        clips=len(plan.clips), groups=plan.num_groups,
        latent_bytes=0, seconds_of_video=0,
    )  # fmt: skip
    write_plan(str(shards), plan, summary)
    return plan.num_groups


def run_groups(shards: Path, vae_folder: Path, groups: list[int], batch: int = 1, interleave: bool = False) -> None:
    config = shard_config(vae_folder)
    decode, encode = DecodeGroups(str(shards), "", SANDBOX), EncodeClips(vae_folder, CONFIG, "cpu", str(shards))
    write = WriteShards(str(shards), config, False)
    rows = [table for group in groups for table in decode(pa.table({"group": pa.array([group], pa.int32())}))]
    if interleave:
        rows = rows[::2] + rows[1::2]
    for i in range(0, len(rows), batch):
        write(encode(pa.concat_tables(rows[i : i + batch])))
    (shards / "config.json").write_text(config.to_json())


@pytest.fixture(scope="module")
def finished(corpus: Path, vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    shards = tmp_path_factory.mktemp("shards")
    groups = plan_into(shards, corpus)
    assert groups >= 3
    run_groups(shards, vae_folder, list(range(groups)))
    finish(str(shards), shard_config(vae_folder))
    return shards


def test_latents_equal_the_autoencoder_on_the_frames(finished: Path, corpus: Path, vae_folder: Path) -> None:
    shards = open_shards(str(finished))
    vae = AutoencoderKL.from_pretrained(vae_folder)
    for bucket, refs in shards.buckets.items():
        for clip in shards.read(refs):
            frames = read_clip(
                str(corpus / clip.source), num_frames=bucket.num_frames, fps=bucket.fps, start_s=clip.times_s[0]
            )
            with torch.no_grad():
                posterior = vae.encode(frames.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist
            expected = torch.cat([posterior.mean, posterior.logvar], 1).numpy()
            np.testing.assert_allclose(clip.moments.astype(np.float32), expected, rtol=2e-3, atol=1e-3)


def test_bytes_do_not_depend_on_batches_order_or_interleaving(
    finished: Path, corpus: Path, vae_folder: Path, tmp_path: Path
) -> None:
    groups = plan_into(tmp_path, corpus)
    run_groups(tmp_path, vae_folder, list(reversed(range(groups))), batch=3, interleave=True)
    finish(str(tmp_path), shard_config(vae_folder))
    for name in ("_SUCCESS.json", "index.parquet", "quarantine.parquet", "plan/clips.parquet"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes(), name
    files = [p.relative_to(finished) for p in sorted((finished / "data").rglob("*.parquet"))]
    assert files == [p.relative_to(tmp_path) for p in sorted((tmp_path / "data").rglob("*.parquet"))]
    for file in files:
        assert (tmp_path / file).read_bytes() == (finished / file).read_bytes()


def test_doing_a_group_twice_changes_nothing(finished: Path, vae_folder: Path) -> None:
    before = {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()}
    run_groups(finished, vae_folder, [1])
    assert {p: p.read_bytes() for p in finished.rglob("*") if p.is_file()} == before


def test_bad_sources_are_rows_of_the_quarantine(finished: Path) -> None:
    [row] = read_quarantine(str(finished))
    assert (row.source, row.stage, row.reason) == ("text.mp4", "probe", "open")


def test_a_source_that_breaks_after_planning_costs_its_clips_alone(
    corpus: Path, vae_folder: Path, tmp_path: Path, make_video: Callable[..., Path]
) -> None:
    own = tmp_path / "corpus"
    own.mkdir()
    make_video(own / "good.mp4", 20, seed=1)
    broken = make_video(own / "broken.mp4", 40, seed=2)
    gone = make_video(own / "gone.mp4", 20, seed=3)
    shards = tmp_path / "shards"
    groups = plan_into(shards, own)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size * 2 // 3])
    gone.unlink()
    run_groups(shards, vae_folder, list(range(groups)))
    rejections = finish(str(shards), shard_config(vae_folder))
    planned = json.loads((shards / "plan" / "plan.json").read_text())["clips"]
    written = open_shards(str(shards))
    assert len(written) + sum(r.clips for r in rejections) == planned
    assert {r.source for r in rejections} == {"broken.mp4", "gone.mp4"}
    assert {r.reason for r in rejections if r.source == "gone.mp4"} <= {"io", "open"}
    assert {r.reason for r in rejections if r.source == "broken.mp4"} == {"changed"}
    assert {labels.source for labels in written.labels.values()} >= {"good.mp4"}


def test_committed_groups_are_the_ledger(finished: Path) -> None:
    assert committed_groups(str(finished)) == set(range(len(list((finished / "ledger").iterdir()))))


def test_a_clip_is_encoded_alone(vae_folder: Path) -> None:
    encode = load_encoder(vae_folder, "float32", "cpu")
    frames = np.random.default_rng(0).integers(0, 255, (3, 32, 64, 3), np.uint8)
    assert encode(frames).shape == (3, 8, 4, 8)
    np.testing.assert_array_equal(encode(frames), encode(frames.copy()))


def test_autoencoders_are_told_apart_by_content_alone(vae_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "checkpoint" / "backbone" / "vae"
    AutoencoderKL.from_pretrained(vae_folder).save_pretrained(copy)
    assert find_autoencoder(str(tmp_path / "checkpoint")).digest == find_autoencoder(str(vae_folder)).digest
    other = AutoencoderKL.from_pretrained(vae_folder)
    with torch.no_grad():
        other.encoder.conv_in.bias[0] += 1e-3
    other.save_pretrained(copy)
    assert find_autoencoder(str(tmp_path / "checkpoint")).digest != find_autoencoder(str(vae_folder)).digest
    with pytest.raises(ValueError, match="no autoencoder"):
        find_autoencoder(str(tmp_path))


def test_a_quantised_autoencoder_gives_latents_before_quantisation(
    tmp_path: Path, make_video: Callable[..., Path], run_job: Callable[[Job], ExitCode]
) -> None:
    torch.manual_seed(0)
    vq = VQModel(
        block_out_channels=(8, 16), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=3, num_vq_embeddings=16, sample_size=32,
    ).eval()  # fmt: skip
    vq.save_pretrained(tmp_path / "vae")
    make_video(tmp_path / "corpus" / "a.mp4", 20)
    job = Job(corpus=str(tmp_path / "corpus"), shards=str(tmp_path / "s"), checkpoint=str(tmp_path), config=CONFIG)
    assert run_job(job) == ExitCode.DONE
    shards = open_shards(str(tmp_path / "s"))
    assert shards.config.latent_kind == "vq_prequant"
    bucket = shards.config.buckets[0]
    clip = shards.read(shards.buckets[bucket][:1])[0]
    frames = read_clip(
        str(tmp_path / "corpus" / "a.mp4"), num_frames=bucket.num_frames, fps=bucket.fps, start_s=clip.times_s[0]
    )
    with torch.no_grad():
        expected = vq.encode(frames.permute(0, 3, 1, 2).float() / 127.5 - 1).latents.numpy()
    np.testing.assert_allclose(clip.moments[:, :3].astype(np.float32), expected, rtol=2e-3, atol=2e-3)


def test_tiles_are_for_autoencoders_that_have_them(vae_folder: Path, tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (1, 64, 96, 3), np.uint8)
    tiled, plain = (load_encoder(vae_folder, "float32", "cpu", tiling=tiling)(frames) for tiling in (True, False))
    assert tiled.shape == plain.shape
    assert not np.array_equal(tiled, plain)
    assert float(np.abs(tiled.astype(np.float32) - plain).mean()) < float(np.abs(plain).mean())

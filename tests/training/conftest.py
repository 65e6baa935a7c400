"""Fixtures of the training tests."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.multiprocessing.spawn import start_processes

from pipelines.config import ModelPreset
from pipelines.digests import network_digest
from pipelines.models.scene import SceneConfig, SceneEncoder
from pipelines.presets import tiny
from pipelines.shard_format import Bucket, LatentClip, ShardConfig
from pipelines.shard_writer import write_shards as write_set
from training.config import (
    CheckpointConfig,
    DataConfig,
    Objective,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)
from training.task import Inputs, put_part
from training.worker import Job

Spawn = Callable[..., None]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    # The number of threads decides how sums are split, so it is part of the bits; a fork must not inherit a pool.
    torch.set_num_threads(1)


@pytest.fixture
def spawn() -> Spawn:
    """Run target(rank, *arguments) in `count` processes and wait for them."""

    def run(target: Callable[..., None], count: int, *arguments: object) -> None:
        start_processes(target, args=arguments, nprocs=count, start_method="fork")  # type: ignore[no-untyped-call]

    return run


def micro_model() -> ModelPreset:
    """The tiny system with networks of a few thousand parameters: 16x24 frames, 2x3 latents at f8."""
    model = tiny()
    stage = replace(model.stages["keyframes"], num_frames=5, height=16, width=24)
    return replace(
        model,
        name="micro",
        autoencoder={**model.autoencoder, "block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4},
        unet={
            **model.unet,
            "block_out_channels": (8, 16),
            "cross_attention_dim": 12,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "sample_size": (2, 3),
        },
        stages={"keyframes": replace(stage, sampler=replace(stage.sampler, num_steps=3))},
    )


def micro_config(objective: Objective, **changes: Any) -> TrainConfig:
    """A run of the micro system that takes a second."""
    config = TrainConfig(
        name=f"micro-{objective}",
        objective=objective,
        model=micro_model(),
        steps=6,
        batch_size=4,
        virtual_shards=2,
        optimizer=OptimizerConfig(learning_rate=1e-2),
        ema_decay=0.5,
        data=DataConfig(height=16, width=24, num_frames=1 if objective in ("image", "autoencoder") else 5),
        checkpoints=CheckpointConfig(every_steps=2),
        validation=ValidationConfig(every_steps=0),
        log_every=1,
    )
    return replace(config, **changes)


def write_shards(folder: Path, autoencoder_digest: str, *, clips: int = 11, num_frames: int = 6) -> str:
    """A finished shard set of random latents; returns its path."""
    bucket = Bucket(num_frames=num_frames, height=16, width=24, rate="4")
    config = ShardConfig(
        autoencoder="micro",
        autoencoder_digest=autoencoder_digest,
        latent_kind="kl_moments",
        latent_channels=4,
        downsampling=8,
        scaling_factor=1.3,
        shift_factor=0.1,
        buckets=(bucket,),
    )
    rng = np.random.default_rng(0)
    members = [
        LatentClip(
            clip_id=f"clip{i:02d}",
            moments=rng.normal(0, 1, (num_frames, 8, 2, 3)).astype("float16"),
            fps=4.0,
            night=i % 2,
            crowdedness=i,
            boxes=(((0.02 * i, 0.2, 0.5 + 0.02 * i, 0.9),),) * num_frames,
            source=f"source{i}.mp4",
        )
        for i in range(clips)
    ]
    write_set(folder, config, {bucket: [members]})
    return str(folder)


@dataclass(frozen=True)
class System:
    """A checkpoint folder and shards that fit it."""

    folder: Path
    inputs: Inputs

    def job(self, config: TrainConfig, run: str = "runs", **changes: Any) -> Job:
        return Job(config=config, inputs=self.inputs, run_uri=str(self.folder / run / config.name), **changes)


def build_system(folder: Path) -> System:
    """Write a micro system with a random autoencoder, image model and scene encoder, and shards made with it."""
    out = folder / "checkpoint"
    model = micro_model()
    torch.manual_seed(3)
    vae = AutoencoderKL(**model.autoencoder, scaling_factor=1.3, shift_factor=0.1)
    put_part(out, "backbone/vae", vae.save_pretrained, name="micro", record={})
    unet = UNet2DConditionModel(**model.unet)
    put_part(out, "backbone/unet", unet.save_pretrained, name="micro", record={})
    put_part(out, "backbone/condition", SceneEncoder(SceneConfig(width=12)).save, name="micro", record={})
    shards = write_shards(folder / "shards", network_digest(out / "backbone" / "vae"))
    return System(folder, Inputs(out=str(out), shards=shards))


@pytest.fixture
def make_config() -> Callable[..., TrainConfig]:
    """Make a run of the micro system: make_config(objective, **changes)."""
    return micro_config


@pytest.fixture
def make_shards() -> Callable[..., str]:
    """Make a shard set: make_shards(folder, autoencoder_digest, clips=, num_frames=)."""
    return write_shards


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One MLflow database for all: making its tables takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def system(tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch) -> System:
    """A micro system with a random autoencoder, image model and scene encoder, and shards made with it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    return build_system(tmp_path)

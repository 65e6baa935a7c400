"""Training runs: one function per run, named as on the command line; sizes of the networks stand in pipelines.presets.

The paper gives steps, batch sizes and learning rates (Blattmann et al. 2023, tables 6 to 8), but neither optimizer,
EMA, warm-up nor clipping; those are ours.
"""

from collections.abc import Callable
from dataclasses import replace

from pipelines.presets import tiny
from training.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
    ZeroConfig,
)

TINY_DATA = DataConfig(height=64, width=128, num_frames=1)


def tiny_autoencoder() -> TrainConfig:
    """Minutes on two cores: an f8 autoencoder of a million parameters on 64x128 frames."""
    return TrainConfig(
        name="tiny-autoencoder",
        objective="autoencoder",
        model=tiny(),
        steps=20_000,
        batch_size=16,
        virtual_shards=1,
        threads=2,
        optimizer=OptimizerConfig(learning_rate=2e-3, betas=(0.9, 0.99), warmup_steps=50),
        ema_decay=0.98,
        data=replace(TINY_DATA, fps=(4.0,), crop=64),
        checkpoints=CheckpointConfig(every_steps=500),
        validation=ValidationConfig(every_steps=500),
    )


def tiny_image() -> TrainConfig:
    """Minutes on two cores: the image model on single latents."""
    return TrainConfig(
        name="tiny-image",
        objective="image",
        model=tiny(),
        steps=50_000,
        batch_size=16,
        virtual_shards=1,
        threads=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), warmup_steps=50),
        ema_decay=0.99,
        data=TINY_DATA,
        checkpoints=CheckpointConfig(every_steps=500),
        validation=ValidationConfig(every_steps=500),
    )


def tiny_keyframes() -> TrainConfig:
    """Minutes on two cores: the temporal layers on clips of 8 frames, two workers with ZeRO-2."""
    return TrainConfig(
        name="tiny-keyframes",
        objective="keyframes",
        model=tiny(),
        steps=50_000,
        batch_size=8,
        virtual_shards=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), warmup_steps=20),
        ema_decay=0.97,
        data=replace(TINY_DATA, num_frames=8),
        checkpoints=CheckpointConfig(every_steps=50),
        validation=ValidationConfig(every_steps=100),
        cluster=ClusterConfig(launcher="ray", max_workers=2, engine="deepspeed", zero=ZeroConfig(stage=2)),
    )


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "tiny-autoencoder": tiny_autoencoder,
    "tiny-image": tiny_image,
    "tiny-keyframes": tiny_keyframes,
}

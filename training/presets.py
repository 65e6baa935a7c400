"""Training runs: one function per run, named as on the command line; sizes of the networks stand in pipelines.presets.

The paper gives steps, batch sizes and learning rates (Blattmann et al. 2023, tables 6 to 8), but neither optimizer,
EMA, warm-up nor clipping; those are ours.
"""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches

from pipelines.config import ModelPreset, UpsamplerPreset
from pipelines.models.temporal import TemporalConfig
from pipelines.presets import tiny
from training.ablations import ablation_runs
from training.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
    ZeroConfig,
)
from training.paper_presets import driving_runs, mountain_biking_runs, text_to_video_runs
from training.world_presets import synthetic_driving_runs

TINY_DATA = DataConfig(height=64, width=128, num_frames=1)


def tiny_autoencoder() -> TrainConfig:
    """Minutes on two cores: an f8 autoencoder of a million parameters on 64x128 frames."""
    return TrainConfig(
        name="tiny-autoencoder",
        objective="autoencoder",
        model=tiny(),
        steps=20_000,
        batch_size=8,
        virtual_shards=1,
        threads=2,
        optimizer=OptimizerConfig(learning_rate=1e-3, betas=(0.9, 0.99), warmup_steps=50),
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


def tiny_system() -> ModelPreset:
    """The tiny system with every stage of the paper, for runs that show that each can be trained."""
    model = tiny()
    keyframes = model.stages["keyframes"]
    prediction = replace(
        keyframes,
        temporal=TemporalConfig(
            mix="scalar", cross_attention_dim=None, context_channels=5, context_width=32, embeds_context_level=True
        ),
        context_level=30,
    )
    interpolation = replace(
        prediction,
        temporal=TemporalConfig(
            mix="per_frame",
            num_frames=5,
            cross_attention_dim=64,
            context_channels=5,
            context_width=32,
            embeds_fps=True,
            embeds_context_level=True,
        ),
        num_frames=5,
        fps=16.0,
    )
    upsampler = replace(
        keyframes,
        temporal=TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3, context_width=32),
        num_frames=4,
        context_level=150,
    )
    unet = {
        "in_channels": 6,
        "out_channels": 3,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D",) * 3,
        "up_block_types": ("UpBlock2D",) * 3,
        "layers_per_block": 1,
        "norm_num_groups": 16,
        "class_embed_type": "timestep",
    }
    return replace(
        model,
        stages={"keyframes": keyframes, "prediction": prediction, "interpolation": interpolation},
        upsampler=UpsamplerPreset(unet=unet, autoencoder=None, stage=upsampler),
    )


def tiny_prediction() -> TrainConfig:
    """The tiny twin of the driving prediction run: 0, 1 or 2 frames given."""
    run = tiny_keyframes()
    return replace(
        run,
        name="tiny-prediction",
        objective="prediction",
        model=tiny_system(),
        data=replace(run.data, context_noise=250),
    )


def tiny_interpolation() -> TrainConfig:
    """The tiny twin of the driving interpolation run: both ends of five frames given, two rates."""
    run = tiny_prediction()
    data = replace(run.data, num_frames=5)
    return replace(run, name="tiny-interpolation", objective="interpolation", data=data)


def tiny_decoder() -> TrainConfig:
    """The tiny twin of the decoder runs: six frames, a discriminator of volumes."""
    run = tiny_autoencoder()
    return replace(
        run,
        name="tiny-decoder",
        objective="decoder",
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=5e-4, betas=(0.5, 0.9)),
        discriminator=OptimizerConfig(learning_rate=2e-4, betas=(0.5, 0.9)),
        data=replace(run.data, num_frames=6, fps=(16.0,)),
    )


def tiny_upsampler_image() -> TrainConfig:
    """The tiny twin of the driving upsampler's image run: 16x32 to 64x128 pixels, on patches."""
    run = tiny_autoencoder()
    return replace(
        run,
        name="tiny-upsampler-image",
        objective="upsampler-image",
        model=tiny_system(),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=50),
    )


def tiny_upsampler() -> TrainConfig:
    """The tiny twin of the driving upsampler's temporal run."""
    run = tiny_upsampler_image()
    data = replace(run.data, num_frames=4, fps=(16.0,))
    return replace(run, name="tiny-upsampler", objective="upsampler", batch_size=4, data=data)


PRESETS: dict[str, Callable[[], TrainConfig]] = {
    "tiny-autoencoder": tiny_autoencoder,
    "tiny-image": tiny_image,
    "tiny-keyframes": tiny_keyframes,
    "tiny-prediction": tiny_prediction,
    "tiny-interpolation": tiny_interpolation,
    "tiny-decoder": tiny_decoder,
    "tiny-upsampler-image": tiny_upsampler_image,
    "tiny-upsampler": tiny_upsampler,
}


def preset_names() -> list[str]:
    """Names of all runs."""
    return [*PRESETS, *longer_runs()]


def make_preset(name: str) -> TrainConfig:
    """Make a run by its name.

    Raises:
        ValueError: if there is none of that name; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]()
    runs = longer_runs()
    if name not in runs:
        near = get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"presets: {', '.join(preset_names())}"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    return runs[name]


def longer_runs() -> dict[str, TrainConfig]:
    """The runs of the shipped checkpoint, its ablations and those of the paper."""
    return {
        **synthetic_driving_runs(),
        **ablation_runs(),
        **driving_runs(),
        **mountain_biking_runs(),
        **text_to_video_runs(),
    }

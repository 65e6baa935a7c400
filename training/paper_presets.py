"""The training runs of the paper: steps, batch sizes, learning rates and devices of tables 6 and 8, errata applied.

Blattmann et al. 2023. A virtual shard holds the paper's batch of one device, so that the devices of the paper are the
largest number of workers. Optimizer, EMA, warm-up and clipping are not in the paper: AdamW and 0.9999 follow Stable
Video Diffusion (appendix D).
"""

from dataclasses import replace

from pipelines.config import ModelPreset, StageConfig
from pipelines.presets import driving, mountain_biking, text_to_video
from training.config import (
    CheckpointConfig,
    ClusterConfig,
    DataConfig,
    Objective,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

DECODER_FRAMES = 6
CONTEXT_NOISE = 250


def _run(
    model: ModelPreset,
    objective: Objective,
    data: DataConfig,
    *,
    steps: int,
    learning_rate: float,
    per_device: int,
    devices: int,
    name: str | None = None,
) -> TrainConfig:
    return TrainConfig(
        name=f"{model.name}-{name or objective}",
        objective=objective,
        model=model,
        steps=steps,
        batch_size=per_device * devices,
        virtual_shards=devices,
        optimizer=OptimizerConfig(learning_rate=learning_rate, warmup_steps=1000),
        discriminator=(
            OptimizerConfig(learning_rate=learning_rate, betas=(0.5, 0.9)) if objective == "decoder" else None
        ),
        perceptual="stlpips-vgg" if objective == "decoder" else None,
        data=replace(data, validation_percent=1),
        precision="bf16",
        checkpoints=CheckpointConfig(every_steps=500, keep_last=3, keep_every_hours=12.0),
        validation=ValidationConfig(every_steps=1000),
        cluster=ClusterConfig(
            launcher="ray",
            max_workers=devices,
            engine="deepspeed",
            cpus_per_worker=4.0,
            gpus_per_worker=1.0,
            max_failures=-1,
        ),
    )


def _data(stage: StageConfig, *fps: float, num_frames: int | None = None) -> DataConfig:
    return DataConfig(
        height=stage.height,
        width=stage.width,
        num_frames=num_frames or stage.num_frames,
        fps=fps,
        context_noise=CONTEXT_NOISE,
    )


def driving_runs() -> dict[str, TrainConfig]:
    """Tables 6 and 8, driving; the image autoencoder's own training is not published."""
    model = driving()
    stage = model.stages["prediction"]
    image = _data(stage, 1.0, num_frames=1)
    patches = DataConfig(height=512, width=1024, num_frames=8, fps=(4.0,), crop=256)
    decoder = _data(stage, 30.0, num_frames=DECODER_FRAMES)
    runs = [
        _run(model, "autoencoder", image, steps=100_000, learning_rate=4.5e-6, per_device=8, devices=8),
        _run(model, "image", image, steps=73_000, learning_rate=1e-4, per_device=40, devices=16),
        _run(
            model,
            "image",
            replace(image, boxes=True),
            steps=73_000,
            learning_rate=1e-4,
            per_device=40,
            devices=16,
            name="boxes",
        ),
        _run(model, "prediction", _data(stage, 2.0), steps=146_000, learning_rate=1e-4, per_device=9, devices=40),
        _run(
            model,
            "interpolation",
            _data(model.stages["interpolation"], 7.5, 30.0),
            steps=42_000,
            learning_rate=1e-4,
            per_device=16,
            devices=24,
        ),
        _run(model, "decoder", decoder, steps=41_000, learning_rate=4e-5, per_device=4, devices=8),
        _run(
            model,
            "upsampler-image",
            replace(patches, num_frames=1, fps=(1.0,)),
            steps=84_000,
            learning_rate=1e-5,
            per_device=4,
            devices=8,
        ),
        _run(model, "upsampler", patches, steps=84_000, learning_rate=1e-4, per_device=2, devices=8),
    ]
    return {run.name: run for run in runs}


def mountain_biking_runs() -> dict[str, TrainConfig]:
    """Tables 6 and 8, mountain biking: key frames at 1.875 fps (table 6 says 4, appendix I.2 and the text 1.875)."""
    model = mountain_biking()
    stage = model.stages["prediction"]
    image = _data(stage, 1.875, num_frames=1)
    runs = [
        _run(model, "autoencoder", image, steps=100_000, learning_rate=4.5e-6, per_device=8, devices=8),
        _run(model, "image", image, steps=14_000, learning_rate=1e-4, per_device=300, devices=1),
        _run(model, "prediction", _data(stage, 1.875), steps=107_000, learning_rate=1e-4, per_device=20, devices=8),
        _run(
            model,
            "interpolation",
            _data(model.stages["interpolation"], 7.5, 30.0),
            steps=33_000,
            learning_rate=1e-4,
            per_device=20,
            devices=6,
        ),
        _run(
            model,
            "decoder",
            _data(stage, 30.0, num_frames=DECODER_FRAMES),
            steps=78_000,
            learning_rate=5e-5,
            per_device=5,
            devices=8,
        ),
    ]
    return {run.name: run for run in runs}


def text_to_video_runs() -> dict[str, TrainConfig]:
    """Tables 6 and 8, text-to-video; the length of the image model's fine-tuning is not published ("briefly")."""
    model = text_to_video()
    stage = model.stages["keyframes"]
    image = _data(stage, 2.0, num_frames=1)
    patches = DataConfig(height=1280, width=2048, num_frames=8, fps=(2.0,), crop=320)
    interpolation = _run(
        model,
        "interpolation",
        _data(model.stages["interpolation"], 7.5, 30.0),
        steps=95_000,
        learning_rate=1e-4,
        per_device=8,
        devices=128,
    )
    runs = [
        _run(model, "image", image, steps=10_000, learning_rate=1e-4, per_device=8, devices=32),
        _run(model, "keyframes", _data(stage, 2.0), steps=402_000, learning_rate=1e-4, per_device=3, devices=256),
        # Started from the key-frame model it converges in a tenth of the steps (Stable Video Diffusion, section 4.4).
        replace(interpolation, initialise_from="keyframes", train_all=True),
        _run(model, "prediction", _data(stage, 2.0), steps=50_000, learning_rate=1e-4, per_device=3, devices=64),
        _run(
            model,
            "decoder",
            _data(stage, 30.0, num_frames=DECODER_FRAMES),
            steps=35_000,
            learning_rate=4e-5,
            per_device=1,
            devices=40,
        ),
        _run(model, "upsampler", patches, steps=10_000, learning_rate=1e-4, per_device=8, devices=32),
    ]
    return {run.name: run for run in runs}

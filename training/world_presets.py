"""The trainings of the shipped checkpoint: the paper's driving system in miniature, in the order they are run.

Learning rates are constant, so that a run can be taken further at any time (`--steps`); the exported moving average
does what a falling rate would. The steps are those of the weights that ship: each run took 7 to 80 minutes of one core.
"""

from dataclasses import replace

from pipelines.presets import synthetic_driving
from training.config import (
    CheckpointConfig,
    DataConfig,
    Objective,
    OptimizerConfig,
    TrainConfig,
    ValidationConfig,
)

FRAMES = DataConfig(height=128, width=256, num_frames=1, validation_percent=2)
CLIPS = replace(FRAMES, num_frames=8, fps=(1.875,), context_noise=200)
CROPS = replace(FRAMES, fps=(1.875,), crop=64)
PATCHES = replace(FRAMES, height=512, width=1024, fps=(7.5,), crop=64)


def _run(
    objective: Objective,
    data: DataConfig,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    name: str | None = None,
) -> TrainConfig:
    return TrainConfig(
        name=f"synthetic-driving-{name or objective}",
        objective=objective,
        model=synthetic_driving(),
        steps=steps,
        batch_size=batch_size,
        virtual_shards=1,
        threads=1,
        optimizer=OptimizerConfig(learning_rate=learning_rate, betas=(0.9, 0.99), warmup_steps=100),
        ema_decay=0.998,
        data=data,
        checkpoints=CheckpointConfig(every_steps=250),
        validation=ValidationConfig(every_steps=500, batches=4),
    )


def _decoder() -> TrainConfig:
    # Without a discriminator: against one, a decoder of this size learned a grid before it learned sharpness.
    run = _run("decoder", replace(CROPS, num_frames=6, fps=(30.0,)), steps=2753, batch_size=2, learning_rate=5e-4)
    optimizer = OptimizerConfig(learning_rate=5e-4, betas=(0.5, 0.9))
    return replace(run, optimizer=optimizer, perceptual="stlpips-alex")


def synthetic_driving_runs() -> dict[str, TrainConfig]:
    """One entry for each training, by its name on the command line, in the order they are run."""
    gaps = replace(CLIPS, num_frames=5, fps=(7.5, 30.0))
    runs = [
        _run("autoencoder", CROPS, steps=8556, batch_size=4, learning_rate=1e-3),
        _run("image", FRAMES, steps=5852, batch_size=8, learning_rate=1e-3),
        _run("image", replace(FRAMES, boxes=True), steps=5171, batch_size=8, learning_rate=5e-4, name="boxes"),
        _run("prediction", CLIPS, steps=2455, batch_size=4, learning_rate=1e-3),
        replace(_run("interpolation", gaps, steps=275, batch_size=4, learning_rate=1e-3), initialise_from="prediction"),
        _decoder(),
        _run("upsampler-image", PATCHES, steps=782, batch_size=8, learning_rate=1e-3),
        _run("upsampler", replace(PATCHES, num_frames=8), steps=1889, batch_size=2, learning_rate=5e-4),
    ]
    return {run.name: run for run in runs}

"""The trainings of the shipped checkpoint: the paper's driving system in miniature, in the order they are run.

Learning rates are constant, so that a run can be taken further at any time; the exported moving average does what a
falling rate would. Each run is a few hours of two CPU cores.
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


def _run(objective: Objective, data: DataConfig, *, steps: int, batch_size: int, learning_rate: float) -> TrainConfig:
    return TrainConfig(
        name=f"synthetic-driving-{objective}",
        objective=objective,
        model=synthetic_driving(),
        steps=steps,
        batch_size=batch_size,
        virtual_shards=1,
        threads=2,
        optimizer=OptimizerConfig(learning_rate=learning_rate, betas=(0.9, 0.99), warmup_steps=200),
        ema_decay=0.999,
        data=data,
        checkpoints=CheckpointConfig(every_steps=250),
        validation=ValidationConfig(every_steps=500, batches=4),
    )


def synthetic_driving_runs() -> dict[str, TrainConfig]:
    """One entry for each training, by its name on the command line."""
    runs = [
        _run("autoencoder", replace(FRAMES, fps=(1.875,), crop=64), steps=20_000, batch_size=16, learning_rate=1e-3),
        _run("image", FRAMES, steps=30_000, batch_size=16, learning_rate=5e-4),
        _run("prediction", CLIPS, steps=20_000, batch_size=4, learning_rate=5e-4),
        replace(
            _run(
                "interpolation",
                replace(CLIPS, num_frames=5, fps=(7.5, 30.0)),
                steps=10_000,
                batch_size=4,
                learning_rate=5e-4,
            ),
            initialise_from="prediction",
        ),
    ]
    return {run.name: run for run in runs}

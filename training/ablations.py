"""The ablations of the paper's table 1 in miniature: the same clips, time and image model, with parts left out."""

from collections.abc import Callable, Mapping
from dataclasses import replace

from pipelines.models.temporal import TemporalConfig
from pipelines.presets import synthetic_driving
from training.config import TrainConfig
from training.world_presets import synthetic_driving_runs

OURS, END_TO_END = "ours, small", "end to end"
PREFIX = "synthetic-driving-ablation-"

CHANGES: Mapping[str, Callable[[TemporalConfig], TemporalConfig]] = {
    OURS: lambda temporal: temporal,
    "attention only": lambda temporal: replace(temporal, convolution=False, attention_blocks=2),
    "convolution only": lambda temporal: replace(temporal, attention=False),
    END_TO_END: lambda temporal: temporal,
}
"""What each ablation changes. Table 7 of the paper: clips without given frames, so that no context path is needed."""


def slug(name: str) -> str:
    """An ablation's name in a preset's name or a path."""
    return name.replace(",", "").replace(" ", "-")


def ablation_runs() -> dict[str, TrainConfig]:
    """A training for each ablation, by its name on the command line."""
    base = synthetic_driving_runs()["synthetic-driving-prediction"]
    stage = base.model.stages["prediction"]
    runs = {}
    for name, change in CHANGES.items():
        temporal = change(TemporalConfig(mix="scalar", cross_attention_dim=None))
        model = replace(
            synthetic_driving(),
            name=f"{PREFIX}{slug(name)}",
            stages={"keyframes": replace(stage, temporal=temporal, context_level=None, guidance_scale=1.0)},
        )
        runs[model.name] = replace(
            base,
            name=model.name,
            objective="keyframes",
            model=model,
            # Time ends it: all have the same, whatever a step of theirs costs.
            steps=100_000,
            train_all=name == END_TO_END,
            data=replace(base.data, context_noise=None),
        )
    return runs

"""Estimates before a run."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from training.config import ClusterConfig
from training.estimate import estimate, report
from training.presets import make_preset


def test_estimate_counts_the_parameters_that_are_trained() -> None:
    config = make_preset("tiny-keyframes")
    config = replace(config, cluster=replace(config.cluster, price_per_hour=3.0))
    found = estimate(config, workers=2, flops_per_s=1e10)
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: PLC0415

    from pipelines.models.video_unet import VideoUNet  # noqa: PLC0415

    with torch.device("meta"):
        video = VideoUNet(UNet2DConditionModel(**config.model.unet), config.model.stages["keyframes"].temporal)
    assert found.trained_parameters == sum(p.numel() for p in video.temporal_parameters())
    assert found.frozen_parameters == sum(p.numel() for p in video.unet.parameters())
    assert found.cost == pytest.approx(found.hours * 2 * 3.0)
    assert "ZeRO-3" in report(config, found, 2)


def test_estimated_memory_falls_with_the_stage_and_the_workers() -> None:
    config = replace(make_preset("tiny-keyframes"), virtual_shards=8)
    few, many = (estimate(config, workers=w, flops_per_s=1e14).state_bytes for w in (4, 8))
    assert few[0] > few[2] > few[3]
    assert few[0] > many[0], "fewer shards a worker are fewer sums to hold"
    assert few[3] > many[3]


def test_estimate_without_unet_is_refused() -> None:
    with pytest.raises(ValueError, match="no estimate for objective 'decoder'"):
        estimate(make_preset("tiny-decoder"), workers=1, flops_per_s=1.0)


def test_where_a_run_runs_does_not_change_its_numbers() -> None:
    config = make_preset("tiny-image")
    moved = replace(config, cluster=ClusterConfig(max_failures=1), log_every=3, track=False)
    assert moved.numerics == config.numerics
    assert replace(config, batch_size=32).numerics != config.numerics


@pytest.mark.slow
def test_dry_run_prints_the_estimate(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "training", "tiny-image", "--out", str(tmp_path), "--dry-run"]
    finished = subprocess.run(line, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert "TFLOP a step" in finished.stdout
    assert list(tmp_path.iterdir()) == []

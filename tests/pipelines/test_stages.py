"""The stages on small random networks: lengths, given frames, stopping and going on."""

from collections.abc import Iterator

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.testing import assert_close

from pipelines import stages
from pipelines.config import StageConfig
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.models.video_unet import VideoUNet
from pipelines.networks import Stage
from pipelines.stage_state import StageState
from pipelines.stages import Sampling, finish
from pipelines.tensors import Latents

Z, H, W = 4, 4, 6
SAMPLING = Sampling(sampler=SamplerConfig(name="dpm_solver", num_steps=3), guidance_scale=1.7, seed=11)
NOISE = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=(H, W),
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=2,
    )


def _stage(unet: UNet2DConditionModel, num_frames: int, context_level: int | None = None, context: int = 5) -> Stage:
    torch.manual_seed(num_frames)
    temporal = TemporalConfig(
        mix="scalar",
        cross_attention_dim=None,
        context_channels=context,
        context_width=16,
        embeds_context_level=context_level is not None,
    )
    network = VideoUNet(unet, temporal)
    for parameter in network.temporal_parameters():
        # A fresh model is the image model; these must do something.
        torch.nn.init.normal_(parameter, std=0.05)
    config = StageConfig(
        temporal=temporal,
        noise=NOISE,
        sampler=SAMPLING.sampler,
        guidance_scale=1.7,
        num_frames=num_frames,
        fps=2.0,
        height=8 * H,
        width=8 * W,
        context_level=context_level,
    )
    network = network.eval().requires_grad_(False)
    return Stage(network, config, NoiseSchedule(NOISE), torch.device("cpu"), torch.float32)


def _conditions(b: int) -> tuple[Conditions, Conditions]:
    return Conditions(text=torch.ones(b, 2, 8)), Conditions(text=torch.zeros(b, 2, 8))


def _collect(states: Iterator[StageState]) -> list[StageState]:
    return list(states)


def test_chain_makes_8_then_29_then_113_frames_and_keeps_key_frames(unet: UNet2DConditionModel) -> None:
    given, nothing = _conditions(2)
    first = finish(stages.keyframes(_stage(unet, 8, context=0), given, nothing, SAMPLING, (2, 8, Z, H, W)))
    interpolation = _stage(unet, 5, context_level=30)
    second = finish(stages.interpolate(interpolation, first, given, nothing, SAMPLING, gaps_at_once=3))
    third = finish(stages.interpolate(interpolation, second, given, nothing, SAMPLING))
    assert [clip.shape[1] for clip in (first, second, third)] == [8, 29, 113]
    assert torch.equal(second[:, ::4], first)
    assert torch.equal(third[:, ::4], second)
    assert torch.isfinite(third).all()


def test_interpolation_of_a_gap_depends_on_its_own_key_frames_alone(unet: UNet2DConditionModel) -> None:
    torch.manual_seed(3)
    keys = torch.randn(1, 5, Z, H, W)
    changed = keys.clone()
    changed[:, 4] += 1
    stage, (given, nothing) = _stage(unet, 5), _conditions(1)
    before, after = (
        finish(stages.interpolate(stage, clip, given, nothing, SAMPLING, gaps_at_once=2)) for clip in (keys, changed)
    )
    # Other clips of a batch may change a sum's order, never more.
    assert_close(before[:, :13], after[:, :13], atol=1e-4, rtol=1e-4)
    assert (before[:, 13:16] - after[:, 13:16]).abs().max() > 1e-3


@pytest.mark.parametrize("num_context", [0, 1, 2])
def test_roll_out_keeps_given_frames_and_reaches_its_length(unet: UNet2DConditionModel, num_context: int) -> None:
    torch.manual_seed(4)
    given_frames = torch.randn(2, num_context, Z, H, W)
    given, nothing = _conditions(2)
    stage = _stage(unet, 6, context_level=20)
    video = finish(stages.predict(stage, given_frames, given, nothing, SAMPLING, 13))
    assert video.shape == (2, 13, Z, H, W)
    assert torch.equal(video[:, :num_context], given_frames)
    longer = finish(stages.predict(stage, given_frames, given, nothing, SAMPLING, 17))
    assert torch.equal(longer[:, :13], video)


@pytest.mark.parametrize("name", ["keyframes", "prediction", "interpolation"])
def test_stage_stopped_after_any_step_goes_on_to_the_same_bits(unet: UNet2DConditionModel, name: str) -> None:
    def run(state: StageState | None) -> Iterator[StageState]:
        given, nothing = _conditions(1)
        if name == "keyframes":
            return stages.keyframes(_stage(unet, 3, context=0), given, nothing, SAMPLING, (1, 3, Z, H, W), state)
        if name == "prediction":
            return stages.predict(_stage(unet, 4, 10), frames(1), given, nothing, SAMPLING, 7, state)
        return stages.interpolate(_stage(unet, 5, 10), frames(4), given, nothing, SAMPLING, gaps_at_once=2, state=state)

    def frames(t: int) -> Latents:
        return torch.randn((1, t, Z, H, W), generator=torch.Generator().manual_seed(5))

    undisturbed = _collect(run(None))
    result = undisturbed[-1].done
    assert result is not None
    for stopped in undisturbed[:-1]:
        stored = {key: tensor.clone() for key, tensor in stopped.to_tensors().items()}
        assert torch.equal(finish(run(StageState.from_tensors(stored))), result)
    assert _collect(run(undisturbed[-1])) == []

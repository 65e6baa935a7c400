"""The upsampler as a stage: windows, segments, given frames, noise of a known level, any size."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from pipelines import stages
from pipelines.config import StageConfig
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import finish as finish_sampler
from pipelines.diffusion.sampler_state import initial_state
from pipelines.diffusion.sampling import SamplerConfig, SamplerName, sample
from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.models.video_unet import VideoUNet
from pipelines.networks import Stage
from pipelines.stage_inputs import frame_noise
from pipelines.stage_state import StageState
from pipelines.stages import Sampling, finish

SAMPLING = Sampling(sampler=SamplerConfig(name="dpm_solver", num_steps=3), guidance_scale=1.0, seed=5)
NOISE = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
LEVEL, WINDOW = 150, 4
NOTHING = Conditions(), Conditions()


def make_stage(noise: NoiseConfig = NOISE, level: int = LEVEL) -> Stage:
    torch.manual_seed(1)
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        add_attention=False,
        class_embed_type="timestep",
    )
    temporal = TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3, context_width=8)
    network = VideoUNet(unet, temporal)
    for parameter in network.temporal_parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    config = StageConfig(
        temporal=temporal,
        noise=noise,
        sampler=SAMPLING.sampler,
        guidance_scale=1.0,
        num_frames=WINDOW,
        fps=4.0,
        height=32,
        width=32,
        context_level=level,
    )
    schedule = NoiseSchedule(noise)
    return Stage(network.eval().requires_grad_(False), config, schedule, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return make_stage()


@pytest.fixture
def low() -> Tensor:
    return torch.rand((2, 7, 3, 6, 8), generator=torch.Generator().manual_seed(2)) * 2 - 1


def upsample(stage: Stage, low: Tensor, sampling: Sampling = SAMPLING, **options: object) -> Tensor:
    return finish(stages.upsample(stage, low, *NOTHING, sampling, **options))


def test_clip_of_one_window_equals_the_network_sampled_plainly(stage: Stage, low: Tensor) -> None:
    clip = low[:, :WINDOW]
    level = torch.full((2,), float(LEVEL))
    noise = frame_noise(tuple(clip.shape), SAMPLING.seed, 0, "low resolution")
    alpha, sigma = stage.schedule.alpha(level)[0], stage.schedule.sigma(level)[0]
    noisy = (alpha * clip + sigma * noise).flatten(0, 1)
    context = functional.interpolate(noisy, scale_factor=4, mode="bilinear").unflatten(0, (2, WINDOW))
    denoise = partial(stage.network, conditions=Conditions(context=context, class_labels=level.long()))
    start = frame_noise((2, WINDOW, 3, 24, 32), SAMPLING.seed, 0, "start")
    plain = finish_sampler(sample(SAMPLING.sampler, denoise, stage.schedule, initial_state(start), seed="none"))
    assert_close(upsample(stage, clip), plain, atol=1e-5, rtol=1e-5)


def test_network_is_told_the_level_of_the_noise_that_is_put_on(stage: Stage, low: Tensor) -> None:
    told: list[Conditions] = []
    hook = stage.network.register_forward_pre_hook(lambda _, inputs: told.append(inputs[2]))
    one = replace(SAMPLING, sampler=replace(SAMPLING.sampler, num_steps=1))
    upsample(stage, low[:, :WINDOW], one)
    hook.remove()
    assert told[0].class_labels.tolist() == [LEVEL, LEVEL]
    small = functional.interpolate(low[:, :WINDOW].flatten(0, 1), scale_factor=4, mode="bilinear")
    alpha = float(stage.schedule.alpha(torch.tensor([float(LEVEL)])))
    signal = told[0].context.flatten(0, 1)
    assert_close((signal * small).mean() / small.square().mean(), torch.tensor(alpha), atol=0.1, rtol=0)


def test_windows_blend_frames_into_each_other(stage: Stage, low: Tensor) -> None:
    changed = low.clone()
    changed[:, -1] += 0.5
    before, after = upsample(stage, low), upsample(stage, changed)
    assert before.shape == (2, 7, 3, 24, 32)
    moved = (before - after).abs().amax(dim=(0, 2, 3, 4))
    assert moved[-1] > 1e-3
    assert moved[3] > 0, "the last window begins at frame 3"


@pytest.mark.parametrize("name", ["ddim", "dpm_solver", "unipc", "heun"])
def test_held_frames_come_out_as_given_and_steer_the_others(low: Tensor, name: SamplerName) -> None:
    stage = make_stage(NoiseConfig(prediction="epsilon"))
    sampling = replace(SAMPLING, sampler=SamplerConfig(name=name, num_steps=4))
    free = upsample(stage, low, sampling)
    known = torch.rand((2, 2, 3, 24, 32), generator=torch.Generator().manual_seed(7))
    held = upsample(stage, low, sampling, known=known)
    assert torch.equal(held[:, :2], known)
    assert (held[:, 2] - free[:, 2]).abs().max() > 1e-3


def test_held_frames_walk_straight_from_their_noise_to_what_they_are(low: Tensor) -> None:
    stage = make_stage(NoiseConfig(prediction="epsilon"))
    sampling = replace(SAMPLING, sampler=SamplerConfig(name="ddim", num_steps=4))
    known = torch.rand((2, 2, 3, 24, 32), generator=torch.Generator().manual_seed(7))
    start = frame_noise((2, 2, 3, 24, 32), SAMPLING.seed, 0, "start")
    alpha, sigma = (
        level(torch.tensor([999.0, 749, 499, 249])) for level in (stage.schedule.alpha, stage.schedule.sigma)
    )
    noise = (start - alpha[0] * known) / sigma[0]
    states = stages.upsample(stage, low, *NOTHING, sampling, known=known)
    for step, state in zip((1, 2, 3), states, strict=False):
        expected = alpha[step] * known + sigma[step] * noise
        assert_close(state.sampler.latents[:, :2], expected, atol=1e-4, rtol=1e-4)


def test_segments_share_frames_and_noise(stage: Stage, low: Tensor) -> None:
    first = upsample(stage, low[:, :5])
    second = upsample(stage, low[:, 3:], known=first[:, 3:5], first_frame=3)
    assert torch.equal(second[:, :2], first[:, 3:5])
    whole = frame_noise((2, 7, 3, 4, 6), 1, 0, "start")
    assert torch.equal(frame_noise((2, 4, 3, 4, 6), 1, 3, "start"), whole[:, 3:])


def test_stopped_upsampling_goes_on_to_the_same_bits(stage: Stage, low: Tensor) -> None:
    undisturbed = list(stages.upsample(stage, low, *NOTHING, SAMPLING))
    for stopped in undisturbed[:-1]:
        stored = StageState.from_tensors({name: tensor.clone() for name, tensor in stopped.to_tensors().items()})
        rest = stages.upsample(stage, low, *NOTHING, SAMPLING, state=stored)
        assert torch.equal(finish(rest), undisturbed[-1].done)
    assert list(stages.upsample(stage, low, *NOTHING, SAMPLING, state=undisturbed[-1])) == []


def test_large_frames_far_from_borders_equal_their_tiles(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    # Norms take their statistics over all pixels they see; with fixed ones the application is purely convolutional.
    def fixed(hidden: Tensor, _: int, weight: Tensor, bias: Tensor, __: float) -> Tensor:
        shape = (1, -1, *(1,) * (hidden.ndim - 2))
        return 0.7 * hidden * weight.view(shape) + bias.view(shape)

    monkeypatch.setattr(functional, "group_norm", fixed)
    random = torch.Generator().manual_seed(3)
    noisy, context = (torch.randn((1, 3, 3, 128, 192), generator=random) for _ in range(2))
    label, timestep = torch.tensor([LEVEL]), torch.tensor([500.0])

    def predict(columns: slice) -> Tensor:
        conditions = Conditions(context=context[..., columns], class_labels=label)
        return stage.network(noisy[..., columns], timestep, conditions)

    whole, tile = predict(slice(0, 192)), predict(slice(32, 160))
    # Forty columns are more than the network sees to either side.
    assert_close(tile[..., 40:-40], whole[..., 72:-72], atol=1e-4, rtol=1e-4)
    assert (tile[..., :4] - whole[..., 32:36]).abs().max() > 1e-2, "at its border a tile differs"


@pytest.mark.parametrize(("factor", "size"), [(1, (24, 32)), (4, (6, 8))])
def test_size_of_the_latents_follows_the_autoencoder(low: Tensor, factor: int, size: tuple[int, int]) -> None:
    assert upsample(make_stage(), low, factor=factor).shape[-2:] == size


def test_stage_that_starts_from_the_low_resolution_needs_no_trained_network(low: Tensor) -> None:
    stage = make_stage(level=0)
    for parameter in stage.network.unet.conv_out.parameters():
        parameter.zero_()
    anchored = replace(stage, config=replace(stage.config, low_deviation=0.02))
    large = functional.interpolate(low.flatten(0, 1), scale_factor=4, mode="bilinear").unflatten(0, (2, 7))
    assert (upsample(anchored, low) - large).std() < 0.05
    assert (upsample(stage, low) - large).std() > 0.1

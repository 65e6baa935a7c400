import pytest
import torch
from torch.testing import assert_close

from pipelines.diffusion.guidance import guide, noise_interval, rising_scale
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import finish, initial_state
from pipelines.diffusion.sampling import SamplerConfig, sample, sampling_timesteps
from pipelines.randomness import generator

SHAPE = (2, 3, 4, 5, 6)
TIMESTEP = torch.tensor([400.0, 400.0])


def draw(*keys: int | str) -> torch.Tensor:
    return torch.randn(SHAPE, generator=generator(*keys))


def network(condition: torch.Tensor):
    """A network conditioned by `condition`, one row of channels per clip, that counts its calls."""

    def denoise(noisy, timestep):
        denoise.calls += 1
        shift = condition[:, None, :, None, None] * torch.cos(timestep / 500).view(-1, 1, 1, 1, 1)
        return torch.tanh(noisy + shift)

    denoise.calls = 0
    return denoise


@pytest.fixture
def pair():
    given, without = draw("given")[:, 0, :, 0, 0], torch.zeros(2, 4)
    return network(given), network(without)


@pytest.mark.parametrize("scale", [-1.0, 0.5, 2.0, 13.0])
def test_guidance_is_equation_4(pair, scale):
    conditional, unconditional = pair
    noisy = draw("noisy")
    without, given = unconditional(noisy, TIMESTEP), conditional(noisy, TIMESTEP)
    expected = torch.empty(SHAPE)
    for index in range(noisy.numel()):
        f, f_c = without.flatten()[index], given.flatten()[index]
        expected.view(-1)[index] = f + scale * (f_c - f)
    assert_close(guide(conditional, unconditional, scale)(noisy, TIMESTEP), expected)


def test_scale_one_is_the_conditional_prediction_bit_for_bit(pair):
    conditional, unconditional = pair
    noisy = draw("noisy")
    assert torch.equal(guide(conditional, unconditional, 1.0)(noisy, TIMESTEP), conditional(noisy, TIMESTEP))
    assert unconditional.calls == 0


def test_scale_zero_is_the_unconditional_prediction_bit_for_bit(pair):
    conditional, unconditional = pair
    noisy = draw("noisy")
    assert torch.equal(guide(conditional, unconditional, 0.0)(noisy, TIMESTEP), unconditional(noisy, TIMESTEP))
    assert conditional.calls == 0


def test_scale_per_frame_guides_each_frame_by_its_own(pair):
    conditional, unconditional = pair
    noisy, scales = draw("noisy"), rising_scale(1.0, 2.5, 3)
    assert scales.tolist() == [1.0, 1.75, 2.5]
    guided = guide(conditional, unconditional, scales)(noisy, TIMESTEP)
    for frame, scale in enumerate(scales.tolist()):
        alone = guide(conditional, unconditional, scale)(noisy, TIMESTEP)
        assert_close(guided[:, frame], alone[:, frame])


def test_scale_per_frame_of_another_length_is_refused(pair):
    conditional, unconditional = pair
    with pytest.raises(ValueError, match="one per frame"):
        guide(conditional, unconditional, torch.ones(4))(draw("noisy"), TIMESTEP)


def test_guidance_acts_inside_its_interval_only(pair):
    conditional, unconditional = pair
    noisy = draw("noisy")
    limited = guide(conditional, unconditional, 4.0, interval=(300.0, 500.0))
    always = guide(conditional, unconditional, 4.0)
    for timestep in (300.0, 400.0, 500.0):
        at = torch.full((2,), timestep)
        assert torch.equal(limited(noisy, at), always(noisy, at))
    calls = unconditional.calls
    for timestep in (299.0, 501.0):
        at = torch.full((2,), timestep)
        assert torch.equal(limited(noisy, at), conditional(noisy, at))
    assert unconditional.calls == calls


@pytest.mark.parametrize("scale", [0.0, 4.0])
def test_interval_is_decided_per_clip(pair, scale):
    conditional, unconditional = pair
    noisy, timestep = draw("noisy"), torch.tensor([400.0, 900.0])
    limited = guide(conditional, unconditional, scale, interval=(300.0, 500.0))(noisy, timestep)
    assert_close(limited[0], guide(conditional, unconditional, scale)(noisy, timestep)[0])
    assert_close(limited[1], conditional(noisy, timestep)[1])


def test_noise_interval_holds_exactly_the_timesteps_between_two_noise_ratios():
    schedule = NoiseSchedule(NoiseConfig(prediction="epsilon"))
    first, last = noise_interval(schedule, 0.28, 5.42)
    ratios = []
    bar = 1.0
    for index in range(1000):
        bar *= 1 - (0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * index / 999) ** 2
        ratios.append(((1 - bar) / bar) ** 0.5)
    inside = [index for index, ratio in enumerate(ratios) if 0.28 <= ratio <= 5.42]
    assert (first, last) == (inside[0], inside[-1])
    assert 0 < first < last < 999


def test_noise_interval_of_edm_is_a_quarter_of_the_logs():
    first, last = noise_interval(NoiseSchedule(NoiseConfig(prediction="edm")), 0.28, 5.42)
    assert torch.tensor([4 * first, 4 * last]).exp().tolist() == pytest.approx([0.28, 5.42])


def test_negative_prompt_is_the_unconditional_side(pair):
    """With s = 2 the result lies as far beyond the prompt as the negative prompt lies before it."""
    conditional, _ = pair
    negative = network(-torch.ones(2, 4))
    noisy = draw("noisy")
    guided = guide(conditional, negative, 2.0)(noisy, TIMESTEP)
    assert_close((guided + negative(noisy, TIMESTEP)) / 2, conditional(noisy, TIMESTEP))


def test_guided_sampling_of_gaussian_data_follows_the_guided_mean(gaussian_network, start):
    """Guiding from N(0, 1) to N(mean, 1) by s is the exact model of N(s mean, 1), for which DDIM has a closed form.

    It carries the mean along exactly and turns the rest by the angle of each step, keeping its cosine.
    """
    config, mean, scale = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True), 0.3, 2.5
    denoise = guide(gaussian_network(config, mean, 1.0), gaussian_network(config, 0.0, 1.0), scale)
    sampler = SamplerConfig(name="ddim", num_steps=20)
    latents = finish(sample(sampler, denoise, NoiseSchedule(config), initial_state(start), seed=0))
    timesteps = sampling_timesteps(sampler, config).double()
    angles = torch.cat([torch.acos(NoiseSchedule(config).alpha(timesteps)), torch.zeros(1)])
    kept = torch.cos(angles.diff()).prod().item()
    assert_close(latents, kept * start + scale * mean, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_guidance_of_half_precision_networks_is_combined_in_float32(dtype):
    given, without = draw("given").to(dtype), draw("without").to(dtype)
    guided = guide(lambda x, t: given, lambda x, t: without, 13.0)(draw("noisy"), TIMESTEP)
    assert guided.dtype == torch.float32
    exact = without.double() + 13.0 * (given.double() - without.double())
    assert_close(guided.double(), exact, rtol=1e-6, atol=1e-5)


def test_contradictory_guidance_is_refused(pair):
    conditional, unconditional = pair
    with pytest.raises(ValueError, match="empty"):
        guide(conditional, unconditional, 2.0, interval=(5.0, 4.0))
    with pytest.raises(ValueError, match="low < high"):
        noise_interval(NoiseSchedule(NoiseConfig(prediction="epsilon")), 2.0, 1.0)
    with pytest.raises(ValueError, match="no timestep"):
        noise_interval(NoiseSchedule(NoiseConfig(prediction="epsilon")), 50.0, 60.0)

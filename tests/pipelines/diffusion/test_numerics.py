"""Where the arithmetic is delicate: pure noise, the clean end, one step, many steps, half precision, dead networks."""

from decimal import Decimal, localcontext

import pytest
import torch
from torch.testing import assert_close

from pipelines.diffusion.guidance import guide
from pipelines.diffusion.multistep import corrector_weights
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.objective import denoising_loss
from pipelines.diffusion.sampler_state import finish, initial_state
from pipelines.diffusion.sampling import SAMPLERS, SamplerConfig, sample, sampling_timesteps
from pipelines.diffusion.solvers import Level, ancestral_sigma, trajectory

EPSILON = NoiseConfig(prediction="epsilon")
ZERO_SNR = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
EDM = NoiseConfig(prediction="edm")
NOISES = [pytest.param(EPSILON, id="epsilon"), pytest.param(ZERO_SNR, id="zero-snr"), pytest.param(EDM, id="edm")]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("noise", NOISES)
def test_single_step_is_the_estimate_of_the_clean_latents(network, start, name, noise):
    schedule = NoiseSchedule(noise)
    config = SamplerConfig(name=name, num_steps=1)
    latents = finish(sample(config, network(noise), schedule, initial_state(start), seed=0))
    timestep = sampling_timesteps(config, noise).repeat(2)
    assert_close(latents, schedule.denoised(start, network(noise)(start, timestep), timestep), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("num_steps", [2, 3, 4])
@pytest.mark.parametrize("noise", NOISES)
def test_few_steps_are_finite(network, start, name, num_steps, noise):
    config = SamplerConfig(name=name, num_steps=num_steps)
    for state in sample(config, network(noise), NoiseSchedule(noise), initial_state(start), seed=0):
        assert torch.isfinite(state.latents).all()
        assert all(torch.isfinite(value).all() for value in state.history.values())


@pytest.mark.parametrize(("name", "eta"), [("ddim", 1.0), ("unipc", 0.0)])
def test_a_thousand_steps_in_float32_stay_close_to_float64(gaussian_network, start, name, eta):
    config = SamplerConfig(name=name, num_steps=1000, eta=eta)
    denoise = gaussian_network(ZERO_SNR, 0.7, 0.4)
    arguments = (config, denoise, NoiseSchedule(ZERO_SNR))
    single = finish(sample(*arguments, initial_state(start), seed=2))
    double = finish(sample(*arguments, initial_state(start.double()), seed=2))
    assert (single.double() - double).abs().max() < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
def test_latents_of_edm_noise_keep_unit_scale(gaussian_network, start, name):
    """Samples of sigma 700 would lose their signal in a half-precision network; in this form they never grow."""
    config = SamplerConfig(name=name, num_steps=25)
    states = sample(config, gaussian_network(EDM, 0.0, 1.0), NoiseSchedule(EDM), initial_state(start), seed=0)
    for state in states:
        assert 0.5 < state.latents.std() < 1.5


def test_levels_next_to_the_clean_end_are_exact():
    """1 - alpha_bar of the first timestep is its beta; float32 tables keep 4 digits of it, double ones all."""
    sigma = trajectory(NoiseSchedule(EPSILON), torch.tensor([0.0]))[0].sigma
    assert sigma**2 == pytest.approx(0.00085, rel=1e-12)
    timesteps = sampling_timesteps(SamplerConfig(name="heun", num_steps=10), EDM)
    assert trajectory(NoiseSchedule(EDM), timesteps)[-2].noise_ratio == pytest.approx(0.002, rel=1e-6)


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_first_step_from_pure_noise_keeps_nothing_of_it_when_ancestral(start, name):
    """The posterior of x' given pure noise is q(x' | x0): old noise that stays in is an error of rounding."""
    schedule = NoiseSchedule(ZERO_SNR)
    timesteps = torch.tensor([999.0, 640.0])
    levels = trajectory(schedule, timesteps)
    assert (levels[0].alpha, levels[0].sigma) == (0.0, 1.0)
    assert ancestral_sigma(levels[0], levels[1]) == pytest.approx(levels[1].sigma, rel=1e-15)
    results = []
    for noise in (start, start.flip(0)):
        # x0 = 0 whatever the noise.
        options = {"eta": 1.0} if name == "ddim" else {}
        states = SAMPLERS[name](
            lambda x, t: torch.zeros_like(x), schedule, initial_state(noise), timesteps, seed=4, **options
        )
        results.append(next(states).latents)
    assert torch.equal(results[0], results[1])


def test_level_of_pure_noise_and_of_clean_latents_have_infinite_ratios():
    assert Level(alpha=0.0, sigma=1.0).noise_ratio == float("inf")
    assert Level(alpha=0.0, sigma=1.0).log_ratio == float("-inf")
    assert Level(alpha=1.0, sigma=0.0).log_ratio == float("inf")


@pytest.mark.parametrize("h", [2e-3, 0.05, 1.0, 30.0])
@pytest.mark.parametrize("position", [-0.4, -1.0, -3.0])
def test_corrector_weights_keep_their_digits(h, position):
    """The moments are differences of almost equal numbers when h is small; compared with 60 digits."""
    with localcontext() as context:
        context.prec = 60
        step = Decimal(h)
        phi_1 = (-step).exp() - 1
        phi_2 = -phi_1 / step - 1
        phi_3 = -phi_2 / step - Decimal("0.5")
        back = (phi_2 / phi_1 - 2 * phi_3 / phi_1) / (1 - Decimal(position))
        here = phi_2 / phi_1 - back
    assert corrector_weights(h, position) == (
        pytest.approx(float(back), rel=1e-6),
        pytest.approx(float(here), rel=1e-6),
    )


def test_corrector_weights_after_a_step_from_pure_noise_forget_the_noise():
    back, here = corrector_weights(0.7, float("-inf"))
    assert back == 0.0
    assert 0 < here < 1


def test_network_that_answers_zero_gives_finite_guided_samples(start):
    def dead(noisy, timestep):
        return torch.zeros_like(noisy)

    denoise = guide(dead, dead, 7.5)
    latents = finish(
        sample(SamplerConfig(name="ddim", num_steps=5), denoise, NoiseSchedule(ZERO_SNR), initial_state(start), seed=0)
    )
    assert torch.isfinite(latents).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("noise", NOISES)
def test_guided_half_precision_network_stays_near_the_exact_result(network, start, dtype, noise):
    """The whole chain with a network that rounds its input and output: no sum or difference adds to its error."""

    def half(noisy, timestep):
        return network(noise)(noisy.to(dtype).float(), timestep).to(dtype)

    def other(denoise):
        return lambda noisy, timestep: denoise(noisy * 0.9, timestep)

    schedule, config = NoiseSchedule(noise), SamplerConfig(name="unipc", num_steps=20)
    rounded = finish(sample(config, guide(half, other(half), 3.0), schedule, initial_state(start), seed=0))
    exact = network(noise)
    expected = finish(sample(config, guide(exact, other(exact), 3.0), schedule, initial_state(start), seed=0))
    assert (rounded - expected).abs().max() < 60 * torch.finfo(dtype).eps * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("noise", NOISES)
def test_loss_under_autocast_is_float32_and_close(network, start, dtype, noise):
    schedule = NoiseSchedule(noise)
    timestep = torch.tensor([-0.4, 1.2]) if noise.prediction == "edm" else torch.tensor([0.0, 999.0])
    expected = denoising_loss(network(noise), start, schedule, timestep, start.flip(0))
    with torch.autocast("cpu", dtype=dtype):
        loss = denoising_loss(network(noise), start, schedule, timestep, start.flip(0))
    assert loss.dtype == torch.float32
    assert_close(loss, expected, rtol=0.02, atol=0)

import math
from itertools import pairwise

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
)
from torch.testing import assert_close

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import clip_noise, finish, initial_state
from pipelines.diffusion.sampling import SamplerConfig, sampling_timesteps
from pipelines.diffusion.solvers import Level, ancestral_sigma, sample_ddim, sample_ddpm, sample_euler, sample_heun
from pipelines.randomness import generator

TOLERANCE = {"rtol": 0, "atol": 1e-5}
CONFIGS = [
    pytest.param(NoiseConfig(prediction=prediction, schedule=schedule), id=f"{prediction}-{schedule}")
    for prediction in ("epsilon", "v_prediction")
    for schedule in ("scaled_linear", "linear")
]
STEPS = [("leading", 7), ("leading", 20), ("trailing", 8), ("trailing", 50)]
EDM = NoiseConfig(prediction="edm", sigma_min=0.002, sigma_max=700.0)


def scheduler_options(config: NoiseConfig, spacing: str) -> dict:
    return {
        "prediction_type": config.prediction,
        "beta_schedule": config.schedule,
        "beta_start": config.beta_start,
        "beta_end": config.beta_end,
        "timestep_spacing": spacing,
    }


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "num_steps"), STEPS)
@pytest.mark.parametrize("config", CONFIGS)
def test_ddim_equals_diffusers(network, diffusers_trajectory, start, config, spacing, num_steps, eta):
    scheduler = DDIMScheduler(**scheduler_options(config, spacing), clip_sample=False)
    scheduler.set_timesteps(num_steps)
    expected = diffusers_trajectory(
        scheduler,
        network(config),
        start,
        lambda step: {"eta": eta, "variance_noise": clip_noise(tuple(start.shape), 5, "step", step)},
    )
    timesteps = sampling_timesteps(SamplerConfig(name="ddim", num_steps=num_steps, spacing=spacing), config)
    latents = finish(
        sample_ddim(network(config), NoiseSchedule(config), initial_state(start), timesteps, seed=5, eta=eta)
    )
    assert_close(latents, expected, **TOLERANCE)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_with_zero_terminal_snr_equals_diffusers(network, diffusers_trajectory, start, eta):
    config = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
    scheduler = DDIMScheduler(**scheduler_options(config, "trailing"), rescale_betas_zero_snr=True, clip_sample=False)
    # At eta = 1 its float32 tables leave sqrt(rounding) = 2e-4 of old noise in the step from pure noise.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(20)
    expected = diffusers_trajectory(
        scheduler,
        network(config),
        start,
        lambda step: {"eta": eta, "variance_noise": clip_noise(tuple(start.shape), 5, "step", step)},
    )
    states = sample_ddim(
        network(config), NoiseSchedule(config), initial_state(start), scheduler.timesteps.float(), seed=5, eta=eta
    )
    assert_close(finish(states), expected, **TOLERANCE)


@pytest.mark.parametrize(("spacing", "num_steps"), [*STEPS, ("linspace", 13), ("trailing", 27)])
@pytest.mark.parametrize("config", CONFIGS)
def test_ddpm_equals_diffusers(network, diffusers_trajectory, start, config, spacing, num_steps):
    timesteps = sampling_timesteps(SamplerConfig(name="ddpm", num_steps=num_steps, spacing=spacing), config)
    scheduler = DDPMScheduler(**scheduler_options(config, spacing), clip_sample=False)
    # Given timesteps make diffusers step to the next of them; its own formula for the next is off where N / n is odd.
    scheduler.set_timesteps(timesteps=timesteps.long().tolist())
    expected = diffusers_trajectory(
        scheduler,
        network(config),
        start,
        lambda step: {"generator": [generator(5, clip, "step", step) for clip in range(len(start))]},
    )
    states = sample_ddpm(network(config), NoiseSchedule(config), initial_state(start), timesteps, seed=5)
    assert_close(finish(states), expected, **TOLERANCE)


@pytest.mark.parametrize("config", CONFIGS)
def test_ddim_with_eta_one_equals_ddpm(network, start, config):
    timesteps = sampling_timesteps(SamplerConfig(name="ddpm", num_steps=33), config)
    arguments = (network(config), NoiseSchedule(config), initial_state(start), timesteps)
    ddim, ddpm = finish(sample_ddim(*arguments, seed=5, eta=1.0)), finish(sample_ddpm(*arguments, seed=5))
    assert_close(ddim, ddpm, **TOLERANCE)


@pytest.mark.parametrize(
    ("scheduler_class", "sampler"),
    [(EulerDiscreteScheduler, sample_euler), (HeunDiscreteScheduler, sample_heun)],
)
@pytest.mark.parametrize(("spacing", "num_steps"), [*STEPS, ("linspace", 28)])
@pytest.mark.parametrize("config", CONFIGS)
def test_euler_and_heun_equal_diffusers(
    network, diffusers_trajectory, start, config, spacing, num_steps, scheduler_class, sampler
):
    scheduler = scheduler_class(**scheduler_options(config, spacing))
    scheduler.set_timesteps(num_steps)
    schedule = NoiseSchedule(config)
    timesteps = sampling_timesteps(SamplerConfig(name="euler", num_steps=num_steps, spacing=spacing), config)
    # diffusers keeps x / alpha.
    expected = diffusers_trajectory(scheduler, network(config), start / schedule.alpha(timesteps[:1]).item())
    latents = finish(sampler(network(config), schedule, initial_state(start), timesteps, seed=0))
    assert_close(latents, expected, **TOLERANCE)


@pytest.mark.parametrize("config", CONFIGS)
def test_ddim_with_eta_one_equals_ancestral_euler(network, diffusers_trajectory, start, config):
    scheduler = EulerAncestralDiscreteScheduler(**scheduler_options(config, "trailing"))
    scheduler.set_timesteps(20)
    schedule, timesteps = NoiseSchedule(config), scheduler.timesteps.float()
    expected = diffusers_trajectory(
        scheduler,
        network(config),
        start / schedule.alpha(timesteps[:1]).item(),
        lambda step: {"generator": [generator(5, clip, "step", step) for clip in range(len(start))]},
    )
    states = sample_ddim(network(config), schedule, initial_state(start), timesteps, seed=5, eta=1.0)
    assert_close(finish(states), expected, **TOLERANCE)


@pytest.mark.parametrize("num_steps", [5, 30])
@pytest.mark.parametrize(
    "scheduler",
    [
        EDMEulerScheduler(sigma_data=1.0, sigma_min=0.002, sigma_max=700.0, prediction_type="v_prediction"),
        EulerDiscreteScheduler(
            prediction_type="v_prediction",
            timestep_type="continuous",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
        ),
    ],
    ids=["edm", "stable-video-diffusion"],
)
def test_euler_on_edm_noise_equals_diffusers(network, diffusers_trajectory, start, scheduler, num_steps):
    scheduler.set_timesteps(num_steps)
    schedule = NoiseSchedule(EDM)
    timesteps = sampling_timesteps(SamplerConfig(name="euler", num_steps=num_steps), EDM)
    assert_close(timesteps, scheduler.timesteps.float(), rtol=0, atol=1e-6)
    expected = diffusers_trajectory(scheduler, network(EDM), start / schedule.alpha(timesteps[:1]).item())
    latents = finish(sample_euler(network(EDM), schedule, initial_state(start), timesteps, seed=0))
    assert_close(latents, expected, **TOLERANCE)


def test_ddim_of_gaussian_data_equals_its_closed_form(gaussian_network, start):
    """Every step is linear for Gaussian data; the product of the steps is worked out here in plain floats."""
    mean, std = 0.7, 0.4
    config = NoiseConfig(prediction="epsilon")
    timesteps = [999, 700, 420, 90, 3]
    betas = [(math.sqrt(0.00085) + (math.sqrt(0.012) - math.sqrt(0.00085)) * i / 999) ** 2 for i in range(1000)]
    bars = [math.prod(1 - beta for beta in betas[: t + 1]) for t in timesteps] + [1.0]
    slope, offset = 1.0, 0.0
    for bar, bar_next in pairwise(bars):
        alpha, sigma = math.sqrt(bar), math.sqrt(1 - bar)
        power = bar * std**2 + 1 - bar
        # x0 = mean + gain (x - alpha mean); eps = (x - alpha x0) / sigma
        gain = alpha * std**2 / power
        factor = math.sqrt(bar_next) * gain + math.sqrt(1 - bar_next) * (1 - alpha * gain) / sigma
        shift = math.sqrt(bar_next) * mean - factor * alpha * mean
        slope, offset = factor * slope, factor * offset + shift
    states = sample_ddim(
        gaussian_network(config, mean, std),
        NoiseSchedule(config),
        initial_state(start.double()),
        torch.tensor(timesteps).float(),
        seed=0,
    )
    assert_close(finish(states), slope * start.double() + offset, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_ancestral_samples_of_gaussian_data_have_the_moments_of_their_recursion(gaussian_network, sampler):
    """Each step maps N(m, v) to N(a m + c, a^2 v + s^2); a, c and s are worked out here from the posterior."""
    mean, std = 0.7, 0.4
    config = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
    noise = clip_noise((1, 5, 10, 40, 60), "start")
    timesteps = sampling_timesteps(SamplerConfig(name="ddpm", num_steps=25), config)
    centre, variance = 0.0, 1.0
    bars = [*NoiseSchedule(config).alpha(timesteps.double()).square().tolist(), 1.0]
    for bar, bar_next in pairwise(bars):
        beta = 1 - bar / bar_next
        gain = math.sqrt(bar) * std**2 / (bar * std**2 + 1 - bar)
        of_denoised, of_noisy = math.sqrt(bar_next) * beta / (1 - bar), math.sqrt(1 - beta) * (1 - bar_next) / (1 - bar)
        slope = of_denoised * gain + of_noisy
        centre = slope * centre + of_denoised * mean * (1 - gain * math.sqrt(bar))
        variance = slope**2 * variance + beta * (1 - bar_next) / (1 - bar)
    arguments = (gaussian_network(config, mean, std), NoiseSchedule(config), initial_state(noise), timesteps)
    states = sample_ddpm(*arguments, seed=1) if sampler == "ddpm" else sample_ddim(*arguments, seed=1, eta=1.0)
    latents = finish(states)
    # 120,000 numbers: five standard errors are 1.4 % and 1 % of the deviation.
    deviation = math.sqrt(variance)
    assert latents.mean().item() == pytest.approx(centre, abs=0.014 * deviation)
    assert latents.std().item() == pytest.approx(deviation, rel=0.01)
    assert centre == pytest.approx(mean, abs=1e-6)


def test_ddpm_step_is_the_bayesian_posterior(start):
    """q(x' | x, x0) by multiplying the densities q(x' | x0) and q(x | x')."""
    config = NoiseConfig(prediction="v_prediction")
    schedule, timesteps = NoiseSchedule(config), torch.tensor([800.0, 300.0])
    (alpha, alpha_next), (sigma, sigma_next) = schedule.alpha(timesteps.double()), schedule.sigma(timesteps.double())
    kept = alpha / alpha_next
    likelihood_variance = sigma**2 - kept**2 * sigma_next**2
    variance = 1 / (1 / sigma_next**2 + kept**2 / likelihood_variance)
    noisy, prediction = start.double(), start.double().flip(0)
    denoised = alpha * noisy - sigma * prediction
    mean = variance * (alpha_next * denoised / sigma_next**2 + kept * noisy / likelihood_variance)
    first = next(sample_ddpm(lambda x, t: prediction, schedule, initial_state(noisy), timesteps, seed=9))
    noise = clip_noise(tuple(start.shape), 9, "step", 0).double()
    assert_close(first.latents, mean + variance.sqrt() * noise, rtol=0, atol=1e-12)
    levels = [Level(alpha.item(), sigma.item()), Level(alpha_next.item(), sigma_next.item())]
    assert ancestral_sigma(*levels) == pytest.approx(variance.sqrt().item(), rel=1e-12)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 8])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_heun_calls_the_network_twice_except_at_the_ends(network, start, num_steps, zero_terminal_snr):
    config = NoiseConfig(prediction="v_prediction", zero_terminal_snr=zero_terminal_snr)
    calls = []

    def counted(noisy, timestep):
        calls.append(timestep[0].item())
        return network(config)(noisy, timestep)

    timesteps = sampling_timesteps(SamplerConfig(name="heun", num_steps=num_steps), config)
    states = list(sample_heun(counted, NoiseSchedule(config), initial_state(start), timesteps, seed=0))
    euler_steps = {0, num_steps - 1} if zero_terminal_snr else {num_steps - 1}
    assert len(states) == num_steps
    assert len(calls) == 2 * num_steps - len(euler_steps)


@pytest.mark.parametrize("timesteps", [[], [5.0, 5.0], [5.0, 7.0]])
def test_timesteps_that_do_not_descend_are_refused(network, start, timesteps):
    config = NoiseConfig(prediction="v_prediction")
    states = sample_ddim(network(config), NoiseSchedule(config), initial_state(start), torch.tensor(timesteps), seed=0)
    with pytest.raises(ValueError, match="descend"):
        next(states)

from itertools import pairwise

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EDMDPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch.testing import assert_close

from pipelines.diffusion.multistep import sample_dpm_solver, sample_unipc
from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import finish, initial_state
from pipelines.diffusion.sampling import SAMPLERS, SamplerConfig, sampling_timesteps

TOLERANCE = {"rtol": 0, "atol": 1e-5}
EDM = NoiseConfig(prediction="edm", sigma_min=0.002, sigma_max=80.0)


@pytest.mark.parametrize(
    ("scheduler_class", "sampler"),
    [(DPMSolverMultistepScheduler, sample_dpm_solver), (UniPCMultistepScheduler, sample_unipc)],
)
@pytest.mark.parametrize(
    ("spacing", "num_steps"), [("leading", 7), ("linspace", 12), ("trailing", 1), ("trailing", 2), ("trailing", 50)]
)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["scaled_linear", "linear"])
def test_multistep_samplers_equal_diffusers(
    network, diffusers_trajectory, start, schedule, prediction, spacing, num_steps, scheduler_class, sampler
):
    config = NoiseConfig(prediction=prediction, schedule=schedule)
    scheduler = scheduler_class(
        prediction_type=prediction,
        beta_schedule=schedule,
        beta_start=config.beta_start,
        beta_end=config.beta_end,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(num_steps)
    expected = diffusers_trajectory(scheduler, network(config), start)
    states = sampler(network(config), NoiseSchedule(config), initial_state(start), scheduler.timesteps.float(), seed=0)
    assert_close(finish(states), expected, **TOLERANCE)


@pytest.mark.parametrize("num_steps", [4, 25])
def test_dpm_solver_on_edm_noise_equals_diffusers(network, diffusers_trajectory, start, num_steps):
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_data=1.0, sigma_min=0.002, sigma_max=80.0, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(num_steps)
    schedule = NoiseSchedule(EDM)
    timesteps = sampling_timesteps(SamplerConfig(name="dpm_solver", num_steps=num_steps), EDM)
    expected = diffusers_trajectory(scheduler, network(EDM), start / schedule.alpha(timesteps[:1]).item())
    latents = finish(sample_dpm_solver(network(EDM), schedule, initial_state(start), timesteps, seed=0))
    assert_close(latents, expected, **TOLERANCE)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("heun", 2), ("dpm_solver", 2), ("unipc", 2)])
def test_sampler_converges_to_the_exact_flow_with_its_order(gaussian_network, start, name, order):
    """For Gaussian data the flow keeps (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2)."""
    mean, std = 0.7, 0.4
    schedule, denoise = NoiseSchedule(EDM), gaussian_network(EDM, mean, std)
    first = sampling_timesteps(SamplerConfig(name="ddim", num_steps=1), EDM).double()
    alpha, sigma = schedule.alpha(first).item(), schedule.sigma(first).item()
    noisy = start.double()
    exact = mean + std * (noisy - alpha * mean) / (alpha**2 * std**2 + sigma**2) ** 0.5
    errors = []
    for num_steps in (40, 80, 160):
        timesteps = sampling_timesteps(SamplerConfig(name=name, num_steps=num_steps), EDM).double()
        latents = finish(SAMPLERS[name](denoise, schedule, initial_state(noisy), timesteps, seed=0))
        errors.append((latents - exact).abs().max().item())
    assert errors[0] < 0.1
    for coarse, fine in pairwise(errors):
        assert coarse / fine > 0.85 * 2**order


@pytest.mark.parametrize("name", ["ddim", "euler", "heun", "dpm_solver", "unipc"])
def test_sampler_from_pure_noise_reaches_the_data(gaussian_network, start, name):
    """With zero terminal SNR the exact result is mean + std noise: nothing of the start leaks, nothing is infinite."""
    mean, std = 0.7, 0.4
    config = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
    errors = []
    for num_steps in (25, 100, 400):
        timesteps = sampling_timesteps(SamplerConfig(name=name, num_steps=num_steps), config)
        states = SAMPLERS[name](
            gaussian_network(config, mean, std), NoiseSchedule(config), initial_state(start.double()), timesteps, seed=0
        )
        latents = finish(states)
        assert torch.isfinite(latents).all()
        errors.append((latents - (mean + std * start.double())).abs().max().item())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02

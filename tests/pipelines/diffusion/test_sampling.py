from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch.testing import assert_close

from pipelines.diffusion.noise import NoiseConfig, NoiseSchedule
from pipelines.diffusion.sampler_state import finish, initial_state
from pipelines.diffusion.sampling import SamplerConfig, edm_sigmas, sample, sampling_timesteps
from pipelines.diffusion.solvers import sample_ddim

NOISE = NoiseConfig(prediction="v_prediction")
ZERO_SNR = replace(NOISE, zero_terminal_snr=True)
EDM = NoiseConfig(prediction="edm")


@pytest.mark.parametrize(
    ("spacing", "steps_offset"), [("trailing", 0), ("leading", 0), ("leading", 1), ("linspace", 0)]
)
@pytest.mark.parametrize("num_steps", [2, 7, 50, 128, 250, 999])
def test_timesteps_equal_diffusers(spacing, num_steps, steps_offset):
    scheduler = DDIMScheduler(timestep_spacing=spacing, steps_offset=steps_offset)
    scheduler.set_timesteps(num_steps)
    config = SamplerConfig(name="ddim", num_steps=num_steps, spacing=spacing, steps_offset=steps_offset)
    assert sampling_timesteps(config, NOISE).tolist() == scheduler.timesteps.tolist()


def test_timesteps_of_the_authors_code_are_leading_with_offset_one():
    # latent-diffusion's "uniform": range(0, 1000, 1000 // 200) + 1.
    config = SamplerConfig(name="ddim", num_steps=200, eta=1.0, spacing="leading", steps_offset=1)
    assert sampling_timesteps(config, NOISE).tolist() == list(range(1, 1001, 5))[::-1]


@pytest.mark.parametrize("num_steps", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_zero_terminal_snr_starts_at_the_last_timestep(num_steps, spacing):
    config = SamplerConfig(name="ddim", num_steps=num_steps, spacing=spacing)
    assert sampling_timesteps(config, ZERO_SNR)[0].item() == 999


def test_zero_terminal_snr_with_leading_spacing_is_refused():
    with pytest.raises(ValueError, match="use spacing='trailing'"):
        sampling_timesteps(SamplerConfig(name="ddim", num_steps=50, spacing="leading"), ZERO_SNR)


@pytest.mark.parametrize(("num_steps", "steps_offset"), [(1001, 0), (1000, 1)])
def test_more_steps_than_timesteps_are_refused(num_steps, steps_offset):
    config = SamplerConfig(name="ddim", num_steps=num_steps, spacing="leading", steps_offset=steps_offset)
    with pytest.raises(ValueError, match=r"of 1000|at most 1000"):
        sampling_timesteps(config, NOISE)


def test_edm_levels_follow_karras_equation_5():
    config = SamplerConfig(name="heun", num_steps=18, rho=7.0)
    expected = [(700 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 700 ** (1 / 7))) ** 7 for i in range(18)]
    assert_close(edm_sigmas(config, EDM), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
    assert_close(
        sampling_timesteps(config, EDM),
        torch.tensor(0.25 * np.log(expected), dtype=torch.float32),
        rtol=1e-6,
        atol=1e-7,
    )


def test_edm_single_step_starts_at_the_highest_noise():
    assert edm_sigmas(SamplerConfig(name="euler", num_steps=1), EDM).tolist() == pytest.approx([700.0])


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sample_passes_eta_and_seed_to_ddim(network, start, eta):
    config = SamplerConfig(name="ddim", num_steps=9, eta=eta)
    arguments = (network(NOISE), NoiseSchedule(NOISE), initial_state(start))
    expected = finish(sample_ddim(*arguments, sampling_timesteps(config, NOISE), seed=8, eta=eta))
    assert torch.equal(finish(sample(config, *arguments, seed=8)), expected)
    assert torch.equal(finish(sample(config, *arguments, seed=9)), expected) == (eta == 0)


@pytest.mark.parametrize(
    "change",
    [
        {"num_steps": 0},
        {"eta": 1.5},
        {"eta": -0.1},
        {"name": "heun", "eta": 1.0},
        {"steps_offset": 1},
        {"spacing": "leading", "steps_offset": -1},
        {"rho": 0.0},
    ],
)
def test_contradictory_sampler_config_is_refused(change):
    with pytest.raises(ValueError, match="use"):
        replace(SamplerConfig(name="ddim", num_steps=10), **change)

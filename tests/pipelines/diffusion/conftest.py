"""Fixed functions that stand for a network, so that trajectories can be compared with independent references."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pipelines.diffusion.noise import Denoise, NoiseConfig, NoiseSchedule
from pipelines.randomness import generator

SHAPE = (2, 3, 4, 5, 6)


@pytest.fixture
def start() -> Tensor:
    return torch.randn(SHAPE, generator=generator("start"))


@pytest.fixture
def network() -> Callable[[NoiseConfig], Denoise]:
    """A bounded nonlinear v network that mixes channels, frames and pixels; eps networks answer with the same v.

    Its slopes stay around 1, as a trained network's do: a chaotic one would magnify rounding, not errors of method.
    """
    mixing = 0.3 * torch.randn(4, 4, generator=generator("mixing"))
    phase = torch.randn(4, generator=generator("phase"))

    def predict_v(noisy: Tensor, timestep: Tensor) -> Tensor:
        mixed = (
            torch.einsum("zy,btyhw->btzhw", mixing.to(noisy), noisy) + 0.4 * noisy.roll(1, 1) - 0.2 * noisy.roll(1, 4)
        )
        shift = torch.sin(timestep.to(noisy)[:, None] / 100 + phase.to(noisy))
        return torch.tanh(mixed + shift[:, None, :, None, None])

    def make(config: NoiseConfig) -> Denoise:
        schedule = NoiseSchedule(config)

        def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
            prediction = predict_v(noisy, timestep)
            if config.prediction != "epsilon":
                return prediction
            alpha, sigma = (
                level.view(-1, 1, 1, 1, 1) for level in (schedule.alpha(timestep), schedule.sigma(timestep))
            )
            return sigma * noisy + alpha * prediction

        return denoise

    return make


@pytest.fixture
def gaussian_network() -> Callable[[NoiseConfig, float, float], Denoise]:
    """The optimal network for data that are independent N(mean, std^2): E[x | x_tau] in closed form."""

    def make(config: NoiseConfig, mean: float, std: float) -> Denoise:
        schedule = NoiseSchedule(config)

        def denoise(noisy: Tensor, timestep: Tensor) -> Tensor:
            alpha, sigma = (
                level.view(-1, 1, 1, 1, 1) for level in (schedule.alpha(timestep), schedule.sigma(timestep))
            )
            residual = noisy - alpha * mean
            power = alpha**2 * std**2 + sigma**2
            noise = sigma * residual / power
            if config.prediction == "epsilon":
                return noise
            return alpha * noise - sigma * (mean + alpha * std**2 * residual / power)

        return denoise

    return make


@pytest.fixture
def diffusers_trajectory() -> Callable[..., Tensor]:
    """Sample with a diffusers scheduler; `options(step)` gives the keyword arguments of its step."""

    def run(scheduler, denoise: Denoise, start: Tensor, options: Callable[[int], dict] = lambda step: {}) -> Tensor:
        latents = start
        for step, timestep in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(latents, timestep)
            prediction = denoise(scaled, timestep.float().repeat(len(start)))
            latents = scheduler.step(prediction, timestep, latents, **options(step)).prev_sample
        return latents

    return run

"""Single-step samplers: functions with one signature that yield a `SamplerState` after every step.

Each walks the timesteps from noisy to clean and ends at alpha = 1, sigma = 0; latent-diffusion code ends at the level
of timestep 0 instead (`set_alpha_to_one=False` in diffusers) and so leaves a little noise. Iterating is progress,
stopping is cancelling, and a new iterator from a stored state continues bit for bit.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.diffusion.sampler_state import SamplerState, Seed, clip_noise, next_state
from pipelines.tensors import Latents, Timestep

Timesteps = Float[Tensor, " n"]
"""Noise levels to visit, from noisy to clean, without the clean end itself."""


@dataclass(frozen=True)
class Level:
    """Signal and noise of one point of the trajectory, in double precision."""

    alpha: float
    sigma: float

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha, the noise level of EDM; infinite at pure noise."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf

    @property
    def log_ratio(self) -> float:
        """lambda = ln(alpha / sigma), half the log of the signal-to-noise ratio; -inf at pure noise, inf when clean."""
        if self.alpha == 0:
            return -math.inf
        return math.log(self.alpha) - math.log(self.sigma) if self.sigma > 0 else math.inf


CLEAN = Level(alpha=1.0, sigma=0.0)


def sample_ddim(
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    timesteps: Timesteps,
    *,
    seed: Seed | Sequence[Seed],
    eta: float = 0.0,
) -> Iterator[SamplerState]:
    """DDIM: x' = alpha' x0 + sqrt(sigma'^2 - s^2) eps + s noise, with s = eta sigma'/sigma sqrt(1 - alpha^2/alpha'^2).

    eta = 0 is deterministic, eta = 1 is DDPM (the paper samples most stages with 1).

    Source: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16.
    """
    levels = trajectory(schedule, timesteps)
    for step in remaining_steps(state, timesteps):
        here, there = levels[step], levels[step + 1]
        denoised, noise = estimate(denoise, schedule, state.latents, timesteps[step])
        fresh = eta * ancestral_sigma(here, there)
        latents = there.alpha * denoised + math.sqrt(max(there.sigma**2 - fresh**2, 0.0)) * noise
        if fresh > 0:
            latents = latents + fresh * step_noise(latents, seed, step)
        state = next_state(state, latents)
        yield state


def sample_ddpm(
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    timesteps: Timesteps,
    *,
    seed: Seed | Sequence[Seed],
) -> Iterator[SamplerState]:
    """DDPM: draw x' from the exact posterior q(x' | x, x0) at the estimated x0.

    Source: Ho et al. 2020 (arXiv 2006.11239), equation 7, for the visited timesteps only.
    """
    levels = trajectory(schedule, timesteps)
    for step in remaining_steps(state, timesteps):
        here, there = levels[step], levels[step + 1]
        denoised, _ = estimate(denoise, schedule, state.latents, timesteps[step])
        kept = here.alpha / there.alpha
        beta = 1 - kept**2
        latents = (there.alpha * beta / here.sigma**2) * denoised
        latents = latents + (kept * there.sigma**2 / here.sigma**2) * state.latents
        if there.sigma > 0:
            latents = latents + (there.sigma / here.sigma) * math.sqrt(beta) * step_noise(latents, seed, step)
        state = next_state(state, latents)
        yield state


def sample_euler(
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    timesteps: Timesteps,
    *,
    seed: Seed | Sequence[Seed],
) -> Iterator[SamplerState]:
    """Euler steps of the probability-flow ODE in noise_ratio; no fresh noise, `seed` is not used.

    Dividing x by alpha turns the Euler step into x0 + noise_ratio' eps, which is DDIM with eta = 0.

    Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without its correction.
    """
    return sample_ddim(denoise, schedule, state, timesteps, seed=seed, eta=0.0)


def sample_heun(
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    timesteps: Timesteps,
    *,
    seed: Seed | Sequence[Seed],
) -> Iterator[SamplerState]:
    """Heun's second-order steps of the same ODE, two network calls each; no fresh noise, `seed` is not used.

    A step from pure noise (infinite noise_ratio) or to clean latents (the slope there divides by 0) is an Euler step.

    Source: Karras et al. 2022, algorithm 1.
    """
    levels = trajectory(schedule, timesteps)
    for step in remaining_steps(state, timesteps):
        here, there = levels[step], levels[step + 1]
        denoised, slope = estimate(denoise, schedule, state.latents, timesteps[step])
        latents = there.alpha * denoised + there.sigma * slope
        if here.alpha > 0 and there.sigma > 0:
            _, slope_there = estimate(denoise, schedule, latents, timesteps[step + 1])
            half_width = there.alpha * (there.noise_ratio - here.noise_ratio) / 2
            latents = latents + half_width * (slope_there - slope)
        state = next_state(state, latents)
        yield state


def trajectory(schedule: NoiseSchedule, timesteps: Timesteps) -> list[Level]:
    """Levels of the timesteps in double precision, followed by the clean end."""
    exact = timesteps.double()
    levels = zip(schedule.alpha(exact).tolist(), schedule.sigma(exact).tolist(), strict=True)
    return [*(Level(alpha, sigma) for alpha, sigma in levels), CLEAN]


def remaining_steps(state: SamplerState, timesteps: Timesteps) -> range:
    """Steps still to do.

    Raises:
        ValueError: If the timesteps do not go from noisy to clean, or the state is beyond them.
    """
    if len(timesteps) == 0 or bool((timesteps.diff() >= 0).any()):
        raise ValueError(f"timesteps {timesteps.tolist()} do not descend; give at least one, noisy first, each once")
    if not 0 <= state.step <= len(timesteps):
        raise ValueError(f"state has done {state.step} steps of {len(timesteps)}; it belongs to another sampler config")
    return range(state.step, len(timesteps))


def estimate(
    denoise: Denoise, schedule: NoiseSchedule, latents: Latents, timestep: Float[Tensor, ""]
) -> tuple[Latents, Latents]:
    """Call the network once and return what it says of the clean latents x0 and of the noise eps."""
    timestep_of_clips: Timestep = timestep.to(latents).repeat(latents.shape[0])
    with torch.no_grad():
        prediction = denoise(latents, timestep_of_clips)
        denoised = schedule.denoised(latents, prediction, timestep_of_clips)
        return denoised, schedule.noise(latents, prediction, timestep_of_clips)


def ancestral_sigma(here: Level, there: Level) -> float:
    """Standard deviation of q(x' | x, x0): the fresh noise of a DDPM step, 0 for the step to clean latents."""
    return there.sigma / here.sigma * math.sqrt(1 - (here.alpha / there.alpha) ** 2)


def step_noise(latents: Latents, seed: Seed | Sequence[Seed], step: int) -> Latents:
    """Fresh noise of one step: a function of seed and step alone, so that a state need not hold a generator."""
    return clip_noise(tuple(latents.shape), seed, "step", step).to(latents)

"""Multistep samplers: second order at one network call a step, from the estimates of earlier steps.

Both integrate the data-prediction ODE x' = (sigma'/sigma) x + alpha' (1 - exp(-h)) x0 with h = lambda' - lambda, and
improve on its x0. They add no fresh noise; `seed` is there for the common signature. The first step (nothing to look
back to) and the last (h is infinite) are of first order.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.diffusion.sampler_state import SamplerState, Seed, next_state
from pipelines.diffusion.solvers import Level, Timesteps, estimate, remaining_steps, trajectory
from pipelines.tensors import Latents


def sample_dpm_solver(
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    timesteps: Timesteps,
    *,
    seed: Seed | Sequence[Seed],
) -> Iterator[SamplerState]:
    """DPM-Solver++(2M), midpoint form.

    Source: Lu et al. 2022 (arXiv 2211.01095), algorithm 2.
    """
    levels = trajectory(schedule, timesteps)
    for step in remaining_steps(state, timesteps):
        denoised, _ = estimate(denoise, schedule, state.latents, timesteps[step])
        earlier = _recall(state, "denoised") if step > 0 else denoised
        latents = _predict(levels, step, state.latents, denoised, earlier)
        state = next_state(state, latents, {"denoised": denoised})
        yield state


def sample_unipc(
    denoise: Denoise,
    schedule: NoiseSchedule,
    state: SamplerState,
    timesteps: Timesteps,
    *,
    seed: Seed | Sequence[Seed],
) -> Iterator[SamplerState]:
    """UniPC of order 2 with B(h) = exp(h) - 1: every step first corrects the last one with the new estimate.

    Source: Zhao et al. 2023 (arXiv 2302.04867), algorithms 5 to 8.
    """
    levels = trajectory(schedule, timesteps)
    for step in remaining_steps(state, timesteps):
        denoised, _ = estimate(denoise, schedule, state.latents, timesteps[step])
        latents, earlier, history = state.latents, denoised, {}
        if step > 0:
            latents, earlier = _correct(levels, step, state, denoised), _recall(state, "denoised")
            history = {"denoised_before": earlier}
        history |= {"denoised": denoised, "latents_before": latents}
        state = next_state(state, _predict(levels, step, latents, denoised, earlier), history)
        yield state


def _predict(levels: Sequence[Level], step: int, latents: Latents, denoised: Latents, earlier: Latents) -> Latents:
    """Extrapolate x0 linearly in lambda to the middle of the step, and take the step with it."""
    here, there = levels[step], levels[step + 1]
    if 0 < step < len(levels) - 2:
        # 0 after a step from pure noise, whose length in lambda is infinite.
        reach = _width(here, there) / _width(levels[step - 1], here)
        denoised = denoised + 0.5 * reach * (denoised - earlier)
    return _integrate(here, there, latents, denoised)


def _correct(levels: Sequence[Level], step: int, state: SamplerState, denoised: Latents) -> Latents:
    """Repeat the last step, now that x0 at its end is known (UniC)."""
    before, here = levels[step - 1], levels[step]
    start, x0 = _recall(state, "latents_before"), _recall(state, "denoised")
    if step == 1:
        return _integrate(before, here, start, x0 + 0.5 * (denoised - x0))
    h = _width(before, here)
    position = -_width(levels[step - 2], before) / h
    weight_back, weight_here = corrector_weights(h, position)
    slope_back = (_recall(state, "denoised_before") - x0) / position
    return _integrate(before, here, start, x0 + weight_back * slope_back + weight_here * (denoised - x0))


def corrector_weights(h: float, position: float) -> tuple[float, float]:
    """Weights of the two differences of x0 that make the step exact for x0 quadratic in lambda.

    Args:
        h: width of the step in lambda.
        position: where the estimate before lies, in units of h from the step's start; negative.
    """
    phi_1 = math.expm1(-h)
    phi_2 = -phi_1 / h - 1
    phi_3 = -phi_2 / h - 0.5
    moment_0, moment_1 = phi_2 / phi_1, 2 * phi_3 / phi_1
    weight_back = (moment_0 - moment_1) / (1 - position)
    return weight_back, moment_0 - weight_back


def _integrate(here: Level, there: Level, latents: Latents, denoised: Latents) -> Latents:
    """x' = (sigma'/sigma) x + alpha' (1 - exp(-h)) x0, written without h so that both ends of the range are finite."""
    ratio = there.sigma / here.sigma
    return ratio * latents + (there.alpha - ratio * here.alpha) * denoised


def _width(here: Level, there: Level) -> float:
    return there.log_ratio - here.log_ratio


def _recall(state: SamplerState, name: str) -> Latents:
    history: Mapping[str, Latents] = state.history
    if name not in history:
        raise ValueError(
            f"state at step {state.step} has history {sorted(history)} but this sampler needs {name!r}; "
            "resume with the sampler that saved it"
        )
    return history[name]

"""Guidance: push a prediction away from what the network says without a condition.

All of it wraps denoise functions in another one, so samplers never know. What the condition is decides the name: text
or scene tokens (classifier-free guidance; a negative prompt is the unconditional side with that prompt), or the context
frames (context guidance, Blattmann et al. 2023, equation 4, where other conditions stay on both sides).
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.tensors import Latents, Timestep

Scale = float | Float[Tensor, " scales"]
"""How far to push: 0 is the unconditional prediction, 1 the conditional one; a tensor gives every frame its own."""


def guide(
    conditional: Denoise,
    unconditional: Denoise,
    scale: Scale,
    *,
    interval: tuple[float, float] | None = None,
) -> Denoise:
    """Guide a network: f' = f(z) + s (f(z; c) - f(z)).

    Args:
        conditional: network with the condition.
        unconditional: network without it.
        scale: s; 1.0 calls only the conditional network, 0.0 only the other.
        interval: first and last timestep to guide, ends included (see `noise_interval`); outside, the conditional
            prediction is taken alone, at half the cost.

    Returns:
        Denoise function that answers in float32 or wider: differences times a scale do not survive half precision.

    Raises:
        ValueError: If the interval is empty.
    """
    if interval is not None and interval[0] > interval[1]:
        raise ValueError(f"guidance interval={interval} is empty; give (first, last) with first <= last")

    def denoise(noisy: Latents, timestep: Timestep) -> Latents:
        if _is_number(scale, 1.0):
            return _at_least_float32(conditional(noisy, timestep))
        if _is_number(scale, 0.0):
            return _at_least_float32(unconditional(noisy, timestep))
        without, given = (_at_least_float32(network(noisy, timestep)) for network in (unconditional, conditional))
        return combine(without, given, scale)

    return denoise if interval is None else _limit(denoise, conditional, interval)


def combine(without: Latents, given: Latents, scale: Scale) -> Latents:
    """Equation 4: without + s (given - without), with s per frame if it is a tensor.

    Raises:
        ValueError: If there is not one scale per frame.
    """
    if isinstance(scale, Tensor):
        if len(scale) != given.shape[1]:
            raise ValueError(
                f"{len(scale)} guidance scales for {given.shape[1]} frames; give one per frame, or a number"
            )
        scale_of_frame = rearrange(scale.to(given), "t -> 1 t 1 1 1")
        return without + scale_of_frame * (given - without)
    return without + scale * (given - without)


def rising_scale(first: float, last: float, num_frames: int) -> Float[Tensor, " t"]:
    """Guidance that rises linearly over the frames: little where a given first frame decides anyway.

    Source: Blattmann et al. 2023 (Stable Video Diffusion), appendix D.4.1, from 1.0 to 2.5 or 3.0.
    """
    return torch.linspace(first, last, num_frames)


def noise_interval(schedule: NoiseSchedule, low: float, high: float) -> tuple[float, float]:
    """First and last timestep whose noise ratio sigma / alpha (the sigma of EDM) lies in [low, high].

    Raises:
        ValueError: If the schedule has no such timestep.

    Source: Kynkaanniemi et al. 2024 (arXiv 2404.07724), who guide latent models between 0.28 and 5.42.
    """
    if not 0 < low < high:
        raise ValueError(f"noise interval low={low}, high={high}; use 0 < low < high")
    if schedule.config.prediction == "edm":
        ends = torch.tensor([low, high], dtype=torch.float64)
        first, last = (0.25 * ends.log()).tolist()
        return first, last
    timesteps = torch.arange(schedule.config.num_timesteps, dtype=torch.float64)
    ratio = schedule.sigma(timesteps) / schedule.alpha(timesteps)
    inside = timesteps[(ratio >= low) & (ratio <= high)]
    if len(inside) == 0:
        raise ValueError(f"no timestep has sigma / alpha in [{low}, {high}]; the schedule covers {ratio.aminmax()}")
    return inside[0].item(), inside[-1].item()


def _is_number(scale: Scale, number: float) -> bool:
    return not isinstance(scale, Tensor) and scale == number


def _limit(guided: Denoise, conditional: Denoise, interval: tuple[float, float]) -> Denoise:
    """`guided` for the clips whose timestep lies in the interval, `conditional` for the others."""

    def denoise(noisy: Latents, timestep: Timestep) -> Latents:
        is_inside = (timestep >= interval[0]) & (timestep <= interval[1])
        if is_inside.all():
            return guided(noisy, timestep)
        given = _at_least_float32(conditional(noisy, timestep))
        if not is_inside.any():
            return given
        return torch.where(rearrange(is_inside, "b -> b 1 1 1 1"), guided(noisy, timestep), given)

    return denoise


def _at_least_float32(prediction: Latents) -> Latents:
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))

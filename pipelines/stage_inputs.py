"""What the network of a stage is told beside the noisy latents: given frames, low resolution, for which clip."""

from dataclasses import fields, replace

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from pipelines.diffusion.anchor import anchored
from pipelines.diffusion.frame_masks import Mask, masked_context, noisy_context
from pipelines.diffusion.noise import Denoise, NoiseSchedule, per_clip
from pipelines.diffusion.sampler_state import Seed, clip_noise
from pipelines.diffusion.windows import blend_denoise
from pipelines.models.conditioning import Conditions
from pipelines.networks import Stage
from pipelines.tensors import Context, Frames, Latents, Timestep

Sides = tuple[Conditions, Conditions]
"""What clips show, and what guidance pushes away from."""


def repeat_conditions(conditions: Conditions, times: int) -> Conditions:
    """Give each clip's conditions to `times` windows of it."""
    values = {field.name: getattr(conditions, field.name) for field in fields(conditions)}
    return Conditions(
        **{name: None if value is None else value.repeat_interleave(times, dim=0) for name, value in values.items()}
    )


def with_given_frames(stage: Stage, known: Latents, mask: Mask, sides: Sides, seed: Seed) -> Sides:
    """Add the given frames to one side of guidance and an empty context to the other (equation 4).

    Args:
        stage: its `context_level` is the noise level put on the given frames; None leaves them clean.
        known: latents with the given frames in place.
        mask: 1 on given frames.
        sides: conditions and what guidance pushes away from.
        seed: of the noise.
    """
    conditions, unconditional = sides
    level = stage.config.context_level
    nothing = torch.zeros_like(masked_context(known, mask))
    if level is None:
        return replace(conditions, context=masked_context(known, mask)), replace(unconditional, context=nothing)
    levels = torch.full((len(known),), float(level), device=known.device)
    noise = clip_noise(tuple(known.shape), seed, "context").to(known)
    return (
        replace(conditions, context=noisy_context(known, mask, levels, noise, stage.schedule), context_level=levels),
        replace(unconditional, context=nothing, context_level=levels),
    )


def with_low_resolution(
    stage: Stage, low: Frames, sides: Sides, size: tuple[int, int], seed: Seed, first_frame: int
) -> Sides:
    """Add low-resolution frames, with noise of a level that the network is told, to both sides of guidance.

    Args:
        stage: an upsampler; its `context_level` is the noise level.
        low: low-resolution frames.
        sides: conditions and what guidance pushes away from.
        size: (h, w) of the latents that the low resolution stands beside.
        seed: of the noise.
        first_frame: place of the first frame in the whole clip.

    Source: Blattmann et al. 2023, section 3.4 and equation 5.
    """
    level = _low_level(stage, low)
    noise = frame_noise(tuple(low.shape), seed, first_frame, "low resolution").to(low)
    images = rearrange(stage.schedule.add_noise(low, level, noise), "b t c H W -> (b t) c H W")
    if tuple(images.shape[2:]) != size:
        images = functional.interpolate(images, size, mode="bilinear", align_corners=False)
    context = rearrange(images, "(b t) c H W -> b t c H W", b=low.shape[0])
    has_labels = getattr(stage.network.unet, "class_embedding", None) is not None
    told = {
        "context": context,
        "class_labels": level.long() if has_labels else None,
        "context_level": level if stage.config.temporal.embeds_context_level else None,
    }
    return replace(sides[0], **told), replace(sides[1], **told)


def denoise_in_windows(stage: Stage, conditions: Conditions, num_frames: int, overlap: int) -> Denoise:
    """Denoise clips of any length in windows of the stage's length, each with the context of its own frames."""

    def window(frames: slice) -> Denoise:
        assert conditions.context is not None
        context = conditions.context[:, frames]
        denoise = stage.denoise(replace(conditions, context=context))
        if stage.config.low_deviation is None:
            return denoise
        return anchored(denoise, context, _low_level(stage, context), stage.schedule, stage.config.low_deviation)

    return blend_denoise(window, num_frames, stage.config.num_frames, overlap)


def _low_level(stage: Stage, low: Context) -> Timestep:
    """Level of the noise on the low resolution of each clip."""
    return torch.full((low.shape[0],), float(stage.config.context_level or 0), device=low.device)


def frame_noise(shape: tuple[int, ...], seed: Seed, first_frame: int, purpose: str) -> Latents:
    """Draw unit noise b t z h w frame by frame, so that a frame has the same noise in every segment it belongs to."""
    b, t, z, h, w = shape
    frames = [clip_noise((b, 1, z, h, w), seed, purpose, first_frame + index) for index in range(t)]
    return torch.cat(frames, dim=1)


def keep_frames(denoise: Denoise, known: Float[Tensor, "b n z h w"], schedule: NoiseSchedule) -> Denoise:
    """Denoise with the first n frames held: what is predicted for them is what leads any sampler to `known`.

    They are noisy to the same degree as their neighbours at every step, so the temporal layers carry them on.
    """

    def call(noisy: Latents, timestep: Timestep) -> Latents:
        prediction = denoise(noisy, timestep)
        start, alpha, sigma = noisy[:, : known.shape[1]], schedule.alpha(timestep), schedule.sigma(timestep)
        noise = (start - per_clip(alpha) * known) / per_clip(sigma)
        held = schedule.target(known, timestep, noise).to(prediction)
        return torch.cat([held, prediction[:, known.shape[1] :]], dim=1)

    return call

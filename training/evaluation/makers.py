"""Clips to measure: read from videos, generated as the product generates them, or frame by frame for comparison."""

from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

import torch

from pipelines import stages
from pipelines.conditions import Wish, image_and_video_sides, interpolation_sides, upsampler_sides
from pipelines.config import StageName
from pipelines.generation import Generation
from pipelines.generation_plan import Request, Step, make_plan, sampling_of
from pipelines.models.autoencoder import encode_moments, sample_latents
from pipelines.models.boxes import Box
from pipelines.models.latent_space import latent_scaling
from pipelines.networks import Networks
from pipelines.pixels import to_float
from pipelines.scenes import Scene
from pipelines.stages import Sampling
from pipelines.tensors import Frames
from pipelines.video_io import read_clip
from training.evaluation.reference import Window
from training.upsampling import shrink

Way = Literal["video", "per frame", "blended"]
"""With the temporal layers, by the image model on every frame by itself, or as the mean of neighbours."""


@dataclass(frozen=True, kw_only=True)
class Making:
    """How clips are generated.

    Attributes:
        num_frames: of a clip.
        interpolates: whether key frames are interpolated twice.
        num_steps: denoising steps; default the checkpoint's.
        guidance_scale: default the checkpoint's.
        is_conditional: whether clips are asked for by the labels of real ones.
        from_image: whether the image model makes the first frame.
    """

    num_frames: int
    interpolates: bool = False
    is_conditional: bool = True
    from_image: bool = False
    num_steps: int | None = None
    guidance_scale: float | None = None

    def request(self, networks: Networks, window: Window, *, minutes: float | None = None) -> Request:
        """What the product is asked for."""
        held = networks.stage_names()
        steps: list[Step] = [step for step in ("keyframes", "prediction") if step in held]
        if self.from_image:
            steps.insert(0, "image")
        if self.interpolates and minutes is None:
            steps.append("interpolation")
        kind = networks.condition_kind if self.is_conditional else "nothing"
        scene = window.scene if kind == "scene" else Scene()
        return Request(
            wish=Wish(scene=scene, prompt=window.caption if kind == "text" else ""),
            steps=tuple(steps),
            num_frames=self.num_frames if minutes is None else None,
            minutes=minutes,
            num_steps=self.num_steps,
            guidance_scale=self.guidance_scale,
        )


def read_window(window: Window, size: tuple[int, int]) -> Frames:
    """Read a real clip, scaled to cover (height, width) and cut."""
    images = read_clip(
        window.path,
        num_frames=window.num_frames,
        fps=Fraction(window.fps),
        start_s=Fraction(window.start_s).limit_denominator(30_000),
        size=size,
    )
    return to_float(images)[None]


def generate(networks: Networks, request: Request, seed: int) -> Frames:
    """Generate one clip as `python -m pipelines generate` does."""
    plan = make_plan(networks, request)
    ((_, parts),) = Generation(networks, request, plan, lambda *_: None).clips([seed])
    return to_float(torch.cat(list(parts)))[None]


@torch.inference_mode()
def generate_per_frame(networks: Networks, request: Request, seed: int) -> Frames:
    """Generate the frames of one clip by the image model, each from noise of its own."""
    stage = networks.image_stage()
    name: StageName = "keyframes" if "keyframes" in networks.stage_names() else "prediction"
    sampling = sampling_of(networks.manifest.name, stage.config, name, request, seed)
    if name == "prediction":
        # Its scale is that of context guidance; the image model has no context.
        sampling = replace(sampling, guidance_scale=1.0)
    sides = image_and_video_sides(networks, request.wish)
    assert request.num_frames is not None
    shape = networks.latent_shape(stage.config, request.num_frames)
    latents = stages.finish(stages.keyframes(stage, *sides, sampling, shape))
    return torch.cat(list(stages.decode(networks.decoder, latents)), dim=1)


def generate_from_boxes(networks: Networks, boxes: tuple[Box, ...], seed: int, num_steps: int | None) -> Frames:
    """Generate a frame with vehicles in given places."""
    request = Request(wish=Wish(boxes=boxes), steps=("image",), num_frames=1, num_steps=num_steps)
    return generate(networks, request, seed)


@torch.inference_mode()
def reconstruct(networks: Networks, frames: Frames, way: Way) -> Frames:
    """Encode and decode a clip, with the decoder's temporal layers or without."""
    moments = encode_moments(networks.autoencoder, frames)
    latents = sample_latents(moments, latent_scaling(networks.autoencoder), None)
    decoder = networks.decoder if way == "video" else networks.autoencoder
    return torch.cat(list(stages.decode(decoder, latents)), dim=1)


@torch.inference_mode()
def interpolate(networks: Networks, frames: Frames, way: Way, seed: int, num_steps: int | None) -> Frames:
    """Keep every fourth frame of a clip and put the others back: by the interpolation model, or by blending neighbours.

    Args:
        networks: of the checkpoint.
        frames: 4 n + 1 frames at the highest rate the model was trained for.
        way: "video" or "blended".
        seed: of the noise.
        num_steps: denoising steps; default the checkpoint's.
    """
    if way == "blended":
        share = torch.arange(4).view(4, 1, 1, 1) / 4
        # Decoded in their place, so that both ways show what one decoder makes of the same key frames.
        known = reconstruct(networks, frames, "video")[0, ::4]
        gaps = [torch.lerp(one[None], other[None], share) for one, other in pairwise(known)]
        return torch.cat([*gaps, known[-1:]])[None]
    moments = encode_moments(networks.autoencoder, frames[:, ::4])
    latents = sample_latents(moments, latent_scaling(networks.autoencoder), None)
    request = Request(num_steps=num_steps)
    config = networks.stage_config("interpolation")
    sampling = sampling_of(networks.manifest.name, config, "interpolation", request, seed)
    stage = networks.stage("interpolation")
    sides = interpolation_sides(stage, image_and_video_sides(networks, Wish()), config.fps)
    longer = stages.finish(stages.interpolate(stage, latents, *sides, sampling))
    stage.network.remove()
    return torch.cat(list(stages.decode(networks.decoder, longer)), dim=1)


@torch.inference_mode()
def upsample(networks: Networks, frames: Frames, way: Way, seed: int, num_steps: int | None) -> Frames:
    """Shrink a clip four times and upsample it again, with the upsampler's temporal layers or without.

    Raises:
        ValueError: if the upsampler works in a latent space.
    """
    if networks.upsampler_autoencoder is not None:
        raise ValueError("upsamplers in a latent space are not measured; give a checkpoint with a pixel-space one")
    config = networks.stage_config("upsampler")
    sampler = config.sampler if num_steps is None else replace(config.sampler, num_steps=num_steps)
    sampling = Sampling(sampler=sampler, guidance_scale=config.guidance_scale, seed=seed)
    sides = upsampler_sides(networks, Wish())
    if way == "per frame":
        sides = tuple(replace(side, is_image=torch.ones(1, dtype=torch.bool)) for side in sides)  # type: ignore[assignment]
    stage = networks.stage("upsampler")
    done = stages.finish(stages.upsample(stage, shrink(frames), *sides, sampling))
    stage.network.remove()
    return done.clamp(-1, 1)

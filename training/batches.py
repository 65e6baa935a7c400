"""Samples to tensors: everything random about a sample is drawn here, from its id and epoch and nothing else.

So a sample gets the same noise, timestep, crop and dropout on any worker, in any batch, before and after a restart; and
what follows (training.objectives) is a pure function of weights and batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipelines.diffusion.noise import NoiseSchedule
from pipelines.models.autoencoder import sample_latents
from pipelines.models.boxes import Box
from pipelines.models.latent_space import LatentScaling
from pipelines.models.scene import UNKNOWN
from pipelines.pixels import to_float
from pipelines.randomness import generator
from pipelines.shard_format import LatentClip
from pipelines.tensors import Context, Frames, Latents, Timestep
from training.context import ContextRecipe, draw_context
from training.data import Sample
from training.watch import largest


@dataclass(frozen=True, kw_only=True)
class TensorBatch:
    """Tensors of the samples of one virtual shard, sample by sample along the first axis."""

    def masked(self, keep: Bool[Tensor, " b"]) -> Self:
        """Put zeros in place of the samples that are not kept."""

        def mask(tensor: Tensor) -> Tensor:
            return torch.where(keep.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1)), tensor, 0)

        return self._with_tensors({name: mask(tensor) for name, tensor in self._tensors().items()})

    def to(self, device: torch.device) -> Self:
        """Move all tensors."""
        return self._with_tensors({name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _with_tensors(self, tensors: dict[str, Tensor]) -> Self:
        return replace(self, **tensors)


@dataclass(frozen=True, kw_only=True)
class LatentBatch(TensorBatch):
    """Clips for a denoising objective.

    Attributes:
        latents: clean latents, scaled; one frame for an image model.
        noise: noise to be mixed in.
        timestep: noise level of each clip.
        night: 1 by night, 0 by day, UNKNOWN.
        crowdedness: vehicles in the clip, or UNKNOWN.
        boxes: vehicle boxes of each clip's first frame; None for a clip whose boxes are hidden.
        captions: text of each clip; empty where hidden.
        fps: frames per second of each clip.
        context: known frames; None if the model takes none.
        context_level: noise level of the context.
        is_image: clips whose frames are trained as separate images.
    """

    latents: Latents
    noise: Latents
    timestep: Timestep
    night: Int[Tensor, " b"]
    crowdedness: Int[Tensor, " b"]
    boxes: tuple[tuple[Box, ...] | None, ...] = ()
    captions: tuple[str, ...] = ()
    fps: Float[Tensor, " b"]
    context: Context | None = None
    context_level: Timestep | None = None
    is_image: Bool[Tensor, " b"] | None = None

    def magnitude(self) -> Float[Tensor, " b"]:
        """Largest absolute latent of each clip."""
        return largest(self.latents)


@dataclass(frozen=True, kw_only=True)
class FrameBatch(TensorBatch):
    """Frames for an autoencoder or a pixel model.

    Attributes:
        frames: in [-1, 1].
        noise: for the posterior of the autoencoder, in the size of its latents.
    """

    frames: Frames
    noise: Latents

    def magnitude(self) -> Float[Tensor, " b"]:
        """Largest absolute pixel of each clip."""
        return largest(self.frames)


@dataclass(frozen=True, kw_only=True)
class LatentRecipe:
    """How clips of a shard become a LatentBatch.

    Attributes:
        seed: of the run.
        schedule: noise schedule.
        scaling: of the autoencoder.
        num_frames: frames taken of each clip, at a random place; 1 for an image model.
        label_dropout: probability that a clip's labels are hidden, for guidance.
        max_boxes: boxes kept of a frame, the largest.
        context: known frames of prediction and interpolation; None for none.
        image_share: probability that a clip's frames are trained as separate images.
    """

    seed: int
    schedule: NoiseSchedule
    scaling: LatentScaling
    num_frames: int
    label_dropout: float = 0.1
    max_boxes: int = 16
    context: ContextRecipe | None = None
    image_share: float = 0.0

    def collate(self, samples: Sequence[Sample], clips: Sequence[LatentClip]) -> LatentBatch:
        """Draw everything random and stack the clips.

        Raises:
            ValueError: if a clip has too few frames.
        """
        drawn = [self._draw(sample, clip) for sample, clip in zip(samples, clips, strict=True)]
        names = [name for name in drawn[0] if isinstance(drawn[0][name], Tensor)]
        tensors = {name: torch.cat([values[name] for values in drawn]) for name in names}
        boxes, captions = (tuple(values[name] for values in drawn) for name in ("boxes", "captions"))
        return LatentBatch(**tensors, boxes=boxes, captions=captions)

    def _draw(self, sample: Sample, clip: LatentClip) -> dict[str, Any]:
        random = generator(self.seed, sample.id, sample.epoch)
        start = _window(len(clip.moments), self.num_frames, sample.id, random)
        moments = torch.from_numpy(clip.moments[start : start + self.num_frames].astype("float32"))[None]
        latents = sample_latents(moments, self.scaling, random)
        drawn: dict[str, Any] = {
            "latents": latents,
            "noise": self.schedule.sample_noise(tuple(latents.shape), random),
            "timestep": self.schedule.sample_timesteps(1, random),
            "fps": torch.tensor([clip.fps]),
        }
        is_hidden = _chance(self.label_dropout, random)
        drawn["night"] = _label(clip.night, is_hidden)
        drawn["crowdedness"] = _label(clip.crowdedness, is_hidden)
        drawn["boxes"] = None if is_hidden else _largest_boxes(clip, start, self.max_boxes)
        drawn["captions"] = "" if is_hidden else clip.caption
        if self.context is not None:
            drawn |= draw_context(self.context, latents, self.schedule, random)
        if self.image_share:
            drawn["is_image"] = torch.tensor([_chance(self.image_share, random)])
        return drawn


@dataclass(frozen=True, kw_only=True)
class FrameRecipe:
    """How frames of videos become a FrameBatch.

    Attributes:
        seed: of the run.
        crop: height and width of a random crop, in pixels.
        factor: pixels per latent along a side.
        latent_channels: z.
    """

    seed: int
    crop: tuple[int, int]
    factor: int
    latent_channels: int

    def collate(self, samples: Sequence[Sample], clips: Sequence[Tensor]) -> FrameBatch:
        """Crop and mirror clips of uint8 frames (t H W 3) at random places.

        Raises:
            ValueError: if a frame is smaller than the crop.
        """
        frames, noise = [], []
        for sample, clip in zip(samples, clips, strict=True):
            random = generator(self.seed, sample.id, sample.epoch)
            frames.append(self._crop(clip, sample.id, random))
            height, width = (side // self.factor for side in self.crop)
            noise.append(torch.randn((len(clip), self.latent_channels, height, width), generator=random))
        return FrameBatch(frames=torch.stack(frames), noise=torch.stack(noise))

    def _crop(self, clip: Tensor, name: str, random: torch.Generator) -> Tensor:
        place = []
        for side, size, crop in zip(("high", "wide"), clip.shape[1:3], self.crop, strict=True):
            if size < crop:
                raise ValueError(f"frames of {name} are {size} pixels {side}; crop at most that, not {crop}")
            place.append(int(torch.randint(size - crop + 1, (1,), generator=random)))
        top, left = place
        clip = clip[:, top : top + self.crop[0], left : left + self.crop[1]]
        if _chance(0.5, random):
            clip = clip.flip(2)
        return to_float(clip)


def _window(available: int, wanted: int, name: str, random: torch.Generator) -> int:
    if available < wanted:
        raise ValueError(f"clip {name} has {available} frames, the model takes {wanted}; make shards of longer clips")
    return int(torch.randint(available - wanted + 1, (1,), generator=random))


def _chance(probability: float, random: torch.Generator) -> bool:
    return bool(torch.rand(1, generator=random) < probability)


def _label(value: int | None, is_hidden: bool) -> Int[Tensor, " 1"]:
    return torch.tensor([UNKNOWN if value is None or is_hidden else value])


def _largest_boxes(clip: LatentClip, frame: int, count: int) -> tuple[Box, ...] | None:
    """The nearest vehicles are the largest."""
    if frame >= len(clip.boxes):
        return None
    return tuple(sorted(clip.boxes[frame], key=lambda box: (box[0] - box[2]) * (box[3] - box[1]))[:count])

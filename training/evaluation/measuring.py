"""One job at a time: make a clip, measure it, keep only the numbers. What a worker of an evaluation does."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from pipelines.memory import keep_freed_memory
from pipelines.metrics import clip
from pipelines.metrics.extractors import LoadedExtractor, available
from pipelines.metrics.frames import flicker, motion_error, psnr, split_ends, ssim
from pipelines.metrics.inception import InceptionV3
from pipelines.metrics.perceptual import MIN_SIZE
from pipelines.networks import Networks
from pipelines.pixels import to_uint8
from pipelines.scenes import Scene
from pipelines.tensors import Frames
from training.evaluation import makers
from training.evaluation.makers import Making, Way
from training.evaluation.reader import SceneReader, load_reader
from training.evaluation.reference import Window, large_boxes

Kind = Literal["real", "clip", "decoder", "interpolation", "upsampler", "rollout", "boxes"]
CLIP_NETWORKS, FRAME_NETWORKS = ("i3d-kinetics400",), ("efficientnet-lite0", "inception-v3-fid")
PAIR_NETWORKS = ("stlpips-alex", "stlpips-vgg")
PROBABILITIES = "class probabilities"
NETWORKS = (*CLIP_NETWORKS, *FRAME_NETWORKS, *PAIR_NETWORKS)
FRAMES_SEEN = 8
"""Frames of a clip that networks of single frames see, evenly spread: neighbours are alike. Of roll-outs, all."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to make and measure.

    Attributes:
        kind: what is made; "rollout" is a long clip, of which both ends are measured.
        of: name of the set of clips it belongs to.
        index: its number in the set.
        window: the real clip that it is, is made from, or takes its labels from.
        way: with temporal layers, frame by frame, or by blending neighbours.
        keeps_frames: whether the frames are returned, to be shown.
        scale: size of the video over that of the evaluation; its middle is cut out.
    """

    kind: Kind
    of: str
    index: int
    window: Window
    way: Way = "video"
    keeps_frames: bool = False
    scale: int = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all jobs share.

    Attributes:
        checkpoint: checkpoint folder.
        backbone: another image model for it.
        weights: folder with feature networks.
        reader: weights of the scene reader.
        clip: folder of a CLIP model; None measures no CLIPSIM.
        size: height and width of the clips.
        making: how clips are generated.
        upsampler_steps: denoising steps of the upsampler; default its own.
        minutes: length of a roll-out.
        seed: of all clips.
        device: such as cpu or cuda.
        threads: CPU threads of a worker.
    """

    checkpoint: str
    backbone: str | None = None
    weights: Path
    reader: Path
    clip: Path | None = None
    size: tuple[int, int]
    making: Making
    upsampler_steps: int | None = None
    minutes: float = 1.0
    seed: int = 0
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True)
class Result:
    """Numbers of one clip.

    Attributes:
        of: its set.
        index: its number in it.
        numbers: tensors by name; features n d (one row, or one per frame) under the network's name.
        frames: uint8, if they were to be kept.
    """

    of: str
    index: int
    numbers: Mapping[str, Tensor]
    frames: Tensor | None = field(default=None)


class Measurer:
    """Carries out jobs; networks are loaded when first needed."""

    def __init__(self, settings: Settings) -> None:
        torch.set_num_threads(settings.threads)
        keep_freed_memory()
        self.settings = settings

    @cached_property
    def networks(self) -> Networks:
        """Those of the checkpoint."""
        return Networks(self.settings.checkpoint, device=self.settings.device, backbone=self.settings.backbone)

    @cached_property
    def extractors(self) -> dict[str, LoadedExtractor]:
        """The feature networks that are there."""
        loaded = available(NETWORKS, self.settings.weights)[0]
        for extractor in loaded.values():
            extractor.network.to(self.settings.device)
        return loaded

    @cached_property
    def reader(self) -> SceneReader | None:
        """The scene reader, if it has been trained."""
        return load_reader(self.settings.reader) if self.settings.reader.is_file() else None

    @cached_property
    def similarity(self) -> clip.ClipSimilarity | None:
        """The CLIP model, if there is one."""
        return clip.ClipSimilarity(self.settings.clip) if self.settings.clip else None

    def run(self, job: Job) -> Iterator[Result]:
        """Make the clip of a job and measure it; a roll-out gives two results, one for each end."""
        settings, window = self.settings, job.window
        seed = settings.seed + job.index
        if job.kind == "rollout":
            yield from self._rollout(job, seed)
            return
        if job.kind == "boxes":
            boxes = window.boxes[: self.networks.box_encoder.config.max_boxes]
            frames = makers.generate_from_boxes(self.networks, boxes, seed, settings.making.num_steps)
            yield self._result(job, frames, {"given boxes": torch.tensor(boxes).reshape(-1, 4)})
            return
        numbers: dict[str, Tensor] = {}
        if job.kind == "clip":
            make = makers.generate if job.way == "video" else makers.generate_per_frame
            frames = make(self.networks, settings.making.request(self.networks, window), seed)
        else:
            height, width = settings.size
            frames = _middle(makers.read_window(window, (height * job.scale, width * job.scale)), settings.size)
            if job.kind == "real":
                numbers = {"given boxes": torch.tensor(large_boxes(window).boxes).reshape(-1, 4)}
            else:
                original, frames = frames, self._again(job, frames, seed)
                numbers = self._differences(frames, original)
        yield self._result(job, frames, numbers)

    def _again(self, job: Job, frames: Frames, seed: int) -> Frames:
        if job.kind == "decoder":
            return makers.reconstruct(self.networks, frames, job.way)
        if job.kind == "interpolation":
            return makers.interpolate(self.networks, frames, job.way, seed, self.settings.making.num_steps)
        return makers.upsample(self.networks, frames, job.way, seed, self.settings.upsampler_steps)

    def _rollout(self, job: Job, seed: int) -> Iterator[Result]:
        request = self.settings.making.request(self.networks, job.window, minutes=self.settings.minutes)
        frames = makers.generate(self.networks, request, seed)
        for name, part in zip(("first", "last"), split_ends(frames.shape[1]), strict=True):
            # Only frames are compared: the ends of a roll-out are too short for clips of their own.
            yield self._result(replace(job, of=f"{job.of} {name}"), frames[:, part], {}, sees_clips=False)

    def _result(self, job: Job, frames: Frames, numbers: Mapping[str, Tensor], *, sees_clips: bool = True) -> Result:
        found = {**numbers, **self._features(frames, sees_clips), "asked": _asked(job.window.scene)}
        found["frames"] = torch.tensor(frames.shape[1])
        if frames.shape[1] >= 3:
            found["flicker"] = flicker(frames)
        if self.similarity is not None and job.window.caption:
            found[clip.NAME] = self.similarity.similarity(frames.cpu(), [job.window.caption]).double().mean(dim=1)
        if self.reader is not None:
            night, count, boxes = self.reader.read(frames[0])
            found |= {"night": night.mean()[None], "count": count.mean()[None], "boxes": boxes[0]}
        return Result(job.of, job.index, found, to_uint8(frames[0]) if job.keeps_frames else None)

    def _features(self, frames: Frames, sees_clips: bool) -> dict[str, Tensor]:
        wanted = [*(CLIP_NETWORKS if sees_clips else ()), *FRAME_NETWORKS]
        found = {}
        for name in wanted:
            extractor = self.extractors.get(name)
            if extractor is not None and frames.shape[1] >= extractor.spec.min_frames:
                every = -(-frames.shape[1] // FRAMES_SEEN) if sees_clips and extractor.spec.sees == "frames" else 1
                seen = frames[:, ::every]
                features = extractor.features(seen.to(self.settings.device))
                found[name] = features.cpu()
                if isinstance(extractor.network, InceptionV3):
                    found[PROBABILITIES] = extractor.network.classify(features).cpu()
        return found

    def _differences(self, frames: Frames, original: Frames) -> dict[str, Tensor]:
        found = {
            "PSNR": psnr(frames, original).mean(dim=1),
            "SSIM": ssim(frames, original).mean(dim=1),
            "motion error": motion_error(frames, original),
        }
        for name in PAIR_NETWORKS:
            if name in self.extractors and min(frames.shape[3:]) >= MIN_SIZE:
                device = self.settings.device
                distances = self.extractors[name].distances(frames.to(device), original.to(device))
                found[self.extractors[name].spec.figures[0]] = distances.cpu().double().mean(dim=1)
        return found


def _middle(frames: Frames, size: tuple[int, int]) -> Frames:
    top, left = ((side - wanted) // 2 for side, wanted in zip(frames.shape[3:], size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


def _asked(scene: Scene) -> Tensor:
    """Night and crowdedness that were asked for; -1 where left open."""
    return torch.tensor([[-1 if value is None else value for value in (scene.night, scene.crowdedness)]]).double()

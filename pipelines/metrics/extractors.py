"""The networks that measure, each by the name its figures must carry.

A network is loaded from a path that the user gives and checked against its sha256; nothing is fetched here, and a
missing file is an error that says how to get it, never a reason to take another network. A figure may be called FVD,
FID, IS or CLIPSIM only if the network of that name made it; the networks that packages ship have names of their own.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines.metrics import efficientnet, i3d, inception
from pipelines.metrics.frames import PerFrame
from pipelines.metrics.frechet import Features
from pipelines.metrics.perceptual import PerceptualDistance
from pipelines.tensors import Frames

HOW_TO_GET = "`make weights` fetches it"
BATCH = 16
"""Frames that go through a network at once."""


class MissingNetworkError(ValueError):
    """A network's weights are not there; the message says how to get them."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """What is known of a network before it is loaded.

    Attributes:
        name: of the network.
        sees: whole clips, single frames, or pairs of frames.
        figures: names that figures made with it may carry.
        file: name of its weight file in the folder of weights.
        sha256: of that file, or how it begins.
        size: side of its square input; None takes frames as they are.
        antialias: whether frames are smoothed before they are shrunk to that size.
        min_frames: shortest clip it takes.
        origin: where the weights come from.
        build: makes the empty network.
    """

    name: str
    sees: Literal["clips", "frames", "pairs"]
    figures: tuple[str, ...]
    file: str
    sha256: str
    size: int | None
    antialias: bool = False
    min_frames: int = 1
    origin: str = HOW_TO_GET
    build: Callable[[], nn.Module]

    @property
    def resize_rule(self) -> str:
        """How frames come to the network's size, in words."""
        if self.size is None:
            return "as they are"
        smoothed = "antialiased" if self.antialias else "not antialiased"
        return f"whole frame to {self.size}x{self.size}, bilinear, {smoothed}"


EXTRACTORS: Mapping[str, Extractor] = {
    extractor.name: extractor
    for extractor in (
        Extractor(
            name="i3d-kinetics400",
            sees="clips",
            figures=("FVD",),
            file="i3d-kinetics400.safetensors",
            sha256="588c67eada07ea55f8b04065800cf2c4145b7ebfda7aa58ba7d62a09ae70a306",
            size=i3d.SIZE,
            min_frames=i3d.MIN_FRAMES,
            build=i3d.I3D,
        ),
        Extractor(
            name="efficientnet-lite0",
            sees="frames",
            figures=("FD-EffLite0", "KD-EffLite0"),
            file="efficientnet-lite0.safetensors",
            sha256="89a2c3e526a9ae735a87e3ab3e1a25452f6d29659bd5799287399770a2743d35",
            size=efficientnet.SIZE,
            antialias=True,
            build=efficientnet.EfficientNetLite0,
        ),
        Extractor(
            name="inception-v3-fid",
            sees="frames",
            figures=("FID", "KID", "IS"),
            file="inception-v3-fid.pth",
            # The usual port carries the start of its digest in its name.
            sha256="6726825d",
            size=inception.SIZE,
            origin="copy pt_inception-2015-12-05-6726825d.pth of the pytorch-fid releases there under this name",
            build=inception.InceptionV3,
        ),
        *(
            Extractor(
                name=f"stlpips-{backbone}",
                sees="pairs",
                figures=(f"ST-LPIPS-{title}",),
                file=f"stlpips-{backbone}.safetensors",
                sha256=sha256,
                size=None,
                build=build,
            )
            for backbone, title, sha256, build in (
                (
                    "alex",
                    "Alex",
                    "2d39db2217f8081786edf3ba41255b026679a732f848627c0eb87ca0cb4d94d5",
                    lambda: PerceptualDistance("alex"),
                ),
                (
                    "vgg",
                    "VGG",
                    "75139e1b1de9d4e2ab3355ded4d2d4f3f85033218942948475f4dd3b3048d88a",
                    lambda: PerceptualDistance("vgg"),
                ),
            )
        ),
    )
}


class LoadedExtractor:
    """A network with its weights.

    Attributes:
        spec: what it is.
        digest: sha256 of the file it was loaded from.
    """

    def __init__(self, spec: Extractor, network: nn.Module, digest: str) -> None:
        self.spec, self.network, self.digest = spec, network, digest

    @torch.inference_mode()
    def features(self, frames: Frames) -> Features:
        """Features of clips: one row per clip if the network sees clips, else one per frame, clip by clip.

        Raises:
            ValueError: if clips are too short, or the network compares pairs.
        """
        spec, b, t = self.spec, frames.shape[0], frames.shape[1]
        if spec.sees == "pairs" or t < spec.min_frames:
            raise ValueError(
                f"{spec.name} cannot take {t} frames: it sees {spec.sees} of {spec.min_frames} frames or more"
            )
        images = self._fit(rearrange(frames, "b t c H W -> (b t) c H W"))
        if spec.sees == "clips":
            return self.network(rearrange(images, "(b t) c H W -> b c t H W", b=b))
        return torch.cat([self.network(part) for part in torch.split(images, BATCH)])

    @torch.inference_mode()
    def distances(self, frames: Frames, reference: Frames) -> PerFrame:
        """Distance of each frame from its reference.

        Raises:
            ValueError: if the network does not compare pairs.
        """
        if self.spec.sees != "pairs":
            raise ValueError(f"{self.spec.name} compares no pairs; use stlpips-alex or stlpips-vgg")
        pairs = [torch.split(rearrange(clip, "b t c H W -> (b t) c H W"), BATCH) for clip in (frames, reference)]
        found = [self.network(one, other) for one, other in zip(*pairs, strict=True)]
        return rearrange(torch.cat(found), "(b t) -> b t", b=frames.shape[0])

    def _fit(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 S S"]:
        side = self.spec.size
        assert side is not None
        fitted = functional.interpolate(
            images, (side, side), mode="bilinear", align_corners=False, antialias=self.spec.antialias
        )
        # EfficientNet-Lite takes (0 to 255, minus 127) / 128; the others [-1, 1].
        return (fitted * 127.5 + 0.5) / 128 if self.spec.name == "efficientnet-lite0" else fitted


def load_extractor(name: str, weights: Path) -> LoadedExtractor:
    """Load a network from a folder of weights.

    Args:
        name: key of EXTRACTORS.
        weights: folder with its weight file, or the file itself.

    Raises:
        MissingNetworkError: if the file is not there; says how to get it.
        ValueError: if there is no network of that name, or the file is not the one that is expected.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"no feature network {name!r}; there are {', '.join(EXTRACTORS)}")
    spec = EXTRACTORS[name]
    path = weights if weights.suffix else weights / spec.file
    if not path.is_file():
        raise MissingNetworkError(f"{' and '.join(spec.figures)} need {name}, but {path} is missing: {spec.origin}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(spec.sha256):
        raise ValueError(f"{path} has sha256 {digest}, but {name} is {spec.sha256}; remove it: {spec.origin}")
    network = spec.build().eval().requires_grad_(False)
    network.load_state_dict(_read(path))
    return LoadedExtractor(spec, network, digest)


def available(names: Sequence[str], weights: Path) -> tuple[dict[str, LoadedExtractor], dict[str, str]]:
    """Load the networks that are there; of the others, by the figures that cannot be made, why not."""
    loaded: dict[str, LoadedExtractor] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            loaded[name] = load_extractor(name, weights)
        except MissingNetworkError as err:
            missing |= dict.fromkeys(EXTRACTORS[name].figures, str(err))
    return loaded, missing


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True))

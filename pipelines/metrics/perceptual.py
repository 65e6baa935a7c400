"""Shift-tolerant learned perceptual distance of two images (ST-LPIPS), over AlexNet or VGG-16 features.

Source: Ghildyal and Liu 2022 (arXiv 2207.13686): LPIPS (Zhang et al. 2018) with strides replaced by blurred
subsampling, so that a shift by a pixel counts little. Its numbers are not LPIPS numbers.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Backbone = Literal["alex", "vgg"]
Images = Float[Tensor, "n _ _ _"]
"""Images n c h w; channels and size change from layer to layer."""

# LPIPS's scaling of colours in [-1, 1] to ImageNet's mean and deviation.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
MIN_SIZE = 32

# Slices of layers; what each slice gives is compared. Numbers are output channels of a convolution with ReLU, "blur" a
# maximum over windows of that slice's pool size with blurred subsampling before the slice.
_ALEX: tuple[tuple[int, ...], ...] = ((64,), (192,), (384,), (256,), (256,))
_ALEX_KERNELS = (11, 5, 3, 3, 3)
_ALEX_PADDING = (2, 2, 1, 1, 1)
_ALEX_POOLED = (1, 2)
_VGG: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class PerceptualDistance(nn.Module):
    """Weighted squared differences of normalised features, averaged over the image and summed over five depths."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        widths = _ALEX if backbone == "alex" else _VGG
        self.slices = nn.ModuleList()
        channels = 3
        for index, slice_widths in enumerate(widths):
            kernel = _ALEX_KERNELS[index] if backbone == "alex" else 3
            padding = _ALEX_PADDING[index] if backbone == "alex" else 1
            convs = nn.ModuleList()
            for width in slice_widths:
                convs.append(nn.Conv2d(channels, width, kernel, padding=padding))
                channels = width
            self.slices.append(convs)
        self.heads = nn.ModuleList(nn.Conv2d(slice_widths[-1], 1, 1, bias=False) for slice_widths in widths)

    def forward(self, one: Float[Tensor, "n 3 H W"], other: Float[Tensor, "n 3 H W"]) -> Float[Tensor, " n"]:
        """Return the distance of each pair, 0 for equal images.

        Args:
            one: images in [-1, 1], MIN_SIZE x MIN_SIZE or more.
            other: as many of the same size.

        Raises:
            ValueError: If images are smaller than MIN_SIZE.
        """
        if min(one.shape[2:]) < MIN_SIZE:
            raise ValueError(f"images of {one.shape[2]}x{one.shape[3]}; give {MIN_SIZE}x{MIN_SIZE} or more")
        distance = one.new_zeros(len(one))
        pairs = zip(self.heads, self.features(one), self.features(other), strict=True)
        for head, x, y in pairs:
            distance = distance + head((_normalised(x) - _normalised(y)).square()).mean(dim=(1, 2, 3))
        return distance

    def features(self, images: Images) -> Sequence[Images]:
        """Features at five depths."""
        x = (images - _colours(SHIFT, images)) / _colours(SCALE, images)
        found = []
        for index, convs in enumerate(self.slices):
            if self.backbone == "vgg" and index > 0:
                x = blurred_half(functional.max_pool2d(x, 2, stride=1))
            elif self.backbone == "alex" and index in _ALEX_POOLED:
                x = blurred_half(functional.max_pool2d(x, 3, stride=1))
            for conv in cast(nn.ModuleList, convs):
                x = conv(x)
                # AlexNet's first stride, of 4 originally, is half blurred away before its ReLU.
                x = (blurred_half(x) if self.backbone == "alex" and index == 0 else x).relu()
            found.append(x)
        return found


def blurred_half(x: Images) -> Images:
    """Every second pixel of the image blurred by [1 2 1] / 4 along both sides, reflected by two at the border."""
    line = x.new_tensor([0.25, 0.5, 0.25])
    channels = x.shape[1]
    weight = rearrange(torch.outer(line, line), "k l -> 1 1 k l").expand(channels, 1, 3, 3)
    return functional.conv2d(functional.pad(x, [2, 2, 2, 2], mode="reflect"), weight, stride=2, groups=channels)


def _normalised(x: Images) -> Images:
    return x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)


def _colours(values: tuple[float, float, float], like: Images) -> Float[Tensor, "1 3 1 1"]:
    return rearrange(like.new_tensor(values), "c -> 1 c 1 1")

"""I3D, the video classifier whose class scores are the features of FVD.

Source: Carreira and Zisserman 2017 (arXiv 1705.07750), figure 3; sizes and names of the published network. FVD takes
its averaged class scores on Kinetics-400 (Unterthiner et al. 2018).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

NUM_CLASSES = 400
SIZE = 224
MIN_FRAMES = 9
"""Fewer leave one frame to the last pooling, which averages over two."""

NORM_EPS = 1e-3
"""Of the original; other ports have 1e-5, which moves class scores by up to 0.016."""

Volume = Float[Tensor, "b _ _ _ _"]
"""Clips b c t h w; channels and size change from layer to layer."""

# Output channels of an inception block: 1x1; 1x1 then 3x3x3; 1x1 then 3x3x3; pooling then 1x1.
_Widths = tuple[int, int, int, int, int, int]
_MIXED: dict[str, _Widths] = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


class I3D(nn.Module):
    """Clips to class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        channels = 192
        for name, widths in _MIXED.items():
            setattr(self, name, Mixed(channels, widths))
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.Logits = nn.Conv3d(channels, NUM_CLASSES, 1)

    def forward(self, clips: Volume) -> Float[Tensor, "b classes"]:
        """Return class scores before the softmax, averaged over time.

        Args:
            clips: colours in [-1, 1], MIN_FRAMES frames or more of SIZE x SIZE.
        """
        x = pool_same(self.Conv3d_1a_7x7(clips), (1, 3, 3), (1, 2, 2))
        x = pool_same(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        for name in _MIXED:
            if name == "Mixed_4b":
                x = pool_same(x, (3, 3, 3), (2, 2, 2))
            elif name == "Mixed_5b":
                x = pool_same(x, (2, 2, 2), (2, 2, 2))
            x = getattr(self, name)(x)
        x = self.Logits(functional.avg_pool3d(x, (2, 7, 7), stride=1))
        return x.mean(dim=(2, 3, 4))


class Unit(nn.Module):
    """Convolution that keeps the size (or divides it), batch norm without a scale, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("variance", torch.ones(outputs))
        nn.init.kaiming_normal_(self.weight)

    def forward(self, x: Volume) -> Volume:
        """Apply."""
        kernel, stride = self.weight.shape[2:], (self.stride,) * 3
        x = functional.conv3d(functional.pad(x, _same(x.shape[2:], kernel, stride)), self.weight, stride=stride)
        mean, variance = self.get_buffer("mean"), self.get_buffer("variance")
        return functional.batch_norm(x, mean, variance, None, self.bias, eps=NORM_EPS).relu()


class Mixed(nn.Module):
    """An inception block."""

    def __init__(self, inputs: int, widths: _Widths) -> None:
        super().__init__()
        self.branch_0 = Unit(inputs, widths[0], 1)
        self.branch_1 = nn.Sequential(Unit(inputs, widths[1], 1), Unit(widths[1], widths[2], 3))
        self.branch_2 = nn.Sequential(Unit(inputs, widths[3], 1), Unit(widths[3], widths[4], 3))
        self.branch_3 = Unit(inputs, widths[5], 1)

    def forward(self, x: Volume) -> Volume:
        """Apply."""
        pooled = pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.branch_0(x), self.branch_1(x), self.branch_2(x), self.branch_3(pooled)], dim=1)


def pool_same(x: Volume, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Volume:
    """Maximum over windows that may stick out; x is not negative, so that zeros outside never win."""
    return functional.max_pool3d(functional.pad(x, _same(x.shape[2:], kernel, stride)), kernel, stride)


def _same(size: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...]) -> list[int]:
    """TensorFlow's SAME padding, the odd one at the end, in the order that `functional.pad` takes."""
    padding: list[int] = []
    for n, k, s in zip(reversed(size), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-n // s) - 1) * s + k - n, 0)
        padding += [total // 2, total - total // 2]
    return padding

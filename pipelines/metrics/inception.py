"""The Inception V3 of FID, KID and IS, in the form of its usual PyTorch port, whose weight file the user brings.

It differs from torchvision's in three poolings: averages leave out the padding, and the last block takes a maximum.
Source: Szegedy et al. 2015 (arXiv 1512.00567), figures 5 to 8; weights of 2015-12-05 as Heusel et al. 2017 use them.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SIZE = 299
NUM_FEATURES = 2048
NUM_CLASSES = 1008
NORM_EPS = 1e-3

Images = Float[Tensor, "n _ _ _"]
"""Images n c h w; channels and size change from layer to layer."""
Kernel = int | tuple[int, int]
Layer = tuple[str, int, Kernel, int]
"""Name of a convolution, its output channels, kernel and stride; stride 2 goes without padding."""
Branch = Sequence[Layer]

WIDE, TALL = (1, 7), (7, 1)


def _grid_35(pooled: int) -> list[Branch]:
    return [
        [("branch1x1", 64, 1, 1)],
        [("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)],
        [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1)],
        [("branch_pool", pooled, 1, 1)],
    ]


def _grid_17(width: int) -> list[Branch]:
    chain: tuple[Kernel, ...] = (1, TALL, WIDE, TALL, WIDE)
    widths = (width,) * 4 + (192,)
    return [
        [("branch1x1", 192, 1, 1)],
        [("branch7x7_1", width, 1, 1), ("branch7x7_2", width, WIDE, 1), ("branch7x7_3", 192, TALL, 1)],
        [(f"branch7x7dbl_{i + 1}", widths[i], chain[i], 1) for i in range(5)],
        [("branch_pool", 192, 1, 1)],
    ]


_TO_17: list[Branch] = [
    [("branch3x3", 384, 3, 2)],
    [("branch3x3dbl_1", 64, 1, 1), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 2)],
]
_TO_8: list[Branch] = [
    [("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)],
    [
        ("branch7x7x3_1", 192, 1, 1),
        ("branch7x7x3_2", 192, WIDE, 1),
        ("branch7x7x3_3", 192, TALL, 1),
        ("branch7x7x3_4", 192, 3, 2),
    ],
]
_STEM: Branch = [
    ("Conv2d_1a_3x3", 32, 3, 2),
    ("Conv2d_2a_3x3", 32, 3, 0),
    ("Conv2d_2b_3x3", 64, 3, 1),
    ("Conv2d_3b_1x1", 80, 1, 1),
    ("Conv2d_4a_3x3", 192, 3, 0),
]
_BLOCKS: Mapping[str, list[Branch]] = {
    "Mixed_5b": _grid_35(32),
    "Mixed_5c": _grid_35(64),
    "Mixed_5d": _grid_35(64),
    "Mixed_6a": _TO_17,
    "Mixed_6b": _grid_17(128),
    "Mixed_6c": _grid_17(160),
    "Mixed_6d": _grid_17(160),
    "Mixed_6e": _grid_17(192),
    "Mixed_7a": _TO_8,
}


class InceptionV3(nn.Module):
    """Images to features; `classify` turns those into probabilities."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for name, outputs, kernel, stride in _STEM:
            # Stride 0 in the table: stride 1 without padding.
            setattr(self, name, Unit(channels, outputs, kernel, max(stride, 1), pads=stride == 1))
            channels = outputs
        for name, branches in _BLOCKS.items():
            block = Block(channels, branches)
            setattr(self, name, block)
            channels = block.outputs
        self.Mixed_7b = LastBlock(channels, takes_maximum=False)
        self.Mixed_7c = LastBlock(NUM_FEATURES, takes_maximum=True)
        self.fc = nn.Linear(NUM_FEATURES, NUM_CLASSES)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n d"]:
        """Return the pooled features.

        Args:
            images: colours in [-1, 1], SIZE x SIZE.
        """
        x = images
        for name, _, _, _ in _STEM:
            x = getattr(self, name)(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = functional.max_pool2d(x, 3, stride=2)
        for name in _BLOCKS:
            x = getattr(self, name)(x)
        return self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))

    def classify(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Return probabilities; the classifier's offset is left out, as the published score does."""
        return functional.linear(features, self.fc.weight).softmax(dim=1)


class Unit(nn.Module):
    """Convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel, stride: int = 1, *, pads: bool = True) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if pads else 0
        self.conv = nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=NORM_EPS)

    def forward(self, x: Images) -> Images:
        """Apply."""
        return self.bn(self.conv(x)).relu()


class Block(nn.Module):
    """Branches side by side; without a pooled branch, the block halves the size and passes its maximum on."""

    def __init__(self, inputs: int, branches: Sequence[Branch]) -> None:
        super().__init__()
        self.branches = branches
        self.halves = not any(branch[0][0] == "branch_pool" for branch in branches)
        for branch in branches:
            channels = inputs
            for name, outputs, kernel, stride in branch:
                setattr(self, name, Unit(channels, outputs, kernel, stride, pads=stride == 1))
                channels = outputs
        self.outputs = sum(branch[-1][1] for branch in branches) + (inputs if self.halves else 0)

    def forward(self, x: Images) -> Images:
        """Apply."""
        found = [functional.max_pool2d(x, 3, stride=2)] if self.halves else []
        given = []
        for branch in self.branches:
            y = average(x) if branch[0][0] == "branch_pool" else x
            for name, _, _, _ in branch:
                y = getattr(self, name)(y)
            given.append(y)
        return torch.cat([*given, *found], dim=1)


class LastBlock(nn.Module):
    """A block of the 8x8 grid, whose 3x3 branches fan out into a wide and a tall convolution."""

    def __init__(self, inputs: int, *, takes_maximum: bool) -> None:
        super().__init__()
        self.takes_maximum = takes_maximum
        self.branch1x1 = Unit(inputs, 320, 1)
        self.branch3x3_1 = Unit(inputs, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = Unit(inputs, 448, 1), Unit(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Unit(384, 384, (1, 3)), Unit(384, 384, (3, 1))
        self.branch_pool = Unit(inputs, 192, 1)

    def forward(self, x: Images) -> Images:
        """Apply."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, stride=1, padding=1) if self.takes_maximum else average(x)
        fanned = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        fanned += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([self.branch1x1(x), *fanned, self.branch_pool(pooled)], dim=1)


def average(x: Images) -> Images:
    """Mean over 3x3 windows; at the border over the part that lies inside."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)

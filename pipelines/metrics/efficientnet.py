"""EfficientNet-Lite0, an ImageNet classifier that packages ship: the features of FD-EffLite0 and KD-EffLite0.

Source: Tan and Le 2019 (arXiv 1905.11946), table 1; the Lite variant has no squeeze-and-excitation and uses ReLU6.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

SIZE = 224
NUM_FEATURES = 1280
NORM_EPS = 1e-3

Images = Float[Tensor, "n _ _ _"]
"""Images n c h w; channels and size change from layer to layer."""

# Repeats, kernel, stride of the first, expansion, output channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Images to features; `classifier` turns those into scores of the 1000 ImageNet classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Unit(3, 32, 3, stride=2)
        self.blocks = nn.ModuleList()
        channels = 32
        for repeats, kernel, stride, expansion, outputs in _STAGES:
            for index in range(repeats):
                self.blocks.append(Block(channels, outputs, kernel, stride if index == 0 else 1, expansion))
                channels = outputs
        self.head = Unit(channels, NUM_FEATURES, 1)
        self.classifier = nn.Linear(NUM_FEATURES, 1000)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n d"]:
        """Return the features before the classifier.

        Args:
            images: colours (0 to 255, minus 127) / 128, SIZE x SIZE.
        """
        x = functional.relu6(self.stem(images))
        for block in self.blocks:
            x = block(x)
        return functional.relu6(self.head(x)).mean(dim=(2, 3))


class Unit(nn.Module):
    """Convolution that keeps the size (or divides it), then batch norm."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=NORM_EPS)
        # TensorFlow's SAME padding of an even size: the odd row goes to the end.
        total = max(kernel - stride, 0)
        self.padding = [total // 2, total - total // 2] * 2

    def forward(self, x: Images) -> Images:
        """Apply."""
        return self.norm(self.conv(functional.pad(x, self.padding)))


class Block(nn.Module):
    """Widen, convolve each channel, narrow; add the input if nothing changed its shape."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = Unit(inputs, wide, 1) if expansion > 1 else None
        self.depthwise = Unit(wide, wide, kernel, stride, groups=wide)
        self.project = Unit(wide, outputs, 1)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Images) -> Images:
        """Apply."""
        wide = x if self.expand is None else functional.relu6(self.expand(x))
        narrow = self.project(functional.relu6(self.depthwise(wide)))
        return torch.add(x, narrow) if self.adds else narrow

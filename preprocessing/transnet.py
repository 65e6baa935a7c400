"""TransNetV2, a network that sees cuts: our own layers under the published names, so that its weights load.

Source: Soucek & Lokoc 2020, "TransNet V2: An effective deep network architecture for fast shot transition detection".
The published `transnetv2-pytorch-weights.pth` is a pickle; docs/preprocessing.md has the line that turns it into
safetensors.
"""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from einops import rearrange
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import normalize, pad

ROWS, COLUMNS = 27, 48
_WINDOW, _MARGIN = 100, 25
_DILATIONS = (1, 2, 4, 8)
_NEIGHBOURS = 101


def shrink(image: np.ndarray) -> np.ndarray:
    """A frame as the network sees it: (ROWS, COLUMNS, 3) uint8 RGB."""
    return cv2.resize(image, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)


def find_transitions(frames: np.ndarray, weights: str, threshold: float = 0.5) -> list[tuple[int, int]]:
    """Find transitions as (first frame that is no longer the old shot, first frame of the new one), in order.

    Args:
        frames: every frame of the source through `shrink`, (n, ROWS, COLUMNS, 3).
        weights: safetensors file.
        threshold: chance of a cut above which there is one.

    Raises:
        ValueError: if the file does not hold the network's weights.
    """
    return transitions_of(cut_chances(load_network(weights), frames), threshold)


def transitions_of(chances: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Turn the chance of each frame to be the last before a cut into transitions."""
    is_cut = np.concatenate([[False], chances > threshold, [False]])
    edges = np.flatnonzero(is_cut[1:] != is_cut[:-1]).tolist()
    # The network marks the last frame of the old shot, or all frames of a slow transition.
    runs = [(first + 1, after) for first, after in zip(edges[::2], edges[1::2], strict=True)]
    return [(first, after) for first, after in runs if first < len(chances)]


@torch.inference_mode()
def cut_chances(network: "TransNet", frames: np.ndarray) -> np.ndarray:
    """Chance of each frame (n, ROWS, COLUMNS, 3) to be the last before a cut; windows of 100, of which 50 count."""
    step = _WINDOW - 2 * _MARGIN
    after = _MARGIN + -len(frames) % step
    padded = np.concatenate([frames[:1].repeat(_MARGIN, 0), frames, frames[-1:].repeat(after, 0)])
    parts = [
        network(torch.from_numpy(padded[start : start + _WINDOW])[None])[0, _MARGIN:-_MARGIN]
        for start in range(0, len(padded) - _WINDOW + 1, step)
    ]
    return torch.cat(parts).sigmoid().numpy()[: len(frames)]


@lru_cache(maxsize=1)
def load_network(weights: str) -> "TransNet":
    """Load the network.

    Raises:
        ValueError: if the file does not hold its weights.
    """
    # One thread: the same bits anywhere.
    torch.set_num_threads(1)
    network = TransNet()
    try:
        network.load_state_dict(load_file(weights))
    except Exception as err:
        line = str(err).splitlines()[0]
        raise ValueError(f"{weights} does not hold the weights of TransNetV2 as safetensors: {line}") from err
    return network.train(False)


class TransNet(nn.Module):
    """Frames (b, t, ROWS, COLUMNS, 3) uint8 to the logit of a cut after each, (b, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([_Stage(3, 16), _Stage(64, 32), _Stage(128, 64)])
        self.frame_sim_layer = nn.ModuleDict({"projection": nn.Linear(448, 128), "fc": nn.Linear(_NEIGHBOURS, 128)})
        self.color_hist_layer = nn.ModuleDict({"fc": nn.Linear(_NEIGHBOURS, 128)})
        self.fc1 = nn.Linear(256 * 3 * 6 + 256, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        # Trained to mark all frames of a transition; not asked here, but its weights are in the file.
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Give the logits."""
        x = rearrange(frames, "b t H W c -> b c t H W").float() / 255
        features = []
        for stage in self.SDDCNN:
            x = stage(x)
            features.append(x.mean((3, 4)))
        own = normalize(self.frame_sim_layer["projection"](rearrange(torch.cat(features, 1), "b c t -> b t c")), dim=2)
        tokens = [
            self.frame_sim_layer["fc"](_similarities(own)).relu(),
            rearrange(x, "b c t h w -> b t (h w c)"),
        ]
        tokens.insert(0, self.color_hist_layer["fc"](_similarities(_histograms(frames))).relu())
        return self.cls_layer1(self.fc1(torch.cat(tokens, 2)).relu())[..., 0]


class _Stage(nn.Module):
    """Two blocks of dilated convolutions with a shortcut over the second, then half the size."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Block(channels, width), _Block(4 * width, width)])
        self.pool = nn.AvgPool3d((1, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        first = self.DDCNN[0](x).relu()
        return self.pool(self.DDCNN[1](first).relu() + first)


class _Block(nn.Module):
    """Four convolutions side by side that look 1, 2, 4 and 8 frames away."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        for dilation in _DILATIONS:
            self.add_module(f"Conv3D_{dilation}", _Convolution(channels, width, dilation))
        self.bn = nn.BatchNorm3d(4 * width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(torch.cat([getattr(self, f"Conv3D_{dilation}")(x) for dilation in _DILATIONS], 1))


class _Convolution(nn.Module):
    """Over space, then over time."""

    def __init__(self, channels: int, width: int, dilation: int) -> None:
        super().__init__()
        space = nn.Conv3d(channels, 2 * width, (1, 3, 3), padding=(0, 1, 1), bias=False)
        time = nn.Conv3d(2 * width, width, (3, 1, 1), padding=(dilation, 0, 0), dilation=(dilation, 1, 1), bias=False)
        self.layers = nn.ModuleList([space, time])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](x))


def _histograms(frames: Tensor) -> Tensor:
    """Colour histograms (b, t, 512) of unit length: 8 levels of each colour."""
    levels = rearrange(frames, "b t H W c -> b t (H W) c").long() >> 5
    bins = levels[..., 0] * 64 + levels[..., 1] * 8 + levels[..., 2]
    counts = torch.zeros(*bins.shape[:2], 512).scatter_add_(2, bins, torch.ones(bins.shape))
    return normalize(counts, dim=2)


def _similarities(vectors: Tensor) -> Tensor:
    """Cosine of each frame's vector with those of the 50 frames before to the 50 after; zero beyond the ends."""
    reach = _NEIGHBOURS // 2
    cosines = pad(vectors @ vectors.transpose(1, 2), (reach, reach))
    rows: Sequence[Tensor] = [cosines[:, t, t : t + _NEIGHBOURS] for t in range(vectors.shape[1])]
    return torch.stack(list(rows), 1)

"""Frames between the networks' floats in [-1, 1] and the uint8 of files and answers."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from pipelines.tensors import VideoFrames


def to_float(images: VideoFrames) -> Float[Tensor, "t 3 H W"]:
    """Turn 0 to 255 into [-1, 1]."""
    return rearrange(images, "t H W c -> t c H W").float() / 127.5 - 1


def to_uint8(frames: Float[Tensor, "t 3 H W"]) -> VideoFrames:
    """Turn [-1, 1] into 0 to 255, rounded; values outside are cut off."""
    values = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return rearrange(values, "t c H W -> t H W c").cpu().contiguous()

"""What a caller gives to go on from: a picture or a video, as frames and as latents."""

import io
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import torch
from PIL import Image

from pipelines.models.autoencoder import encode_moments, sample_latents
from pipelines.models.latent_space import Autoencoder, latent_scaling
from pipelines.pixels import to_float
from pipelines.tensors import Latents, VideoFrames
from pipelines.video_decode import probe
from pipelines.video_io import read_clip
from serving.uploads import num_frames_at

Size = tuple[int, int]
"""Height and width."""

_AT_ONCE = 32


def picture(data: bytes, size: Size) -> VideoFrames:
    """Read a picture as a clip of one frame, scaled to cover `size` and cut evenly on both sides."""
    height, width = size
    with Image.open(io.BytesIO(data)) as opened:
        image = np.asarray(opened.convert("RGB"))
    scale = max(width / image.shape[1], height / image.shape[0])
    whole = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    resized = Image.fromarray(image).resize(whole, Image.Resampling.LANCZOS)
    left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
    cut = resized.crop((left, top, left + width, top + height))
    return torch.from_numpy(np.array(cut))[None]


def first_frames(video: bytes, size: Size, fps: float) -> VideoFrames:
    """Read a whole video at a frame rate."""
    return torch.cat(list(all_frames(video, size, fps)))


def last_frames(video: bytes, size: Size, fps: float, count: int) -> VideoFrames:
    """Read the last frame of a video and those that lie before it at a frame rate; fewer if it is too short."""
    info, rate = probe(io.BytesIO(video)), Fraction(fps).limit_denominator(1001)
    lasts = info.end - info.start
    frames = min(count, int(lasts * rate) + 1)
    return read_clip(io.BytesIO(video), num_frames=frames, fps=rate, start_s=lasts - (frames - 1) / rate, size=size)


def all_frames(video: bytes, size: Size, fps: float) -> Iterator[VideoFrames]:
    """Read a whole video at a frame rate, a few frames at a time."""
    total, rate = num_frames_at(video, fps), Fraction(fps).limit_denominator(1001)
    for start in range(0, total, _AT_ONCE):
        frames = min(_AT_ONCE, total - start)
        yield read_clip(io.BytesIO(video), num_frames=frames, fps=rate, start_s=start / rate, size=size)


def encode(vae: Autoencoder, images: VideoFrames) -> Latents:
    """Encode frames to the mean of their latents."""
    parts = [to_float(part)[None].to(vae.device, vae.dtype) for part in torch.split(images, _AT_ONCE)]
    moments = torch.cat([encode_moments(vae, part) for part in parts], dim=1)
    return sample_latents(moments, latent_scaling(vae), None)

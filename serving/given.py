"""What a caller gives to go on from: a picture or a video, as frames and as latents."""

import io

import numpy as np
import torch
from PIL import Image

from pipelines.config import StageConfig
from pipelines.models.autoencoder import encode_moments, sample_latents
from pipelines.models.latent_space import Autoencoder, latent_scaling
from pipelines.pixels import to_float
from pipelines.tensors import Latents, VideoFrames
from pipelines.video_io import read_clip
from serving.uploads import num_frames_at


def all_frames(video: bytes, config: StageConfig, fps: float) -> VideoFrames:
    """Read a whole video at the size of a stage and at a frame rate."""
    size = (config.height, config.width)
    return read_clip(io.BytesIO(video), num_frames=num_frames_at(video, fps), fps=fps, size=size)


def last_frames(files: dict[str, bytes], config: StageConfig, count: int) -> VideoFrames:
    """Read the frames to go on from: the last `count` of a video, or a picture."""
    if "video" in files:
        return all_frames(files["video"], config, config.fps)[-count:]
    with Image.open(io.BytesIO(files["input_reference"])) as picture:
        image = np.asarray(picture.convert("RGB"))
    scale = max(config.width / image.shape[1], config.height / image.shape[0])
    size = (max(config.width, round(image.shape[1] * scale)), max(config.height, round(image.shape[0] * scale)))
    resized = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - config.width) // 2, (size[1] - config.height) // 2
    cut = resized.crop((left, top, left + config.width, top + config.height))
    return torch.from_numpy(np.array(cut))[None]


def encode(vae: Autoencoder, images: VideoFrames) -> Latents:
    """Encode frames to the mean of their latents."""
    moments = encode_moments(vae, to_float(images)[None].to(vae.device))
    return sample_latents(moments, latent_scaling(vae), None)

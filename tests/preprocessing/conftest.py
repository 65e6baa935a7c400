from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from pipelines.video_encode import encode_mp4

VAE = {
    "block_out_channels": (8, 16, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 32,
    "scaling_factor": 0.7,
}


def write_video(path: Path, num_frames: int, fps: int = 8, size: tuple[int, int] = (32, 64), seed: int = 0) -> Path:
    """A moving square on a coloured ground, different for every seed."""
    rng = np.random.default_rng(seed)
    images = np.full((num_frames, *size, 3), rng.integers(30, 120, 3), np.uint8)
    for i in range(num_frames):
        left = (3 * i + 7 * seed) % (size[1] - 12)
        images[i, 4 : size[0] - 6, left : left + 12] = rng.integers(140, 255, 3) if i == 0 else images[0, 4, -1] ^ 255
    encode_mp4(path, images, Fraction(fps))
    return path


@pytest.fixture(scope="session")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(3)
    AutoencoderKL(**VAE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_video() -> Callable[..., Path]:
    return write_video

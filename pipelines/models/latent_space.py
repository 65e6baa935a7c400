"""The latent space of a diffusers autoencoder: its scale, its factor and the decoding of images."""

from dataclasses import dataclass

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from einops import rearrange
from torch import Tensor

from pipelines.tensors import Frames, Latents

Autoencoder = AutoencoderKL | VQModel


@dataclass(frozen=True, kw_only=True)
class LatentScaling:
    """Latents of about unit variance: (z - shift) * scale of what the autoencoder speaks."""

    scale: float
    shift: float = 0.0

    def normalise(self, z: Tensor) -> Tensor:
        """Turn the autoencoder's values into latents."""
        return (z - self.shift) * self.scale

    def restore(self, latents: Tensor) -> Tensor:
        """Turn latents into the autoencoder's values."""
        return latents / self.scale + self.shift


def latent_scaling(vae: Autoencoder) -> LatentScaling:
    """Read the scaling from the autoencoder's configuration."""
    return LatentScaling(scale=vae.config["scaling_factor"], shift=vae.config.get("shift_factor") or 0.0)


def spatial_factor(vae: Autoencoder) -> int:
    """Return how many pixels a latent spans in each direction (the f of f8)."""
    return int(2 ** (len(vae.config["block_out_channels"]) - 1))


def check_size(size: tuple[int, int], factor: int) -> None:
    """Refuse a height or width that an autoencoder's factor does not divide.

    Raises:
        ValueError: naming the sizes next to it.
    """
    for side in size:
        if side < factor or side % factor:
            below = side - side % factor
            near = [str(choice) for choice in (below, below + factor) if choice > 0]
            raise ValueError(
                f"size {side} does not divide by the autoencoder's factor {factor}; use {' or '.join(near)}"
            )


def decode_images(vae: Autoencoder, latents: Latents) -> Frames:
    """Decode each frame by itself; a quantised autoencoder quantises first."""
    images = rearrange(latent_scaling(vae).restore(latents), "b t z h w -> (b t) z h w")
    return rearrange(vae.decode(images).sample, "(b t) c H W -> b t c H W", b=latents.shape[0])

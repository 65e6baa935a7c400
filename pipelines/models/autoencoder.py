"""Frames to latents and back, over any diffusers autoencoder with a Gaussian or a quantised latent space.

The encoder works frame by frame; a decoder with temporal layers works in overlapping windows of frames.
Source: Blattmann et al. 2023, section 3.1.1.
"""

from collections.abc import Iterator

import torch
from diffusers.models.autoencoders.vq_model import VQModel
from einops import rearrange

from pipelines.models.latent_space import Autoencoder, LatentScaling, decode_images, spatial_factor
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.tensors import Frames, Latents, Moments

NO_VARIANCE = -30.0
"""Log-variance of a quantised autoencoder's latents: what diffusers clamps to, a deviation of 3e-7."""


def encode_moments(vae: Autoencoder, frames: Frames) -> Moments:
    """Encode each frame by itself.

    A quantised autoencoder gives its latents before quantisation as mean; decoding quantises them.

    Args:
        vae: the autoencoder.
        frames: in [-1, 1], with sides that divide by the autoencoder's factor.

    Returns:
        Mean and log-variance, unscaled.

    Raises:
        ValueError: a side does not divide by the factor.
    """
    factor = spatial_factor(vae)
    for side, size in zip(("height", "width"), frames.shape[3:], strict=True):
        if size % factor:
            raise ValueError(
                f"frames of {side} {size} do not divide by the autoencoder's factor {factor}; "
                f"crop or resize to {size - size % factor} or {size - size % factor + factor}"
            )
    images = rearrange(frames, "b t c H W -> (b t) c H W")
    if isinstance(vae, VQModel):
        mean = vae.encode(images).latents
        logvar = torch.full_like(mean, NO_VARIANCE)
    else:
        posterior = vae.encode(images).latent_dist
        mean, logvar = posterior.mean, posterior.logvar
    return rearrange(torch.cat([mean, logvar], dim=1), "(b t) z h w -> b t z h w", b=frames.shape[0])


def sample_latents(moments: Moments, scaling: LatentScaling, generator: torch.Generator | None) -> Latents:
    """Draw latents from their posterior.

    Args:
        moments: mean and log-variance as encoded, any float type; the arithmetic is in float32.
        scaling: of the autoencoder that encoded them.
        generator: source of the noise, on the CPU; None takes the mean.
    """
    mean, logvar = moments.float().chunk(2, dim=2)
    if generator is not None:
        noise = torch.randn(mean.shape, generator=generator).to(mean.device)
        mean = mean + torch.exp(0.5 * logvar) * noise
    return scaling.normalise(mean)


def decode_windows(
    decoder: VideoDecoder | Autoencoder, latents: Latents, window: int, overlap: int
) -> Iterator[Frames]:
    """Decode a clip of any length in constant memory, a few frames at a time.

    Each window sees `overlap` more frames on either side than it gives, so that its first and last frame have
    neighbours as in a decode of the whole clip. An image autoencoder has no neighbours to see and no overlap.

    Args:
        decoder: decoder with temporal layers, or a plain image autoencoder.
        latents: scaled latents.
        window: frames decoded at once.
        overlap: frames on either side of a window that are decoded for the sake of their neighbours and dropped.

    Yields:
        Consecutive frames of all clips.

    Raises:
        ValueError: the overlap leaves nothing of a window.
    """
    if not 0 <= 2 * overlap < window:
        raise ValueError(f"overlap={overlap} leaves nothing of window={window}; use 0 to {(window - 1) // 2}")
    if not isinstance(decoder, VideoDecoder):
        yield from (decode_images(decoder, part) for part in torch.split(latents, window, dim=1))
        return
    num_frames, done = latents.shape[1], 0
    while done < num_frames:
        start = max(0, min(done - overlap, num_frames - window))
        is_last = start + window >= num_frames
        keep_to = num_frames if is_last else start + window - overlap
        yield decoder(latents[:, start : start + window])[:, done - start : keep_to - start]
        done = keep_to


def decode_latents(
    decoder: VideoDecoder | Autoencoder, latents: Latents, *, window: int = 8, overlap: int = 2
) -> Frames:
    """Decode a clip in windows (see `decode_windows`) and return all its frames."""
    return torch.cat(list(decode_windows(decoder, latents, window=window, overlap=overlap)), dim=1)

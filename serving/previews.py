"""Cheap pictures of latents: a linear map to colours, fitted to the checkpoint's own decoder when it is loaded."""

from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange, reduce
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipelines.models.latent_space import Autoencoder, decode_images, spatial_factor
from pipelines.pixels import to_uint8
from pipelines.randomness import generator
from pipelines.stage_state import DONE
from serving.media import jpeg

_PATCH = 8
_SCALE = 8
_COLOURS = 3


def fit_preview(vae: Autoencoder) -> Float[Tensor, "z_plus_1 3"]:
    """Fit colours = [latents, 1] @ map by least squares on smooth random latents and what the decoder makes of them.

    Source: the idea of linear latent previews is folklore of Stable Diffusion user interfaces.
    """
    channels, factor = vae.config["latent_channels"], spatial_factor(vae)
    coarse = torch.randn((4, channels, _PATCH // 2, _PATCH // 2), generator=generator("preview"))
    latents = functional.interpolate(coarse, scale_factor=2, mode="bilinear").to(vae.device, vae.dtype)
    with torch.inference_mode():
        frames = decode_images(vae, rearrange(latents, "b z h w -> b 1 z h w"))
    colours = reduce(frames, "b 1 c (h f) (w g) -> (b h w) c", "mean", f=factor, g=factor)
    known = rearrange(latents, "b z h w -> (b h w) z").float()
    known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
    return torch.linalg.lstsq(known.cpu(), colours.float().cpu()).solution


def preview(state: Mapping[str, Tensor], colours: Float[Tensor, "z_plus_1 3"]) -> bytes | None:
    """Draw the last frame of a task's state as JPEG; None if there is nothing to see.

    A multistep sampler keeps its estimate of the clean latents, which shows more than the noisy ones it works on.
    """
    latents = next((state[name] for name in ("history.denoised", "latents", DONE) if name in state), None)
    if latents is None or latents.ndim != 5:
        return None
    frame = latents[0, -1]
    if frame.shape[0] == len(colours) - 1:
        return jpeg(preview_picture(frame, colours))
    if frame.shape[0] == _COLOURS:
        return jpeg(to_uint8(rearrange(frame.float().cpu().clamp(-1, 1), "c h w -> 1 c h w"))[0].numpy())
    return None


def preview_picture(latents: Float[Tensor, "z h w"], colours: Float[Tensor, "z_plus_1 3"]) -> NDArray[np.uint8]:
    """Draw the latents of one frame, enlarged."""
    known = rearrange(latents.float().cpu(), "z h w -> (h w) z")
    known = torch.cat([known, torch.ones_like(known[:, :1])], dim=1)
    picture = rearrange(known @ colours, "(h w) c -> 1 c h w", h=latents.shape[1])
    images = to_uint8(functional.interpolate(picture, scale_factor=_SCALE, mode="bilinear"))
    return images[0].numpy()

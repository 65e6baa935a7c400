"""How networks start: what diffusers leaves at random, and costs a small network thousands of steps."""

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn

COLOUR_GAIN = 6.0
"""How much louder than grey an autoencoder hears colour: in pictures of streets it has a thirtieth of the variance."""

LOG_VARIANCE = -6.0
"""Of a new autoencoder's posterior: at 0 its noise drowns what the encoder says."""


@torch.no_grad()
def quiet_branches(network: nn.Module) -> None:
    """Let every residual block and transformer add nothing at first. Source: Ho et al. 2020's released code."""
    for module in network.modules():
        last = None
        if isinstance(module, ResnetBlock2D):
            last = module.conv2
        elif isinstance(module, Transformer2DModel):
            last = module.proj_out
        if last is not None:
            for parameter in last.parameters():
                parameter.zero_()


@torch.no_grad()
def widen_input(unet: UNet2DConditionModel | UNet2DModel, channels: int) -> None:
    """Let an image network take `channels` in all, and be deaf to the new ones at first. Source: Brooks et al. 2023."""
    old: Any = unet.conv_in
    if old.in_channels < channels:
        new: Any = nn.Conv2d(channels, old.out_channels, old.kernel_size, padding=old.padding)
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
        new.bias.copy_(old.bias)
        unet.conv_in = new
        unet.register_to_config(in_channels=channels)  # type: ignore[no-untyped-call]


@torch.no_grad()
def prepare_autoencoder(vae: AutoencoderKL | VQModel) -> None:
    """Quiet branches, an ear for colour, and a posterior with little noise."""
    quiet_branches(vae)
    grey = torch.full((3, 3), 1 / 3)
    gain = grey + COLOUR_GAIN * (torch.eye(3) - grey)
    conv: Any = vae.encoder.conv_in
    conv.weight.copy_(torch.einsum("o c h w, c d -> o d h w", conv.weight, gain))
    moments: Any = vae.quant_conv
    if isinstance(vae, AutoencoderKL) and moments is not None:
        moments.bias[vae.config["latent_channels"] :] = LOG_VARIANCE


@torch.no_grad()
def normalise_latents(vae: AutoencoderKL, mean: Float[Tensor, " z"], deviation: Float[Tensor, " z"]) -> None:
    """Give every latent channel zero mean and unit variance, and the decoder what it had: nothing else changes.

    A channel of small variance drowns in the noise of a diffusion model long before the others do.

    Args:
        vae: with quant_conv and post_quant_conv, in which the change disappears.
        mean, deviation: of each channel now.
    """
    into: Any = vae.quant_conv
    out: Any = vae.post_quant_conv
    channels = len(mean)
    mean, deviation = mean.to(into.weight), deviation.to(into.weight)
    into.weight[:channels] /= deviation[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mean) / deviation
    into.bias[channels:] -= 2 * deviation.log()
    out.bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation[None, :, None, None]

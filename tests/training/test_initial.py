"""New networks: what they do before they have learned anything."""

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import nn
from torch.testing import assert_close

from training.initial import (
    COLOUR_GAIN,
    LOG_VARIANCE,
    normalise_latents,
    prepare_autoencoder,
    quiet_branches,
    widen_input,
)


def test_quiet_branches_let_everything_through() -> None:
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=8, out_channels=8, groups=4, temb_channels=None)
    transformer = Transformer2DModel(2, 4, in_channels=8, norm_num_groups=4, cross_attention_dim=6)
    x, tokens = torch.randn(2, 8, 5, 7), torch.randn(2, 3, 6)
    assert (block(x, None) - x).abs().max() > 0.1
    quiet_branches(nn.ModuleList([block, transformer]))
    assert_close(block(x, None), x)
    assert_close(transformer(x, encoder_hidden_states=tokens).sample, x)


def test_widened_input_changes_nothing_until_it_learns() -> None:
    torch.manual_seed(0)
    kinds = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "norm_num_groups": 4}
    unet = UNet2DModel(in_channels=2, out_channels=2, block_out_channels=(8,), **kinds)
    x, more = torch.randn(2, 2, 8, 8), torch.randn(2, 3, 8, 8)
    before = unet(x, 5).sample
    for _ in range(2):
        widen_input(unet, 5)
    assert unet.config["in_channels"] == 5
    assert_close(unet(torch.cat([x, more], dim=1), 5).sample, before)


def test_new_autoencoder_hears_grey_as_before_and_colour_louder() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2)
    conv = vae.encoder.conv_in
    grey, red = torch.ones(1, 3, 6, 6), torch.tensor([2.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 6, 6)
    before_grey, before_red = conv(grey) - conv.bias[:, None, None], conv(red) - conv.bias[:, None, None]
    prepare_autoencoder(vae)
    assert_close(conv(grey) - conv.bias[:, None, None], before_grey)
    assert_close(conv(red) - conv.bias[:, None, None], COLOUR_GAIN * before_red)
    log_variance = vae.encode(torch.randn(1, 3, 64, 64)).latent_dist.logvar
    assert abs(log_variance.mean().item() - LOG_VARIANCE) < 2


def test_normalised_latents_have_unit_variance_and_decode_to_the_same() -> None:
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        latent_channels=3,
    )
    frames = torch.randn(4, 3, 16, 24)
    before = vae.encode(frames).latent_dist
    mean, deviation = before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3))
    decoded = vae.decode(before.mean + 0.3 * before.std).sample
    normalise_latents(vae, mean, deviation)
    after = vae.encode(frames).latent_dist
    assert_close(after.mean.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert_close(after.mean.std((0, 2, 3)), torch.ones(3))
    assert_close(after.std, before.std / deviation[:, None, None])
    assert_close(vae.decode(after.mean + 0.3 * after.std).sample, decoded, atol=1e-5, rtol=1e-4)

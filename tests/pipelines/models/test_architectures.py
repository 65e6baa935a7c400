"""Full-size networks on the meta device against the counts that the paper gives (appendix H.2.1)."""

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from pipelines.models import architectures
from pipelines.models.cost import count_parameters, video_decoder_cost, video_unet_cost
from pipelines.models.temporal import TemporalConfig
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.video_unet import VideoUNet

WITHIN = 1e-3


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):
        yield


def test_stable_diffusion_14_matches_the_paper():
    unet = UNet2DConditionModel(**architectures.sd14_unet())
    config = TemporalConfig(mix="scalar", cross_attention_dim=768)
    cost = video_unet_cost(VideoUNet(unet, config), shape=(1, 8, 4, 40, 64))
    assert cost.spatial_parameters / 1e6 == pytest.approx(860, rel=WITHIN)
    assert cost.temporal_parameters / 1e6 == pytest.approx(649.69, rel=WITHIN)
    interpolation = TemporalConfig(mix="scalar", cross_attention_dim=768, input_concat=True, embeds_fps=True)
    cost = video_unet_cost(VideoUNet(unet, interpolation), shape=(1, 5, 4, 40, 64))
    assert (cost.spatial_parameters + cost.temporal_parameters) / 1e6 == pytest.approx(1509, rel=WITHIN)


def test_stable_diffusion_21_matches_the_paper():
    unet = UNet2DConditionModel(**architectures.sd21_unet())
    config = TemporalConfig(mix="scalar", cross_attention_dim=1024)
    cost = video_unet_cost(VideoUNet(unet, config), shape=(1, 8, 4, 40, 64))
    assert cost.spatial_parameters / 1e6 == pytest.approx(865.91, rel=WITHIN)
    assert cost.temporal_parameters / 1e6 == pytest.approx(656, rel=WITHIN)


def test_upscaler_matches_the_paper():
    unet = UNet2DConditionModel(**architectures.x4_unet())
    config = TemporalConfig(mix="scalar", cross_attention_dim=1024, context_channels=3)
    cost = video_unet_cost(VideoUNet(unet, config), shape=(1, 8, 4, 80, 80))
    assert cost.spatial_parameters / 1e6 == pytest.approx(473, rel=WITHIN)
    assert cost.temporal_parameters / 1e6 == pytest.approx(449, rel=WITHIN)
    assert count_parameters(AutoencoderKL(**architectures.x4_autoencoder())) / 1e6 == pytest.approx(55.33, rel=WITHIN)


def test_stable_diffusion_autoencoder_matches_the_paper():
    vae = AutoencoderKL(**architectures.sd_autoencoder())
    assert count_parameters(vae) / 1e6 == pytest.approx(83.65, rel=WITHIN)
    svd = video_decoder_cost(VideoDecoder(vae, DecoderConfig(spatial_kernel=1)), shape=(1, 6, 4, 40, 64))
    assert svd.temporal_parameters / 1e6 == pytest.approx(14.1, rel=5e-3)
    paper = video_decoder_cost(VideoDecoder(vae, DecoderConfig()), shape=(1, 6, 4, 40, 64))
    assert paper.temporal_parameters / 1e6 == pytest.approx(126, rel=5e-3)


@pytest.mark.parametrize("make", [architectures.driving_unet, architectures.driving_small_unet])
def test_driving_networks_take_their_clips(make):
    unet = UNet2DConditionModel(**make())
    prediction = TemporalConfig(mix="per_frame", num_frames=10, cross_attention_dim=None, context_channels=5)
    cost = video_unet_cost(VideoUNet(unet, prediction), shape=(2, 10, 4, 16, 32), num_tokens=1)
    assert cost.temporal_parameters > 0
    heads = {block.attn1.inner_dim // block.attn1.heads for block in unet.modules() if hasattr(block, "attn1")}
    assert heads == {32}


def test_upsampler_and_biking_networks_take_their_clips():
    upsampler = UNet2DModel(**architectures.driving_upsampler_unet())
    config = TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3)
    assert video_unet_cost(VideoUNet(upsampler, config), shape=(1, 8, 3, 64, 64)).flops > 0
    biking = UNet2DModel(**architectures.biking_unet())
    config = TemporalConfig(mix="per_frame", num_frames=8, cross_attention_dim=None, context_channels=5)
    assert video_unet_cost(VideoUNet(biking, config), shape=(1, 8, 4, 16, 32)).flops > 0


@pytest.mark.parametrize(
    ("network", "make"),
    [(VQModel, architectures.driving_autoencoder), (AutoencoderKL, architectures.biking_autoencoder)],
)
def test_autoencoders_have_factor_eight(network, make):
    latents = network(**make()).encode(torch.empty(1, 3, 64, 128))
    latents = latents.latents if network is VQModel else latents.latent_dist.mean
    assert latents.shape == (1, 4, 8, 16)


def test_flops_agree_with_a_count_by_hand():
    unet = UNet2DModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        layers_per_block=1,
        add_attention=False,
    )
    config = TemporalConfig(mix="scalar", cross_attention_dim=None, attention=False)
    video = video_unet_cost(VideoUNet(unet, config), shape=(2, 3, 4, 5, 7))
    # Five residual blocks, each followed by two (3, 1, 1) convolutions and one linear layer per frame.
    temporal = 5 * (2 * 3) * (2 * (5 * 7) * 2 * 32 * 32 * 3 + 2 * 128 * 32)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        unet(torch.empty(6, 4, 5, 7), torch.empty(6))
    assert video.flops - counter.get_total_flops() == temporal

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import AutoencoderKLTemporalDecoder
from diffusers.models.unets.unet_spatio_temporal_condition import UNetSpatioTemporalConditionModel
from torch.testing import assert_close

from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import latent_scaling
from pipelines.models.lean_backbone import recompute_transformers
from pipelines.models.svd import (
    embed_time_ids,
    svd_from_video_decoder,
    svd_from_video_unet,
    video_decoder_from_svd,
    video_unet_from_svd,
)
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder

UNETS = {
    "attention-outside": {
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "num_attention_heads": (2, 4),
        "layers_per_block": 2,
    },
    "attention-inside": {
        "block_out_channels": (64, 32, 96),
        "down_block_types": ("DownBlockSpatioTemporal", *("CrossAttnDownBlockSpatioTemporal",) * 2),
        "up_block_types": (*("CrossAttnUpBlockSpatioTemporal",) * 2, "UpBlockSpatioTemporal"),
        "num_attention_heads": (4, 2, 3),
        "layers_per_block": 1,
    },
    "deep-transformers": {
        "block_out_channels": (32, 32),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal",) * 2,
        "up_block_types": ("CrossAttnUpBlockSpatioTemporal",) * 2,
        "num_attention_heads": (4, 8),
        "layers_per_block": 1,
        "transformer_layers_per_block": 2,
    },
}


@pytest.fixture(params=UNETS)
def svd_unet(request):
    svd = UNetSpatioTemporalConditionModel(
        **UNETS[request.param],
        cross_attention_dim=20,
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48,
    )
    return randomised(svd)


@torch.no_grad()
def randomised(network):
    """Norm scales, biases and mixes with values of their own; all start at one or zero."""
    for name, parameter in network.named_parameters():
        if parameter.ndim < 2:
            parameter.add_(0.3 * torch.randn_like(parameter))
        if "mix_factor" in name:
            parameter.normal_()
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 7])
def test_video_unet_from_svd_agrees_with_diffusers_both_ways(svd_unet, tokens):
    noisy, image = torch.randn(2, 2, 5, 4, 10, 12)
    text, time_ids = torch.randn(2, tokens, 20), torch.tensor([[6.0, 127.0, 0.02], [30.0, 40.0, 0.1]])
    timestep = torch.tensor([1.2, 700.0])
    expected = svd_unet(torch.cat([noisy, image], dim=2), timestep, text, time_ids).sample
    video_unet = video_unet_from_svd(svd_unet)
    conditions = Conditions(text=text, context=image, class_labels=embed_time_ids(time_ids, 16))
    assert_close(video_unet(noisy, timestep, conditions), expected, rtol=1e-5, atol=1e-5)
    back = svd_from_video_unet(video_unet, time_id_dim=16)
    assert_close(dict(back.state_dict()), dict(svd_unet.state_dict()), rtol=0, atol=0)
    returned = back.eval()(torch.cat([noisy, image], dim=2), timestep, text, time_ids).sample
    assert_close(returned, expected, rtol=0, atol=0)


@pytest.mark.parametrize("tokens", [1, 7])
def test_gradients_of_temporal_parameters_agree_with_diffusers(svd_unet, tokens):
    noisy, image, target = torch.randn(3, 2, 5, 4, 10, 12)
    text, time_ids = torch.randn(2, tokens, 20), torch.tensor([[6.0, 127.0, 0.02], [30.0, 40.0, 0.1]])
    timestep = torch.tensor([1.2, 700.0])
    video_unet = video_unet_from_svd(svd_unet)
    video_unet.freeze_spatial()
    recompute_transformers(video_unet.unet)
    theirs = svd_unet(torch.cat([noisy, image], dim=2), timestep, text, time_ids).sample
    (theirs - target).square().mean().backward()
    conditions = Conditions(text=text, context=image, class_labels=embed_time_ids(time_ids, 16))
    (video_unet(noisy, timestep, conditions) - target).square().mean().backward()
    # The gradients travel back by the names that the weights travel by.
    for parameter in video_unet.temporal_parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    ours = svd_from_video_unet(video_unet, time_id_dim=16).state_dict()
    temporal = ("temporal_", "time_mixer", "time_pos_embed")
    expected = {n: p.grad for n, p in svd_unet.named_parameters() if any(part in n for part in temporal)}
    assert len(expected) == len(list(video_unet.temporal_parameters()))
    scale = max(grad.abs().max() for grad in expected.values())
    for name, grad in expected.items():
        assert_close(ours[name] / scale, grad / scale, rtol=1e-4, atol=1e-5, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("widths", [(32,), (32, 64), (64, 32, 96)])
def test_video_decoder_from_svd_agrees_with_diffusers_both_ways(widths):
    svd = AutoencoderKLTemporalDecoder(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        layers_per_block=2,
        latent_channels=5,
        scaling_factor=0.4,
    )
    randomised(svd)
    latents = torch.randn(2, 7, 5, 4, 6)
    decoder = video_decoder_from_svd(svd)
    restored = latent_scaling(decoder.vae).restore(latents)
    expected = torch.stack([svd.decode(clip, num_frames=7).sample for clip in restored])
    assert_close(decoder(latents), expected, rtol=1e-5, atol=1e-5)
    back = svd_from_video_decoder(decoder)
    assert_close(dict(back.state_dict()), dict(svd.state_dict()), rtol=0, atol=0)


def test_networks_of_another_layout_are_not_exported(make_video_unet):
    with pytest.raises(ValueError, match="not of the layout of Stable Video Diffusion"):
        svd_from_video_unet(make_video_unet())
    three_layers = AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=3)
    with pytest.raises(ValueError, match="layers_per_block=3; only decoders with 2"):
        video_decoder_from_svd(three_layers)
    vae = video_decoder_from_svd(AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=2)).vae
    with pytest.raises(ValueError, match="not of the layout"):
        svd_from_video_decoder(VideoDecoder(vae, DecoderConfig()))

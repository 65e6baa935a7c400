"""What a video U-Net takes beside the noise, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.unets.unet_1d import UNet1DModel
from torch.testing import assert_close

from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.models.video_unet import VideoUNet
from tests.pipelines.models.image_models import image_batch

TEXT_DIM = 24


def test_video_unet_pixel_space_untrained_equals_image_model(make_pixel_unet):
    unet = make_pixel_unet()
    config = TemporalConfig(mix="per_frame", num_frames=3, cross_attention_dim=None, context_channels=3)
    noisy, timestep = torch.randn(2, 3, 3, 8, 12), torch.tensor([1.0, 9.0])
    video = VideoUNet(unet, config)(noisy, timestep, Conditions(context=torch.randn(2, 3, 3, 8, 12)))
    images = unet(noisy.flatten(0, 1), timestep.repeat_interleave(3)).sample
    assert_close(video.flatten(0, 1), images, rtol=0, atol=0)


def test_video_unet_upscaler_takes_low_resolution_beside_the_noise(make_unet):
    unet = make_unet(in_channels=7, out_channels=4, num_class_embeds=20)
    config = TemporalConfig(mix="scalar", cross_attention_dim=TEXT_DIM, context_channels=3)
    noisy, low, text = torch.randn(2, 3, 4, 8, 12), torch.randn(2, 3, 3, 8, 12), torch.randn(2, 7, TEXT_DIM)
    timestep, labels = torch.tensor([1.0, 9.0]), torch.tensor([3, 19])
    video = VideoUNet(unet, config)(noisy, timestep, Conditions(text=text, context=low, class_labels=labels))
    both = torch.cat([noisy, low], dim=2).flatten(0, 1)
    images = unet(
        both, timestep.repeat_interleave(3), text.repeat_interleave(3, 0), class_labels=labels.repeat_interleave(3)
    ).sample
    assert_close(video.flatten(0, 1), images, rtol=0, atol=0)


def test_video_unet_input_concat_equals_widened_first_convolution(make_unet, inputs):
    noisy, timestep, conditions = inputs
    narrow, wide = make_unet(), make_unet(in_channels=9)
    video_unet = VideoUNet(narrow, TemporalConfig(mix="scalar", cross_attention_dim=TEXT_DIM, input_concat=True))
    torch.nn.init.normal_(video_unet.temporal["context_in"].weight, std=0.1)
    weights = narrow.state_dict()
    weights["conv_in.weight"] = torch.cat([weights["conv_in.weight"], video_unet.temporal["context_in"].weight], dim=1)
    wide.load_state_dict(weights)
    context = torch.randn(2, 3, 5, 10, 12)
    images = image_batch(wide, torch.cat([noisy, context], dim=2), timestep, conditions.text)
    video = video_unet(noisy, timestep, replace(conditions, context=context))
    assert_close(video, images, rtol=1e-5, atol=1e-5)


def test_context_changes_the_output_only_once_trained(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    one, other = torch.randn(2, 2, 3, 5, 10, 12)
    for trained in (False, True):
        video_unet = make_video_unet(trained=trained, context_channels=5)
        first = video_unet(noisy, timestep, replace(conditions, context=one))
        second = video_unet(noisy, timestep, replace(conditions, context=other))
        assert trained == (not torch.allclose(first, second, atol=1e-3))


def test_fps_is_a_token_of_the_temporal_layers(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    slow, fast = torch.tensor([7.5, 7.5]), torch.tensor([7.5, 30.0])
    video_unet = make_video_unet(trained=True, cross_attention_dim=17, embeds_fps=True)
    first = video_unet(noisy, timestep, replace(conditions, fps=slow))
    second = video_unet(noisy, timestep, replace(conditions, fps=fast))
    assert_close(first[0], second[0], rtol=0, atol=0)
    assert not torch.allclose(first[1], second[1], atol=1e-3)
    beside_text = make_video_unet(trained=True, embeds_fps=True)
    text = replace(conditions, temporal_text=conditions.text)
    first, second = (beside_text(noisy, timestep, replace(text, fps=fps)) for fps in (slow, fast))
    assert not torch.allclose(first[1], second[1], atol=1e-3)
    with pytest.raises(ValueError, match="needs a frame rate"):
        video_unet(noisy, timestep, conditions)


def test_initialise_temporal_from_key_frames_keeps_their_output(make_unet, make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    unet = make_unet()
    keyframes = make_video_unet(unet=unet, trained=True)
    prediction = make_video_unet(unet=unet, mix="per_frame", num_frames=3, context_channels=5)
    fresh = prediction.initialise_temporal(keyframes.temporal_state_dict())
    assert fresh
    assert all(".context." in name for name in fresh)
    video = prediction(noisy, timestep, replace(conditions, context=torch.randn(2, 3, 5, 10, 12)))
    assert_close(video, keyframes(noisy, timestep, conditions), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": None}, r"attends to tokens of width 24; pass Conditions\(text"),
        ({"text": torch.zeros(2, 7, 25)}, "tokens of width 25, the network attends to width 24"),
        ({"context": torch.zeros(2, 3, 5, 10, 12)}, "context of 5 channels was given, but this network takes none"),
        ({"class_labels": torch.zeros(2)}, "takes no class_labels"),
    ],
)
def test_video_unet_refuses_conditions_that_do_not_fit(make_video_unet, inputs, changes, message):
    noisy, timestep, conditions = inputs
    with pytest.raises(ValueError, match=message):
        make_video_unet()(noisy, timestep, replace(conditions, **changes))


def test_video_unet_refuses_wrong_frames_channels_and_context(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    with pytest.raises(ValueError, match="have 3 frames, but the mix is learned for each of 8"):
        make_video_unet(mix="per_frame", num_frames=8)(noisy, timestep, conditions)
    with pytest.raises(ValueError, match="latents have 6 channels, the backbone takes 4"):
        make_video_unet()(torch.zeros(2, 3, 6, 10, 12), timestep, conditions)
    predictor = make_video_unet(context_channels=5)
    with pytest.raises(ValueError, match="needs a context of 5 channels"):
        predictor(noisy, timestep, conditions)
    with pytest.raises(ValueError, match=r"context is \(2, 3, 5, 5, 6\); .* must be \(2, 3, 5, 10, 12\)"):
        predictor(noisy, timestep, replace(conditions, context=torch.zeros(2, 3, 5, 5, 6)))


def test_video_unet_refuses_weights_of_another_stage(make_video_unet):
    keyframes, prediction = make_video_unet(), make_video_unet(context_channels=5)
    with pytest.raises(ValueError, match=r"missing .*context.* of the same stage"):
        prediction.load_temporal_state_dict(keyframes.temporal_state_dict())
    with pytest.raises(ValueError, match=r"unknown .*context"):
        keyframes.load_temporal_state_dict(prediction.temporal_state_dict())
    with pytest.raises(ValueError, match=r"mix\.logit is \(1,\), not \(3,\)"):
        make_video_unet(mix="per_frame", num_frames=3).load_temporal_state_dict(keyframes.temporal_state_dict())


def test_video_unet_refuses_another_family_and_adapters(make_unet):
    config = TemporalConfig(mix="scalar", cross_attention_dim=TEXT_DIM)
    with pytest.raises(ValueError, match="UNet1DModel is no image U-Net"):
        VideoUNet(UNet1DModel(block_out_channels=(32, 32, 64)), config)
    other_blocks = make_unet(down_block_types=("CrossAttnDownBlock2D", "KDownBlock2D"))
    with pytest.raises(ValueError, match="ResnetBlockCondNorm2D; temporal layers follow ResnetBlock2D"):
        VideoUNet(other_blocks, config)
    larger = make_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=72
    )
    with pytest.raises(ValueError, match="embeds 'text_time' beside its text, as Stable Diffusion XL"):
        VideoUNet(larger, config)
    adapted = make_unet()
    adapted.mid_block.attentions[0].transformer_blocks[0].attn2.set_processor(IPAdapterAttnProcessor2_0(64, TEXT_DIM))
    with pytest.raises(ValueError, match=r"mid_block.*IPAdapterAttnProcessor2_0.*remove the adapter"):
        VideoUNet(adapted, config)

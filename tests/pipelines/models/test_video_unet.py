import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch.testing import assert_close

from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.models.video_unet import VideoUNet
from tests.pipelines.models.image_models import image_batch, image_model

TEXT_DIM = 24


def test_video_unet_untrained_equals_image_model_bit_for_bit(make_unet, make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    unet = make_unet()
    expected = image_batch(unet, noisy, timestep, conditions.text)
    video = make_video_unet(unet=unet)(noisy, timestep, conditions)
    assert_close(video, expected, rtol=0, atol=0)
    assert_close(video, image_model(unet, noisy, timestep, conditions.text), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("temporal", [{"attention": False}, {"convolution": False, "attention_blocks": 2}])
def test_video_unet_ablated_and_untrained_equals_image_model(make_video_unet, inputs, temporal):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(**temporal)
    video = video_unet(noisy, timestep, conditions)
    assert_close(video, image_batch(video_unet.unet, noisy, timestep, conditions.text), rtol=0, atol=0)


def test_video_unet_with_mix_one_equals_image_model_and_separates_frames(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True)
    for name, parameter in video_unet.temporal.named_parameters():
        if name.endswith("logit"):
            torch.nn.init.constant_(parameter, torch.inf)
    video = video_unet(noisy, timestep, conditions)
    assert_close(video, image_batch(video_unet.unet, noisy, timestep, conditions.text), rtol=0, atol=0)
    changed = noisy.clone()
    changed[:, 2] += 1
    assert_close(video_unet(changed, timestep, conditions)[:, :2], video[:, :2], rtol=0, atol=0)


@pytest.mark.parametrize("temporal", [{}, {"convolution": False}, {"attention": False}])
def test_video_unet_trained_frame_depends_on_other_frames(make_video_unet, inputs, temporal):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True, **temporal)
    changed = noisy.clone()
    changed[:, 2] += 1
    difference = video_unet(changed, timestep, conditions) - video_unet(noisy, timestep, conditions)
    assert (difference[:, 0].abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_video_unet_clips_of_a_batch_are_independent(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True, context_channels=5, embeds_context_level=True)
    context, level = torch.randn(2, 3, 5, 10, 12), torch.tensor([0.0, 200.0])
    both = video_unet(noisy, timestep, replace(conditions, context=context, context_level=level))
    for b in range(2):
        own = Conditions(text=conditions.text[b][None], context=context[b][None], context_level=level[b][None])
        assert_close(video_unet(noisy[b][None], timestep[b][None], own)[0], both[b], rtol=1e-4, atol=1e-5)


def test_video_unet_image_clips_see_no_temporal_layer(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True)
    video = video_unet(noisy, timestep, conditions)
    mixed = video_unet(noisy, timestep, replace(conditions, is_image=torch.tensor([True, False])))
    images = image_batch(video_unet.unet, noisy, timestep, conditions.text)
    assert_close(mixed[0], images[0], rtol=0, atol=0)
    assert_close(mixed[1], video[1], rtol=0, atol=0)
    assert not torch.allclose(mixed[1], images[1], atol=1e-2)
    all_images = video_unet(noisy, timestep, replace(conditions, is_image=torch.tensor([True, True])))
    assert_close(all_images, images, rtol=0, atol=0)


def test_video_unet_separates_spatial_from_temporal_text(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    spatial, temporal = torch.randn(2, 5, TEXT_DIM), torch.randn(2, 9, TEXT_DIM)
    video_unet = make_video_unet(trained=True)
    seen = []
    for layer in video_unet.temporal.values():
        for block in getattr(layer, "blocks", ()):
            block.tokens.register_forward_hook(lambda module, args, output: seen.append(args[1]))
    one = video_unet(noisy, timestep, Conditions(text=conditions.text, temporal_text=temporal))
    other = video_unet(noisy, timestep, Conditions(text=spatial, temporal_text=temporal))
    assert len(seen) == 2 * 4
    assert all(tokens is temporal for tokens in seen)
    assert not torch.allclose(one, other, atol=1e-3)
    third = video_unet(noisy, timestep, Conditions(text=spatial, temporal_text=temporal + 1))
    assert not torch.allclose(third, other, atol=1e-3)
    same = video_unet(noisy, timestep, Conditions(text=spatial))
    assert_close(same, video_unet(noisy, timestep, Conditions(text=spatial, temporal_text=spatial)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "temporal",
    [{}, {"mix": "per_frame", "num_frames": 3, "context_channels": 5, "embeds_context_level": True}],
)
def test_video_unet_gradient_reaches_zeroed_layers_at_once_and_all_by_step_three(make_video_unet, inputs, temporal):
    noisy, timestep, conditions = inputs
    conditions = replace(conditions, context_level=torch.tensor([10.0, 200.0]))
    if temporal:
        conditions = replace(conditions, context=torch.randn(2, 3, 5, 10, 12))
    video_unet = make_video_unet(**temporal)
    video_unet.freeze_spatial()
    parameters = dict(video_unet.temporal.named_parameters())
    last = {
        name for name in parameters if name.rsplit(".", 1)[0].endswith(("resnets_0.conv2", "position.2", "proj_out"))
    } - {"context_level.proj_out.weight", "context_level.proj_out.bias"}
    assert all(parameters[name].abs().max() == 0 for name in last)
    target = torch.randn_like(noisy)
    optimizer = torch.optim.Adam(video_unet.temporal_parameters(), lr=1e-2)
    for step in range(3):
        optimizer.zero_grad()
        (video_unet(noisy, timestep, conditions) - target).square().mean().backward()
        dead = {name for name, p in parameters.items() if p.grad is None or p.grad.abs().max() == 0}
        if step == 0:
            assert not dead & last
        optimizer.step()
    assert not dead
    assert all(p.grad is None for p in video_unet.unet.parameters())


def test_temporal_weights_move_to_another_backbone_unchanged(make_unet, make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    trained = make_video_unet(trained=True)
    other = make_unet()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    moved = make_video_unet(unet=other)
    moved.load_temporal_state_dict(trained.temporal_state_dict())
    reference = make_video_unet(unet=trained.unet, trained=True)
    reference.load_temporal_state_dict(moved.temporal_state_dict())
    assert_close(reference(noisy, timestep, conditions), trained(noisy, timestep, conditions), rtol=0, atol=0)
    assert other.state_dict().keys() == before.keys()
    assert_close(dict(other.state_dict()), before, rtol=0, atol=0)


def test_video_unets_sharing_a_backbone_do_not_disturb_each_other(make_unet, make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    unet = make_unet()
    first, second = make_video_unet(unet=unet, trained=True), make_video_unet(unet=unet, trained=True)
    alone = copy.deepcopy(first)
    assert_close(first(noisy, timestep, conditions), alone(noisy, timestep, conditions), rtol=0, atol=0)
    assert not torch.allclose(second(noisy, timestep, conditions), first(noisy, timestep, conditions), atol=1e-3)


def test_removed_video_unet_leaves_the_image_model_and_its_memory(make_unet, make_video_unet):
    unet = make_unet()
    video_unet = make_video_unet(unet=unet, input_concat=True)
    layer = weakref.ref(next(iter(video_unet.temporal.values())))
    video_unet.remove()
    assert not any(module._forward_hooks for module in unet.modules())
    del video_unet
    gc.collect()
    assert layer() is None


def test_video_unet_copy_owns_its_layers(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True)
    before = video_unet(noisy, timestep, conditions)
    duplicate = copy.deepcopy(video_unet)
    for parameter in duplicate.parameters():
        torch.nn.init.zeros_(parameter)
    assert_close(video_unet(noisy, timestep, conditions), before, rtol=0, atol=0)
    assert duplicate(noisy, timestep, conditions).abs().max() == 0


def test_video_unet_with_scalar_mix_runs_at_any_length_within_its_window(make_video_unet, inputs):
    _, timestep, conditions = inputs
    noisy = torch.randn(2, 13, 4, 8, 6)
    video_unet = make_video_unet(trained=True, convolution=False, attention_window=4)
    changed = noisy.clone()
    changed[:, 12] += 1
    difference = video_unet(changed, timestep, conditions) - video_unet(noisy, timestep, conditions)
    reach = 4 * 4  # four transformers of this network, one behind the other
    assert reach > 12
    assert difference[:, 0].abs().max() > 0
    single = make_video_unet(trained=True, convolution=False, attention_window=4)
    for key in list(single.temporal)[1:]:
        torch.nn.init.constant_(single.temporal[key].mix.logit, torch.inf)
    difference = single(changed, timestep, conditions) - single(noisy, timestep, conditions)
    assert difference[:, :8].abs().max() == 0
    assert difference[:, 8].abs().max() > 0


@torch.no_grad()
def test_video_unet_takes_any_size_with_its_context(make_video_unet, inputs):
    _, timestep, conditions = inputs
    noisy, context = torch.randn(2, 3, 4, 7, 13), torch.randn(2, 3, 5, 7, 13)
    video_unet = make_video_unet(trained=True, context_channels=5)
    assert video_unet(noisy, timestep, replace(conditions, context=context)).shape == noisy.shape


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [3, 26])
def test_video_unet_in_bfloat16_agrees_with_float32(make_video_unet, inputs, num_frames):
    _, timestep, conditions = inputs
    noisy = torch.randn(2, num_frames, 4, 6, 8)
    video_unet = make_video_unet(trained=True, attention_window=2)
    expected = video_unet(noisy, timestep, conditions)
    half = video_unet.to(torch.bfloat16)(
        noisy.bfloat16(), timestep.bfloat16(), Conditions(text=conditions.text.bfloat16())
    )
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).square().mean() < 1e-3 * expected.square().mean()


@pytest.mark.parametrize(("width", "expected", "spatial"), [(1024, 656.08, 865.91), (768, 649.69, 859.52)])
def test_stable_diffusion_temporal_layers_have_the_papers_size(width, expected, spatial):
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=width)
        video_unet = VideoUNet(unet, TemporalConfig(mix="scalar", cross_attention_dim=width))
    sizes = {name: parameter.numel() for name, parameter in video_unet.temporal.named_parameters()}
    assert sum(parameter.numel() for parameter in unet.parameters()) / 1e6 == pytest.approx(spatial, abs=0.005)
    assert sum(sizes.values()) / 1e6 == pytest.approx(expected, abs=0.005)
    assert sum(size for name, size in sizes.items() if "resnets" in name) / 1e6 == pytest.approx(159.27, abs=0.005)
    assert sum("resnets" in key for key in video_unet.temporal) == 22
    assert sum("attentions" in key for key in video_unet.temporal) == 16
    assert sum(name.endswith("mix.logit") and size == 1 for name, size in sizes.items()) == 38

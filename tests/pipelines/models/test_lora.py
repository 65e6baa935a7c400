import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pipelines.models.lora import fuse_lora

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "down_blocks.0.resnets.0.conv1"


@pytest.fixture
def weights():
    return {
        f"unet.{LINEAR}.lora_A.weight": torch.randn(3, 24),
        f"unet.{LINEAR}.lora_B.weight": torch.randn(32, 3),
        f"unet.{LINEAR}.alpha": torch.tensor(6.0),
        f"unet.{CONV}.lora.down.weight": torch.randn(2, 32, 3, 3),
        f"unet.{CONV}.lora.up.weight": torch.randn(32, 2, 1, 1),
    }


def test_fused_adapter_acts_as_a_parallel_low_rank_branch(make_unet, weights):
    unet = make_unet()
    linear, conv = unet.get_submodule(LINEAR), unet.get_submodule(CONV)
    tokens, hidden = torch.randn(2, 7, 24), torch.randn(2, 32, 5, 6)
    a, b, _, down, up = weights.values()
    expected_tokens = linear(tokens) + 0.5 * (6 / 3) * tokens @ a.T @ b.T
    expected_hidden = conv(hidden) + 0.5 * functional.conv2d(functional.conv2d(hidden, down, padding=1), up)
    assert fuse_lora(unet, weights, scale=0.5) == 2
    assert_close(linear(tokens), expected_tokens, rtol=1e-4, atol=1e-4)
    assert_close(conv(hidden), expected_hidden, rtol=1e-4, atol=1e-4)


def test_fused_adapter_reaches_the_video_model_and_comes_out_again(make_video_unet, inputs, weights):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True)
    before = video_unet(noisy, timestep, conditions)
    fuse_lora(video_unet.unet, weights)
    assert not torch.allclose(video_unet(noisy, timestep, conditions), before, atol=1e-2)
    fuse_lora(video_unet.unet, weights, scale=-1.0)
    assert_close(video_unet(noisy, timestep, conditions), before, rtol=1e-3, atol=1e-3)


def test_adapters_of_other_networks_are_refused(make_unet, weights):
    with pytest.raises(ValueError, match=r"no low-rank weights under 'text_encoder\.'"):
        fuse_lora(make_unet(), weights, prefix="text_encoder.")
    wide = {f"unet.{LINEAR}.lora_A.weight": torch.randn(3, 25), f"unet.{LINEAR}.lora_B.weight": torch.randn(32, 3)}
    with pytest.raises(ValueError, match=r"as \(32, 25\), the layer is \(32, 24\)"):
        fuse_lora(make_unet(), wide)
    elsewhere = {"unet.x.lora_A.weight": torch.randn(3, 24), "unet.x.lora_B.weight": torch.randn(32, 3)}
    with pytest.raises(ValueError, match="'x', which the network lacks"):
        fuse_lora(make_unet(), elsewhere)

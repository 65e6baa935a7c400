import pytest
import torch
from torch.testing import assert_close

from pipelines.models.temporal import Clip, Mix, TemporalConfig


def test_mix_weighs_the_temporal_branch_by_one_minus_sigmoid():
    mix = Mix(3)
    torch.nn.init.constant_(mix.logit, 0.7)
    mix.logit.data[1] = torch.inf
    weight = mix.temporal_weight(Clip(num_frames=3))
    expected = 1 - 1 / (1 + torch.tensor(-0.7).exp())
    assert_close(weight, torch.stack([expected, torch.tensor(0.0), expected])[None])
    assert weight[0, 1] == 0
    images = mix.temporal_weight(Clip(num_frames=3, is_image=torch.tensor([False, True])))
    assert_close(images, torch.stack([weight[0], torch.zeros(3)]))
    assert Mix(None).logit.shape == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mix": "per_frame"}, "a per-frame mix needs its number of frames"),
        ({"num_frames": 8}, "a scalar mix takes None"),
        ({"context_channels": -1}, "context_channels=-1, .* the first may be 0"),
        ({"attention_blocks": 0}, "attention_blocks=0; .* must be positive"),
        ({"attention_window": -2}, "attention_window=-2; use a number of frames"),
        ({"convolution": False, "attention": False}, "both off"),
        ({"embeds_fps": True}, "set cross_attention_dim"),
        ({"convolution": False, "context_channels": 5}, "context enters the temporal convolutions"),
    ],
)
def test_temporal_config_refuses_contradictions(changes, message):
    with pytest.raises(ValueError, match=message):
        TemporalConfig(**({"mix": "scalar", "cross_attention_dim": None} | changes))

import copy

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.testing import assert_close

from pipelines.models.attention import attend_over_frames, attend_to_tokens, share_tokens


@pytest.mark.parametrize("num_frames", [4, 30])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attend_over_frames_equals_a_loop_over_positions(num_frames, is_masked):
    query, key, value = torch.randn(3, 2, num_frames, 5, 6, dtype=torch.float64)
    inputs = [x.requires_grad_() for x in (query.clone(), key.clone(), value.clone())]
    bias = None
    if is_masked:
        index = torch.arange(num_frames)
        bias = torch.zeros(num_frames, num_frames, dtype=torch.float64)
        bias.masked_fill_(index[:, None] - index > 1, -torch.inf)

    def loop(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.zeros_like(q)
        for b in range(2):
            for n in range(5):
                for head in (slice(0, 2), slice(2, 4), slice(4, 6)):
                    scores = q[b, :, n, head] @ k[b, :, n, head].T / 2**0.5
                    scores = scores if bias is None else scores + bias
                    out[b, :, n, head] = scores.softmax(dim=1) @ v[b, :, n, head]
        return out

    actual, expected = attend_over_frames(*inputs, 3, bias), loop(*inputs)
    assert_close(actual, expected)
    grad = torch.randn_like(expected)
    assert_close(torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad))


def test_attend_to_tokens_equals_a_loop_over_positions():
    query, key, value = torch.randn(2, 3, 5, 6), torch.randn(2, 7, 6), torch.randn(2, 7, 6)
    attended = attend_to_tokens(query, key, value, 2)
    for b in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            scores = query[b, :, :, head] @ key[b, :, head].T / 3**0.5
            assert_close(attended[b, :, :, head], scores.softmax(dim=-1) @ value[b, :, head])


def test_shared_tokens_give_what_copied_tokens_give():
    attention = Attention(query_dim=12, cross_attention_dim=10, heads=3, dim_head=4)
    shared = copy.deepcopy(attention)
    share_tokens(shared)
    images, tokens = torch.randn(6, 5, 12), torch.randn(2, 7, 10)
    expected = attention(images, tokens.repeat_interleave(3, 0))
    assert_close(shared(images, tokens), expected)
    assert_close(shared(images, tokens.repeat_interleave(3, 0)), expected)
    with pytest.raises(ValueError, match="take no attention mask"):
        shared(images, tokens, attention_mask=torch.zeros(6, 1, 7))

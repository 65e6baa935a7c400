import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pipelines.models.temporal_convolution import ContextPath, TimeConv


@pytest.mark.parametrize(("channels", "kernel", "stride"), [(8, 3, 1), (8, 4, 2), (8, 1, 1), (130, 3, 1)])
def test_time_conv_equals_three_dimensional_convolution(channels, kernel, stride):
    conv = TimeConv(channels, 5, kernel, stride=stride)
    hidden = torch.randn(2, channels, 4, 8, 6, requires_grad=True)
    expected = functional.conv3d(hidden, conv.weight, conv.bias, conv.stride, conv.padding)
    actual = conv(hidden)
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    grad = torch.randn_like(expected)
    inputs = (hidden, conv.weight, conv.bias)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("halvings", "size"), [(0, (7, 13)), (1, (4, 7)), (2, (2, 4))])
def test_context_path_meets_the_size_of_its_layer(halvings, size):
    path = ContextPath(5, 6, 9, halvings=halvings)
    torch.nn.init.normal_(path.conv.weight)
    context = torch.randn(2, 3, 5, 7, 13)
    added = path(context)
    assert added.shape == (2, 9, 3, *size)
    changed = context.clone()
    changed[:, 2] += 1
    difference = (path(changed) - added).abs().amax(dim=(0, 1, 3, 4))
    assert difference[0] == 0
    assert (difference[1:] > 0).all()

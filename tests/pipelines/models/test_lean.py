import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from torch.testing import assert_close

from pipelines.models import lean
from pipelines.models.lean_backbone import lighten, recompute_transformers


def kept_bytes(call: Callable[[], Tensor], parameters: list[Tensor]) -> int:
    """Bytes that autograd keeps for a call, without its parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = call()
        del result
    return sum(kept.values())


def assert_same_gradients(actual: Tensor, expected: Tensor, inputs: list[Tensor], exact: bool = True) -> None:
    assert_close(actual, expected, rtol=0 if exact else 1e-10, atol=0 if exact else 1e-10)
    grad = torch.randn_like(expected)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, grad), torch.autograd.grad(expected, inputs, grad), strict=True
    ):
        assert_close(one, other, rtol=1e-8, atol=1e-10)


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(2, 8, 5, 7, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)


def norm_and_conv() -> tuple[nn.GroupNorm, nn.Conv2d]:
    norm, conv = nn.GroupNorm(4, 8, dtype=torch.float64), nn.Conv2d(8, 6, (3, 1), padding=(1, 0), dtype=torch.float64)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, conv


@pytest.mark.parametrize("is_frozen", [False, True])
def test_norm_silu_convolve_equals_its_parts_and_keeps_the_input(hidden, is_frozen):
    norm, conv = norm_and_conv()
    parameters = [*norm.parameters(), *conv.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(not is_frozen)

    def call() -> Tensor:
        return lean.norm_silu_convolve(hidden, norm, conv.weight, conv.bias, (1, 0))

    inputs = [hidden] if is_frozen else [hidden, *parameters]
    assert_same_gradients(call(), conv(functional.silu(norm(hidden))), inputs)
    assert kept_bytes(call, parameters) == hidden.nbytes


def test_norm_silu_convolve_takes_views_of_other_layouts():
    norm, conv = norm_and_conv()
    frames = torch.randn(3, 5, 8, 7, dtype=torch.float64, requires_grad=True)
    view = frames.permute(0, 2, 1, 3)
    inputs = [frames, *norm.parameters(), *conv.parameters()]
    actual = lean.norm_silu_convolve(view, norm, conv.weight, conv.bias, (1, 0))
    assert_same_gradients(actual, conv(functional.silu(norm(view))), inputs)


def test_frozen_convolution_keeps_nothing(hidden):
    conv = nn.Conv2d(8, 6, 3, stride=2, padding=1, dtype=torch.float64).requires_grad_(False)
    assert_same_gradients(lean.convolve(hidden, conv), conv(hidden), [hidden])
    assert kept_bytes(lambda: lean.convolve(hidden, conv), list(conv.parameters())) == 0
    assert kept_bytes(lambda: conv(hidden), list(conv.parameters())) == hidden.nbytes
    conv.requires_grad_(True)
    assert_same_gradients(lean.convolve(hidden, conv), conv(hidden), [hidden, *conv.parameters()])


def test_feed_forward_equals_its_parts_and_keeps_the_widest_product(tokens):
    norm, proj_in, proj_out = nn.LayerNorm(8).double(), nn.Linear(8, 24).double(), nn.Linear(12, 8).double()
    nn.init.normal_(norm.weight)
    parameters = [p for layer in (norm, proj_in, proj_out) for p in layer.parameters()]
    inner, gates = proj_in(norm(tokens)).chunk(2, dim=-1)
    expected = tokens + proj_out(inner * functional.gelu(gates))
    actual = lean.feed_forward(tokens, norm, proj_in, proj_out)
    assert_same_gradients(actual, expected, [tokens, *parameters], exact=False)
    kept = kept_bytes(lambda: lean.feed_forward(tokens, norm, proj_in, proj_out), parameters)
    assert kept == tokens.nbytes * (1 + 24 // 8)


def test_norm_project_equals_its_parts_and_keeps_the_input(tokens):
    norm = nn.LayerNorm(8).double()
    nn.init.normal_(norm.weight)
    layers = [nn.Linear(8, width, bias=False).double() for width in (3, 5, 6)]
    inputs = [tokens, *norm.parameters(), *(layer.weight for layer in layers)]
    actual = torch.cat(lean.norm_project(tokens, norm, *layers), dim=-1)
    expected = torch.cat([layer(norm(tokens)) for layer in layers], dim=-1)
    assert_same_gradients(actual, expected, inputs, exact=False)
    assert kept_bytes(lambda: lean.norm_project(tokens, norm, *layers)[0], inputs[1:]) == tokens.nbytes


def test_gate_equals_its_parts_and_keeps_the_input(tokens):
    hidden, gates = tokens.chunk(2, dim=-1)
    assert_same_gradients(lean.gate(tokens), hidden * functional.gelu(gates), [tokens])
    assert kept_bytes(lambda: lean.gate(tokens), []) == tokens.nbytes


@pytest.mark.parametrize("changes", [{"out_channels": 16}, {"temb_channels": None}, {"output_scale_factor": 2.0}])
def test_lightened_residual_block_gives_the_same_numbers(hidden, changes):
    sizes = {"in_channels": 8, "temb_channels": 11, "groups": 4} | changes
    block = ResnetBlock2D(**sizes).double()
    embedding = torch.randn(2, 11, dtype=torch.float64) if sizes["temb_channels"] else None
    light = copy.deepcopy(block)
    lighten(light)
    expected, actual = block(hidden, embedding), light(hidden, embedding)
    assert_close(actual, expected, rtol=0, atol=0)
    grad = torch.randn_like(expected)
    of_block = torch.autograd.grad(expected, [hidden, *block.parameters()], grad)
    of_light = torch.autograd.grad(actual, [hidden, *light.parameters()], grad)
    for one, other in zip(of_block, of_light, strict=True):
        assert_close(one, other, rtol=1e-8, atol=1e-10)
    assert block.state_dict().keys() == light.state_dict().keys()


def test_video_unet_under_autocast_agrees_with_float32(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True)
    video_unet.freeze_spatial()
    gradients = []
    for enabled in (False, True):
        video_unet.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            prediction = video_unet(noisy, timestep, conditions)
        assert prediction.dtype == (torch.bfloat16 if enabled else torch.float32)
        prediction.float().square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in video_unet.temporal_parameters()]))
    assert functional.cosine_similarity(*gradients, dim=0) > 0.99


def test_recomputed_transformers_give_the_same_gradients_from_fewer_bytes(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet(trained=True)
    video_unet.freeze_spatial()
    again = copy.deepcopy(video_unet)
    recompute_transformers(again.unet)
    gradients, kept = [], []
    for network in (video_unet, again):
        parameters = list(network.parameters())
        kept.append(kept_bytes(lambda network=network: network(noisy, timestep, conditions), parameters))
        network(noisy, timestep, conditions).square().mean().backward()
        gradients.append({name: p.grad for name, p in network.temporal.named_parameters()})
    assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    assert kept[1] < 0.8 * kept[0]


def test_nothing_before_the_first_temporal_layer_is_kept(make_video_unet, inputs):
    noisy, timestep, conditions = inputs
    video_unet = make_video_unet()
    video_unet.freeze_spatial()
    has_gradient = {}

    def watch(name: str, _: nn.Module, __: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        has_gradient[name] = output[0].requires_grad

    names = ("time_embedding", "conv_in", "down_blocks.0.attentions.0")
    for name in names:
        video_unet.unet.get_submodule(name).register_forward_hook(partial(watch, name))
    video_unet(noisy, timestep, conditions)
    assert [has_gradient[name] for name in names] == [False, False, True]

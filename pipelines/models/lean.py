"""Layers that keep for backward what is dear to compute again, and nothing else.

PyTorch keeps the input of every norm, activation and convolution, a frozen one's too. Norms and activations cost next
to nothing, so here a norm, an activation and a convolution keep the norm's input alone, and a gated feed-forward
network its input and its widest product. A frozen convolution keeps nothing at all. Results are the same to the last
bit.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

aten = torch.ops.aten


def convolve(hidden: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a convolution; a frozen one does not keep its input."""
    if conv.weight.requires_grad or not hidden.requires_grad:
        return functional.conv2d(hidden, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return _apply(_FrozenConv, hidden, conv.weight, conv.bias, conv)


def norm_silu_convolve(
    hidden: Float[Tensor, "n c h w"], norm: nn.GroupNorm, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]
) -> Float[Tensor, "n o h w"]:
    """Apply GroupNorm, SiLU and a convolution of stride 1."""
    return _apply(_NormSiluConv, hidden, norm.weight, norm.bias, weight, bias, norm.num_groups, norm.eps, padding)


def feed_forward(
    tokens: Float[Tensor, "*b c"], norm: nn.LayerNorm, proj_in: nn.Linear, proj_out: nn.Linear
) -> Float[Tensor, "*b c"]:
    """Add LayerNorm and a GEGLU feed-forward network to the tokens."""
    weights = (proj_in.weight, proj_in.bias, proj_out.weight, proj_out.bias)
    return _apply(_FeedForward, tokens, norm.weight, norm.bias, *weights, norm.eps)


def norm_project(tokens: Float[Tensor, "*b c"], norm: nn.LayerNorm, *projections: nn.Linear) -> tuple[Tensor, ...]:
    """Apply LayerNorm and one or more projections without bias."""
    weights = (projection.weight for projection in projections)
    return _apply(_NormProject, tokens, norm.weight, norm.bias, norm.eps, *weights)


def gate(product: Float[Tensor, "*b two_c"]) -> Float[Tensor, "*b c"]:
    """Multiply the first half of the channels by GELU of the second."""
    return _apply(_Gate, product)


def _apply(function: type[torch.autograd.Function], hidden: Tensor, *arguments: Any) -> Any:
    """Run a function on its tensors; under autocast on tensors of its type, since it cannot look into the function."""
    device = hidden.device.type
    if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return function.apply(hidden, *arguments)  # type: ignore[no-untyped-call]
    dtype = torch.get_autocast_dtype(device)
    cast = (argument.to(dtype) if isinstance(argument, Tensor) else argument for argument in (hidden, *arguments))
    with torch.autocast(device, enabled=False):
        return function.apply(*cast)  # type: ignore[no-untyped-call]


class _FrozenConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.conv, ctx.shape = conv, hidden.shape
        return functional.conv2d(hidden, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), conv = ctx.saved_tensors, ctx.conv
        # Only the shape of the input matters to its gradient.
        shape_only = grads[0].new_empty(1).expand(ctx.shape)
        geometry = (conv.stride, conv.padding, conv.dilation, False, (0, 0), conv.groups)
        grad, *_ = aten.convolution_backward(grads[0], shape_only, weight, None, *geometry, (True, False, False))
        return grad, None, None, None


class _NormSiluConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        scale: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        groups: int,
        eps: float,
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(hidden, scale, shift, weight)
        ctx.groups, ctx.eps, ctx.padding, ctx.has_bias = groups, eps, padding, bias is not None
        active = functional.silu(functional.group_norm(hidden, groups, scale, shift, eps), inplace=True)
        return functional.conv2d(active, weight, bias, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, scale, shift, weight = ctx.saved_tensors
        needs_input, needs_scale, needs_shift, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        hidden = hidden.contiguous()
        count, channels, *sizes = hidden.shape
        geometry = (count, channels, sizes[0] * sizes[1], ctx.groups)
        normed, mean, rstd = aten.native_group_norm(hidden, scale, shift, *geometry, ctx.eps)
        needs_norm = needs_input or needs_scale or needs_shift
        grad, grad_weight, grad_bias = aten.convolution_backward(
            grads[0],
            functional.silu(normed) if needs_weight else normed,
            weight,
            [weight.shape[0]] if ctx.has_bias else None,
            (1, 1),
            ctx.padding,
            (1, 1),
            False,
            (0, 0),
            1,
            (needs_norm, needs_weight, needs_bias),
        )
        grad_norm: tuple[Tensor | None, ...] = (None, None, None)
        if needs_norm:
            grad = aten.silu_backward(grad, normed)
            mask = (needs_input, needs_scale, needs_shift)
            grad_norm = aten.native_group_norm_backward(grad.contiguous(), hidden, mean, rstd, scale, *geometry, mask)
        return *grad_norm, grad_weight, grad_bias, None, None, None


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, scale: Tensor, shift: Tensor, *weights: Any) -> Tensor:
        weight_in, bias_in, weight_out, bias_out, eps = weights
        normed = functional.layer_norm(tokens, tokens.shape[-1:], scale, shift, eps)
        product = functional.linear(normed, weight_in, bias_in)
        ctx.save_for_backward(tokens, scale, shift, product, weight_in, weight_out)
        ctx.eps = eps
        hidden, gates = product.chunk(2, dim=-1)
        return functional.linear(functional.gelu(gates).mul_(hidden), weight_out, bias_out).add_(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, scale, shift, product, weight_in, weight_out = ctx.saved_tensors
        grad = grads[0]
        hidden, gates = product.chunk(2, dim=-1)
        gelu = functional.gelu(gates)
        grad_weight_out = grad.flatten(0, -2).T @ (gelu * hidden).flatten(0, -2)
        grad_product = torch.empty_like(product)
        grad_hidden, grad_gates = grad_product.chunk(2, dim=-1)
        grad_gated = grad @ weight_out
        torch.mul(grad_gated, gelu, out=grad_hidden)
        grad_gates.copy_(aten.gelu_backward(grad_gated.mul_(hidden), gates))
        normed, mean, rstd = aten.native_layer_norm(tokens, tokens.shape[-1:], scale, shift, ctx.eps)
        grad_weight_in = grad_product.flatten(0, -2).T @ normed.flatten(0, -2)
        grad_norm = aten.native_layer_norm_backward(
            grad_product @ weight_in, tokens, tokens.shape[-1:], mean, rstd, scale, shift, (True, True, True)
        )
        grad_tokens, grad_scale, grad_shift = grad_norm
        return (
            grad_tokens.add_(grad),
            grad_scale,
            grad_shift,
            grad_weight_in,
            grad_product.flatten(0, -2).sum(0),
            grad_weight_out,
            grad.flatten(0, -2).sum(0),
            None,
        )


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, scale: Tensor, shift: Tensor, eps: float, *weights: Tensor) -> Any:
        ctx.save_for_backward(tokens, scale, shift, *weights)
        ctx.eps = eps
        normed = functional.layer_norm(tokens, tokens.shape[-1:], scale, shift, eps)
        return tuple(functional.linear(normed, weight) for weight in weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, scale, shift, *weights = ctx.saved_tensors
        normed, mean, rstd = aten.native_layer_norm(tokens, tokens.shape[-1:], scale, shift, ctx.eps)
        rows = [grad.flatten(0, -2) for grad in grads]
        grad_weights = [grad.T @ normed.flatten(0, -2) for grad in rows]
        grad_normed = rows[0] @ weights[0]
        for grad, weight in zip(rows[1:], weights[1:], strict=True):
            grad_normed.addmm_(grad, weight)
        grad_norm = aten.native_layer_norm_backward(
            grad_normed.view_as(tokens), tokens, tokens.shape[-1:], mean, rstd, scale, shift, (True, True, True)
        )
        return *grad_norm, None, *grad_weights


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, product: Tensor) -> Tensor:
        ctx.save_for_backward(product)
        hidden, gates = product.chunk(2, dim=-1)
        return functional.gelu(gates).mul_(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (product,) = ctx.saved_tensors
        hidden, gates = product.chunk(2, dim=-1)
        grad_product = torch.empty_like(product)
        grad_hidden, grad_gates = grad_product.chunk(2, dim=-1)
        torch.mul(grads[0], functional.gelu(gates), out=grad_hidden)
        grad_gates.copy_(aten.gelu_backward(grads[0] * hidden, gates))
        return grad_product

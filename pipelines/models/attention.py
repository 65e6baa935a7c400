"""Attention over the frames of a clip and to its tokens, each in the form that is fast on the device at hand."""

from typing import Any

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

ClipTokens = Float[Tensor, "b t n c"]

MAX_EXPLICIT_FRAMES = 24
"""Beyond this clip length the fused kernel is as fast as ours on CPU, and it does not store the scores."""


def attend_over_frames(
    query: ClipTokens, key: ClipTokens, value: ClipTokens, heads: int, bias: Float[Tensor, "t t"] | None = None
) -> ClipTokens:
    """Attend over t at each of the n positions of each of the b clips.

    Args:
        query: tokens in the order of the spatial layers; nothing is transposed on the way in.
        key: as query.
        value: as query.
        heads: number of heads that share the width c.
        bias: added to the scores, query frames by key frames; minus infinity hides a frame.
    """
    clips, num_frames, positions, _ = query.shape
    if query.device.type == "cpu" and num_frames <= MAX_EXPLICIT_FRAMES:
        return _FrameAttention.apply(query, key, value, heads, bias)  # type: ignore[no-untyped-call]
    query, key, value = (rearrange(x, "b t n (h d) -> (b n) h t d", h=heads) for x in (query, key, value))
    bias = None if bias is None else bias.to(query.dtype)
    attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return rearrange(attended, "(b n) h t d -> b t n (h d)", b=clips, n=positions)


def attend_to_tokens(
    query: ClipTokens, key: Float[Tensor, "b l c"], value: Float[Tensor, "b l c"], heads: int
) -> ClipTokens:
    """Attend from all positions of all frames of a clip to the clip's one set of l tokens, which is not copied."""
    num_frames = query.shape[1]
    query = rearrange(query, "b t n (h d) -> b h (t n) d", h=heads)
    key, value = (rearrange(x, "b l (h d) -> b h l d", h=heads) for x in (key, value))
    attended = functional.scaled_dot_product_attention(query, key, value)
    return rearrange(attended, "b h (t n) d -> b t n (h d)", t=num_frames)


class SharedTokenProcessor:
    """Cross-attention of an image network when its b t images share the tokens of b clips.

    The images of a clip are taken as one long row of queries, so that tokens and their keys and values are neither
    copied nor computed once for each frame. With as many images as clips it is diffusers' own attention.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from `hidden_states` (bt n c) to `encoder_hidden_states` (b l d).

        Raises:
            ValueError: an attention mask was given.
        """
        if attention_mask is not None:
            raise ValueError("tokens shared by the frames of a clip take no attention mask")
        tokens = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        queries = rearrange(attn.to_q(hidden_states), "(b t) n c -> b t n c", b=tokens.shape[0])
        attended = attend_to_tokens(queries, attn.to_k(tokens), attn.to_v(tokens), attn.heads)
        return attn.to_out[1](attn.to_out[0](attended.flatten(0, 1)))


def share_tokens(unet: nn.Module) -> None:
    """Let the cross-attention of an image network take one set of tokens for all images of a clip.

    Raises:
        ValueError: the network has attention processors of its own (such as an image-prompt adapter).
    """
    for name, attn in unet.named_modules():
        if isinstance(attn, Attention) and attn.is_cross_attention:
            if not isinstance(attn.processor, AttnProcessor2_0 | SharedTokenProcessor) or attn.norm_cross is not None:
                raise ValueError(
                    f"{name} has a {type(attn.processor).__name__} or normalises its tokens; remove the adapter or "
                    "fuse it into the weights"
                )
            attn.set_processor(SharedTokenProcessor())  # type: ignore[arg-type]


class _FrameAttention(torch.autograd.Function):
    """Many tiny attentions as batched matrix products, the scores recomputed in backward.

    The fused CPU kernels spend their time in the softmax of rows of eight; with the positions innermost it is a few
    vector instructions. Clips are taken one by one because then (n h) is one axis of a strided view, without a copy.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(query, key, value, bias)
        ctx.heads = heads
        attended = torch.empty_like(query)
        for clip in zip(query, key, value, attended, strict=True):
            q, k, v, out = (_by_position(x, heads) for x in clip)
            out.copy_(_weights(q, k, bias).mT @ v)
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias = ctx.saved_tensors
        grad_inputs = [torch.empty_like(x) for x in (query, key, value)]
        for clip in zip(query, key, value, grads[0].contiguous(), *grad_inputs, strict=True):
            q, k, v, grad, grad_q, grad_k, grad_v = (_by_position(x, ctx.heads) for x in clip)
            weights = _weights(q, k, bias)
            grad_weights = v @ grad.mT
            grad_scores = weights * (grad_weights - (weights * grad_weights).sum(1, keepdim=True))
            grad_scores = grad_scores * q.shape[-1] ** -0.5
            grad_q.copy_(grad_scores.mT @ k)
            grad_k.copy_(grad_scores @ q)
            grad_v.copy_(weights @ grad)
        return *grad_inputs, None, None


def _by_position(tokens: Tensor, heads: int) -> Tensor:
    """View (t n (h d)) as (n h) problems of t rows."""
    return rearrange(tokens, "t n (h d) -> (n h) t d", h=heads)


def _weights(query: Tensor, key: Tensor, bias: Tensor | None) -> Tensor:
    """Return the attention weights, keys by queries: softmax over keys of (n h) problems at once."""
    precise = torch.promote_types(query.dtype, torch.float32)
    scores = (key @ query.mT).to(precise) * query.shape[-1] ** -0.5
    if bias is not None:
        scores = scores + bias.mT
    weights = rearrange(scores, "n j i -> j i n").contiguous().softmax(dim=0)
    return rearrange(weights.to(query.dtype), "j i n -> n j i").contiguous()

"""What all temporal layers share: their configuration, the clip they work on and the blend with the spatial layer.

Source: Blattmann et al. 2023, section 3.1 and appendix D. The layout of the layers is that of Stable Video Diffusion,
whose parameter counts (656 M and 649 M beside Stable Diffusion 2 and 1) are the paper's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class TemporalConfig:
    """What is inserted into an image network to make it a video network.

    Args:
        mix: one blend factor for all frames, or one for each frame of a clip of fixed length.
        num_frames: clip length of a per-frame mix; None for a scalar mix, which runs at any length.
        cross_attention_dim: width of the tokens that temporal layers attend to; None leaves the cross-attention out.
        context_channels: channels of the known frames that enter every temporal convolution: 0 for none, 3 for the
            colours of low resolution, z + 1 (5) for masked latents and their mask.
        context_width: channels of the learned, down-sampled context.
        embeds_context_level: whether the noise level of the context is a further input of the temporal convolutions.
        embeds_fps: whether the frame rate is a further token of the temporal cross-attention (interpolation: one model
            for both rates); without other tokens it is the only one.
        input_concat: whether the known frames also enter beside the noisy latents (text-to-video interpolation).
        convolution: whether temporal convolutions are inserted.
        attention: whether temporal transformers are inserted.
        attention_blocks: temporal blocks after each spatial block; 2 makes the paper's attention-only ablation.
        svd_eps: whether norms have the eps of diffusers' Stable Video Diffusion class, for weights taken from it.
        attention_window: at inference, how many frames away a frame may look; None is all.
    """

    mix: Literal["scalar", "per_frame"]
    num_frames: int | None = None
    cross_attention_dim: int | None
    context_channels: int = 0
    context_width: int = 128
    embeds_context_level: bool = False
    embeds_fps: bool = False
    input_concat: bool = False
    convolution: bool = True
    attention: bool = True
    attention_blocks: int = 1
    svd_eps: bool = False
    attention_window: int | None = None

    def __post_init__(self) -> None:
        if (self.mix == "per_frame") != (self.num_frames is not None):
            raise ValueError(
                f"mix={self.mix!r} with num_frames={self.num_frames}: a per-frame mix needs its number of frames, "
                "a scalar mix takes None"
            )
        if self.context_channels < 0 or self.context_width < 1 or self.attention_blocks < 1:
            raise ValueError(
                f"context_channels={self.context_channels}, context_width={self.context_width}, "
                f"attention_blocks={self.attention_blocks}; the first may be 0, the others must be positive"
            )
        if self.attention_window is not None and self.attention_window < 0:
            raise ValueError(f"attention_window={self.attention_window}; use a number of frames, or None for all")
        if not (self.convolution or self.attention):
            raise ValueError("convolution and attention are both off; a video model needs at least one")
        if self.embeds_fps and (self.cross_attention_dim is None or not self.attention):
            raise ValueError("the frame rate is a token of the temporal cross-attention; set cross_attention_dim")
        if self.context_channels and not self.convolution:
            raise ValueError("context enters the temporal convolutions; set context_channels=0 or convolution=True")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What the temporal layers must know of the clips that pass through the network.

    Args:
        num_frames: frames of each clip; the spatial layers see (b t) images.
        tokens: temporal cross-attention tokens, b l d.
        context: known frames, b t k h w at the resolution of the latents.
        level: embedding of the context's noise level, b d.
        is_image: clips whose frames are separate images and see no temporal layer.
        attention_bias: added to the attention scores over frames, t t.
    """

    num_frames: int
    tokens: Float[Tensor, "b l d"] | None = None
    context: Float[Tensor, "b t k h w"] | None = None
    level: Float[Tensor, "b e"] | None = None
    is_image: Bool[Tensor, " b"] | None = None
    attention_bias: Float[Tensor, "t t"] | None = None


_active: ContextVar[tuple[nn.Module, Clip] | None] = ContextVar("_active", default=None)


@contextmanager
def run_clip(owner: nn.Module, clip: Clip | None) -> Iterator[None]:
    """Let the temporal layers of `owner`, and no others, follow the layers of its backbone; None silences them too.

    Several video networks may hang on one backbone, and threads do not see each other's clips.
    """
    token = _active.set(None if clip is None else (owner, clip))
    try:
        yield
    finally:
        _active.reset(token)


def running_clip(owner: nn.Module) -> Clip | None:
    """Return the clip that `owner` is at work on."""
    active = _active.get()
    return active[1] if active is not None and active[0] is owner else None


class Mix(nn.Module):
    """The learned factor of out = mix * spatial + (1 - mix) * temporal (section 3.1), kept as sigmoid(logit).

    A new layer starts at 0.5: its temporal branch equals the spatial one (all last layers are zero), so the output
    is the image model's and the gradient is not small. A logit of infinity switches the temporal branch off.
    """

    def __init__(self, num_frames: int | None) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(num_frames or 1))

    def temporal_weight(self, clip: Clip) -> Float[Tensor, "#b #t"]:
        """Return 1 - mix of each frame; 0 for images."""
        weight = torch.sigmoid(-self.logit)[None]
        return weight if clip.is_image is None else torch.where(clip.is_image[:, None], 0, weight)


def load_temporal(layers: nn.ModuleDict, weights: dict[str, Tensor]) -> None:
    """Load temporal layers.

    Raises:
        ValueError: the weights belong to a network of another shape or to another stage.
    """
    own = layers.state_dict()
    faults = [f"missing {name}" for name in own if name not in weights]
    faults += [f"unknown {name}" for name in weights if name not in own]
    faults += [
        f"{name} is {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
        for name, tensor in weights.items()
        if name in own and own[name].shape != tensor.shape
    ]
    if faults:
        raise ValueError(
            f"temporal weights do not fit this network ({len(faults)} faults: {'; '.join(faults[:3])}); load "
            "weights of the same stage and backbone shape"
        )
    layers.load_state_dict(weights)


def zeroed(layer: Layer) -> Layer:
    """Zero a layer's weights in place, so that its residual branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer

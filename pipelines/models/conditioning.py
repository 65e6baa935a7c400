"""What a clip is conditioned on."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Num
from torch import Tensor

from pipelines.tensors import Context, Tokens


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of b clips; each is None where a model does not use it.

    Args:
        text: tokens for the image network's cross-attention: text, scene or boxes.
        temporal_text: tokens for the temporal layers; None gives them `text`. They differ for a personalised backbone,
            whose words mean nothing to the temporal layers.
        context: what stands beside the latents at their resolution: masked latents and mask, low-resolution frames, or
            box maps.
        fps: frames per second that interpolation is asked for.
        context_level: noise level of the context, an index in [0, num_timesteps).
        class_labels: for backbones with a class embedding: an integer or a vector for each clip.
        is_image: clips whose frames are separate images; their mix is 1.
    """

    text: Tokens | None = None
    temporal_text: Float[Tensor, "b m e"] | None = None
    context: Context | None = None
    fps: Num[Tensor, " b"] | None = None
    context_level: Num[Tensor, " b"] | None = None
    class_labels: Num[Tensor, "b ..."] | None = None
    is_image: Bool[Tensor, " b"] | None = None

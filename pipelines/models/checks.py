"""What a video network refuses, and why."""

from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from pipelines.models.conditioning import Conditions
from pipelines.models.temporal import TemporalConfig
from pipelines.tensors import Latents

UNet = UNet2DConditionModel | UNet2DModel


def check_backbone(unet: nn.Module) -> UNet:
    """Return the network if temporal layers can follow its blocks.

    Raises:
        ValueError: no U-Net of diffusers, or one with blocks of another kind.
    """
    if not isinstance(unet, UNet):
        raise ValueError(
            f"{type(unet).__name__} is no image U-Net; load a diffusers folder of class UNet2DConditionModel "
            "(Stable Diffusion 1.x, 2.x, x4 upscaler) or UNet2DModel"
        )
    if unet.config.get("addition_embed_type") is not None:
        raise ValueError(
            f"the backbone embeds {unet.config['addition_embed_type']!r} beside its text, as Stable Diffusion XL does; "
            "use Stable Diffusion 1.x or 2.x, or a model of the same kind"
        )
    for name, module in unet.named_modules():
        allowed: tuple[type, ...] = ()
        if name.split(".")[-2:-1] == ["resnets"]:
            allowed = (ResnetBlock2D,)
        elif name.split(".")[-2:-1] == ["attentions"]:
            allowed = (Transformer2DModel, Attention)
        if allowed and not isinstance(module, allowed):
            kinds = " or ".join(kind.__name__ for kind in allowed)
            raise ValueError(f"{name} of the backbone is a {type(module).__name__}; temporal layers follow {kinds}")
    return unet


def check_inputs(unet: UNet, config: TemporalConfig, noisy: Latents, conditions: Conditions) -> None:
    """Check one call of a video network.

    Raises:
        ValueError: channels, frames, size or a condition do not fit the network.
    """
    _check_frames(config, noisy, conditions)
    _check_context(unet, config, noisy, conditions)
    _check_tokens(unet, config, conditions)


def temporal_tokens(config: TemporalConfig, conditions: Conditions) -> Tensor | None:
    """Return the tokens for the temporal layers: their own, or else the image network's unless fps is the token."""
    if conditions.temporal_text is None and not config.embeds_fps:
        return conditions.text
    return conditions.temporal_text


def _check_frames(config: TemporalConfig, noisy: Latents, conditions: Conditions) -> None:
    num_frames = noisy.shape[1]
    only_images = conditions.is_image is not None and bool(conditions.is_image.all())
    if config.mix == "per_frame" and num_frames != config.num_frames and not only_images:
        raise ValueError(
            f"the clips have {num_frames} frames, but the mix is learned for each of {config.num_frames}; "
            f"use clips of {config.num_frames} frames or a model with a scalar mix"
        )


def _check_context(unet: UNet, config: TemporalConfig, noisy: Latents, conditions: Conditions) -> None:
    expected, given = unet.config["in_channels"], noisy.shape[2]
    native = expected - given
    context = conditions.context
    if native < 0 or (native > 0 and context is None):
        raise ValueError(f"the latents have {given} channels, the backbone takes {expected}; the rest is context")
    wanted = {width for width in (native, config.context_channels, config.input_concat * (given + 1)) if width}
    if context is None:
        if wanted:
            raise ValueError(f"this network needs a context of {max(wanted)} channels; without known frames pass zeros")
        return
    if not wanted:
        raise ValueError(f"a context of {context.shape[2]} channels was given, but this network takes none")
    for width in wanted:
        shape = (*noisy.shape[:2], width, *noisy.shape[3:])
        if tuple(context.shape) != shape:
            raise ValueError(f"the context is {tuple(context.shape)}; with these latents it must be {shape}")
    if config.embeds_context_level and conditions.context_level is None:
        raise ValueError("this network embeds the noise level of its context; pass context_level, zeros for none")


def _check_tokens(unet: UNet, config: TemporalConfig, conditions: Conditions) -> None:
    temporal = temporal_tokens(config, conditions)
    spatial_dim = unet.config.get("cross_attention_dim") if isinstance(unet, UNet2DConditionModel) else None
    for name, width, tokens in (
        ("text", spatial_dim, conditions.text),
        ("temporal_text", config.cross_attention_dim, temporal),
    ):
        if isinstance(width, int) and tokens is None and not (name == "temporal_text" and config.embeds_fps):
            raise ValueError(f"this network attends to tokens of width {width}; pass Conditions({name}=...)")
        if isinstance(width, int) and tokens is not None and tokens.shape[-1] != width:
            raise ValueError(
                f"{name} has tokens of width {tokens.shape[-1]}, the network attends to width {width}; "
                "use the encoder it was trained with"
            )
    if config.embeds_fps != (conditions.fps is not None):
        raise ValueError(f"this network {'needs' if config.embeds_fps else 'takes no'} a frame rate (Conditions.fps)")
    takes_labels = getattr(unet, "class_embedding", None) is not None
    if takes_labels != (conditions.class_labels is not None):
        needs = "needs" if takes_labels else "takes no"
        raise ValueError(f"the backbone {needs} class_labels (Conditions.class_labels)")

"""An image diffusion network made a video network: temporal layers behind the layers of an unmodified U-Net.

Source: Blattmann et al. 2023, section 3.1 and figure 4.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange, repeat
from jaxtyping import Float, Num
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from pipelines.models.attention import share_tokens
from pipelines.models.checks import UNet, check_backbone, check_inputs, temporal_tokens
from pipelines.models.conditioning import Conditions
from pipelines.models.lean_backbone import lighten
from pipelines.models.temporal import Clip, TemporalConfig, load_temporal, run_clip, running_clip, zeroed
from pipelines.models.temporal_convolution import ContextPath, TemporalConvolution
from pipelines.models.temporal_transformer import TemporalTransformer
from pipelines.tensors import Context, Latents, Timestep


class VideoUNet(nn.Module):
    """An image U-Net with a temporal layer behind every residual block and every transformer block.

    The layers hang on the U-Net's blocks as forward hooks: its modules, weights and names stay as they are, and
    called by itself it is still the image model. A new VideoUNet gives the image model's output for every frame.

    Args:
        unet: a diffusers U-Net made of two-dimensional residual and transformer blocks.
        config: what to insert.

    Raises:
        ValueError: the network is of another family.
    """

    def __init__(self, unet: nn.Module, config: TemporalConfig) -> None:
        super().__init__()
        self.unet = unet = check_backbone(unet)
        self.config = config
        self.temporal = nn.ModuleDict()
        self._hooks: list[RemovableHandle] = []
        if config.svd_eps:
            _set_svd_eps(unet)
        for name, level, block in _blocks(unet):
            if config.convolution:
                for index, resnet in enumerate(block.resnets):
                    self._follow_resnet(f"{name}_resnets_{index}", level, resnet)
            if config.attention:
                for index, attention in enumerate(getattr(block, "attentions", None) or ()):
                    # The middle block of a UNet2DModel without attention holds None in its place.
                    if attention is not None:
                        self._follow_attention(f"{name}_attentions_{index}", attention)
        if config.embeds_context_level:
            embedding = NumberEmbedding(unet.conv_in.out_channels, _embedding_dim(unet))
            self.temporal["context_level"] = embedding
            zeroed(embedding.proj_out)
        if config.embeds_fps and config.cross_attention_dim is not None:
            self.temporal["fps"] = NumberEmbedding(unet.conv_in.out_channels, config.cross_attention_dim)
        if config.input_concat:
            # The convolution of concatenated channels is the sum of two; apart, the backbone keeps its own.
            self.temporal["context_in"] = zeroed(
                nn.Conv2d(unet.config["in_channels"] + 1, unet.conv_in.out_channels, 3, padding=1, bias=False)
            )
            self._hooks.append(unet.conv_in.register_forward_hook(self._after_conv_in))
        share_tokens(unet)
        lighten(unet)

    def forward(self, noisy: Latents, timestep: Timestep, conditions: Conditions) -> Latents:
        """Predict what the backbone was trained to predict (noise, velocity) for all frames of the clips.

        Args:
            noisy: noisy latents of b clips of t frames.
            timestep: noise level of each clip.
            conditions: what the clips are conditioned on.

        Raises:
            ValueError: channels, frames, size or a condition do not fit this network.
        """
        check_inputs(self.unet, self.config, noisy, conditions)
        num_frames = noisy.shape[1]
        images = rearrange(with_native_context(self.unet, noisy, conditions.context), "b t z h w -> (b t) z h w")
        kwargs: dict[str, Tensor | bool | None] = {"return_dict": False}
        if conditions.class_labels is not None:
            kwargs["class_labels"] = conditions.class_labels.repeat_interleave(num_frames, dim=0)
        if isinstance(self.unet, UNet2DConditionModel):
            kwargs["encoder_hidden_states"] = conditions.text
        all_images = conditions.is_image is not None and bool(conditions.is_image.all())
        with run_clip(self, None if all_images else self._clip(noisy, conditions)):
            (prediction,) = self.unet(images, repeat(timestep, "b -> (b t)", t=num_frames), **kwargs)
        return rearrange(prediction, "(b t) z h w -> b t z h w", t=num_frames)

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the parameters that are not the backbone's."""
        return self.temporal.parameters()

    def temporal_state_dict(self) -> dict[str, Tensor]:
        """Return the weights that are not the backbone's; they load over any backbone of the same shape."""
        return self.temporal.state_dict()

    def load_temporal_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Load what `temporal_state_dict` returned.

        Raises:
            ValueError: the weights belong to a network of another shape or to another stage.
        """
        load_temporal(self.temporal, weights)

    def initialise_temporal(self, weights: dict[str, Tensor]) -> list[str]:
        """Start from another stage's temporal weights: take those that fit, keep the start value of the others.

        A scalar mix spreads over the frames of a per-frame mix.

        Returns:
            The names that keep their start value, such as the context's when starting from a key-frame model.

        Raises:
            ValueError: no weight fits.
        """
        own = self.temporal.state_dict()
        taken = {
            name: tensor.expand_as(own[name])
            for name, tensor in weights.items()
            if name in own and (tensor.shape == own[name].shape or tensor.shape == (1,))
        }
        if not taken:
            raise ValueError("none of the temporal weights fits this network; the backbones differ in shape")
        self.temporal.load_state_dict(taken, strict=False)
        return [name for name in own if name not in taken]

    def remove(self) -> None:
        """Take the temporal layers off the backbone, which otherwise keeps them in memory as long as it lives."""
        while self._hooks:
            self._hooks.pop().remove()

    def freeze_spatial(self) -> None:
        """Stop training the backbone (equation 2: only the temporal parameters are optimised)."""
        self.unet.requires_grad_(False)

    def _clip(self, noisy: Latents, conditions: Conditions) -> Clip:
        level = None
        if self.config.embeds_context_level:
            level = self.temporal["context_level"](conditions.context_level)
        tokens = temporal_tokens(self.config, conditions)
        if self.config.embeds_fps:
            fps_token = self.temporal["fps"](conditions.fps)[:, None]
            tokens = fps_token if tokens is None else torch.cat([tokens, fps_token], dim=1)
        return Clip(
            num_frames=noisy.shape[1],
            tokens=tokens,
            context=conditions.context,
            level=level,
            is_image=conditions.is_image,
            attention_bias=_band(noisy, self.config.attention_window),
        )

    def _follow_resnet(self, key: str, level: int, resnet: ResnetBlock2D) -> None:
        config, channels = self.config, resnet.out_channels
        context = None
        if config.context_channels:
            context = ContextPath(config.context_channels, config.context_width, channels, halvings=level)
        self.temporal[key] = TemporalConvolution(
            channels=channels,
            groups=resnet.norm2.num_groups,
            eps=resnet.norm1.eps,
            num_mixes=config.num_frames,
            embedding_dim=_embedding_dim(self.unet),
            context=context,
        )
        self._hooks.append(resnet.register_forward_hook(partial(self._after_resnet, key)))

    def _follow_attention(self, key: str, attention: Any) -> None:
        blocks = attention.transformer_blocks if isinstance(attention, Transformer2DModel) else [attention]
        first: Attention = blocks[0].attn1 if isinstance(attention, Transformer2DModel) else attention
        self.temporal[key] = TemporalTransformer(
            self.config, width=first.query_dim, heads=first.heads, depth=len(blocks)
        )
        for index, block in enumerate(blocks):
            self._hooks.append(block.register_forward_hook(partial(self._after_attention, key, index)))

    def _after_resnet(self, key: str, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        clip = running_clip(self)
        return output if clip is None else self.temporal[key](output, clip, embedding=inputs[1])

    def _after_attention(self, key: str, index: int, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        clip = running_clip(self)
        if clip is None:
            return output
        if output.ndim == 3:
            return self.temporal[key](index, output, clip)
        height = output.shape[2]
        tokens = self.temporal[key](index, rearrange(output, "bt c h w -> bt (h w) c"), clip)
        return rearrange(tokens, "bt (h w) c -> bt c h w", h=height)

    def _after_conv_in(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> Tensor:
        clip = running_clip(self)
        if clip is None or clip.context is None:
            return output
        return output + self.temporal["context_in"](rearrange(clip.context, "b t k h w -> (b t) k h w"))


def with_native_context(unet: UNet, noisy: Latents, context: Context | None) -> Float[Tensor, "b t c h w"]:
    """Concatenate the context if the image network itself expects more channels, as upscalers do."""
    if context is None or unet.config["in_channels"] == noisy.shape[2]:
        return noisy
    return torch.cat([noisy, context.to(noisy.dtype)], dim=2)


class NumberEmbedding(nn.Module):
    """Embed a number (noise level of the context, frame rate) as diffusion networks embed the noise level."""

    def __init__(self, width: int, embedding_dim: int) -> None:
        super().__init__()
        self.width = width
        self.proj_in = nn.Linear(width, embedding_dim)
        self.proj_out = nn.Linear(embedding_dim, embedding_dim)

    def forward(self, number: Num[Tensor, " b"]) -> Float[Tensor, "b e"]:
        """Return sinusoids put through an MLP."""
        waves = get_timestep_embedding(number, self.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        return self.proj_out(functional.silu(self.proj_in(waves.to(self.proj_in.weight.dtype))))


def _embedding_dim(unet: UNet) -> int:
    return unet.time_embedding.linear_2.out_features


def _blocks(unet: UNet) -> Iterator[tuple[str, int, Any]]:
    """Iterate over the U-Net's blocks with their name and the number of halvings before them."""
    deepest = len(unet.down_blocks) - 1
    yield from ((f"down_blocks_{level}", level, block) for level, block in enumerate(unet.down_blocks))
    yield "mid_block", deepest, unet.mid_block
    yield from ((f"up_blocks_{index}", deepest - index, block) for index, block in enumerate(unet.up_blocks))


def _set_svd_eps(unet: UNet) -> None:
    """Give norms the eps that diffusers' Stable Video Diffusion class gives them by its blocks' defaults."""
    for name, _, block in _blocks(unet):
        for resnet in block.resnets:
            is_small = name.startswith("up") or type(block).__name__ == "CrossAttnDownBlock2D"
            resnet.norm1.eps = resnet.norm2.eps = 1e-6 if is_small else 1e-5


def _band(noisy: Latents, window: int | None) -> Tensor | None:
    """Hide frames further away than `window` (appendix D: 8 frames when run on longer clips)."""
    num_frames = noisy.shape[1]
    if window is None or window >= num_frames - 1:
        return None
    index = torch.arange(num_frames, device=noisy.device)
    is_far = (index[:, None] - index).abs() > window
    return torch.zeros(num_frames, num_frames, dtype=noisy.dtype, device=noisy.device).masked_fill(is_far, -torch.inf)

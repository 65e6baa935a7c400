"""How large a network is and how much it computes, without allocating it.

with torch.device("meta"):
    network = VideoUNet(UNet2DConditionModel(**architectures.sd21_unet()), config)
cost = video_unet_cost(network, shape=(1, 8, 4, 40, 64))
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipelines.models.conditioning import Conditions
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.models.video_unet import VideoUNet


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Size and work of one call of a network.

    Attributes:
        spatial_parameters: parameters of the image network.
        temporal_parameters: parameters of the inserted layers.
        flops: floating-point operations of a forward pass; a multiply-add is two.
    """

    spatial_parameters: int
    temporal_parameters: int
    flops: int


def video_unet_cost(network: VideoUNet, *, shape: tuple[int, int, int, int, int], num_tokens: int = 77) -> Cost:
    """Count a call of a video U-Net that was built on the meta device.

    Args:
        network: the network.
        shape: of the latents, b t z h w.
        num_tokens: tokens of the text, spatial and temporal.
    """
    inputs = meta_inputs(network, shape=shape, num_tokens=num_tokens)
    return _cost(network.unet, network.temporal, lambda: network(*inputs))


def meta_inputs(
    network: VideoUNet, *, shape: tuple[int, int, int, int, int], num_tokens: int
) -> tuple[Tensor, Tensor, Conditions]:
    """Make noisy latents, timesteps and all conditions that a network takes, on the meta device; see above."""
    clips, num_frames, channels, height, width = shape
    unet, config = network.unet, network.config
    concatenated = (channels + 1) * config.input_concat
    context_channels = unet.config["in_channels"] - channels or config.context_channels or concatenated
    spatial_dim, temporal_dim = unet.config.get("cross_attention_dim"), config.cross_attention_dim
    is_labelled = getattr(unet, "class_embedding", None) is not None
    with torch.device("meta"):
        conditions = Conditions(
            text=torch.empty(clips, num_tokens, spatial_dim) if spatial_dim else None,
            temporal_text=torch.empty(clips, num_tokens, temporal_dim) if temporal_dim else None,
            context=torch.empty(clips, num_frames, context_channels, height, width) if context_channels else None,
            context_level=torch.empty(clips) if config.embeds_context_level else None,
            fps=torch.empty(clips) if config.embeds_fps else None,
            class_labels=torch.empty(clips, dtype=torch.long) if is_labelled else None,
        )
        return torch.empty(shape), torch.empty(clips), conditions


def video_decoder_cost(decoder: VideoDecoder, *, shape: tuple[int, int, int, int, int]) -> Cost:
    """Count a decode of latents b t z h w by a decoder that was built on the meta device."""
    return _cost(decoder.vae, decoder.temporal, lambda: decoder(torch.empty(shape, device="meta")))


def count_parameters(network: nn.Module) -> int:
    """Count the parameters of a network."""
    return sum(parameter.numel() for parameter in network.parameters())


def _cost(spatial: nn.Module, temporal: nn.Module, call: Callable[[], object]) -> Cost:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    return Cost(
        spatial_parameters=count_parameters(spatial),
        temporal_parameters=count_parameters(temporal),
        flops=counter.get_total_flops(),
    )

"""The table of a system's networks: parameters and work of every stage, without allocating any of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from pipelines.config import ModelPreset, Network, StageConfig
from pipelines.loading import AUTOENCODERS
from pipelines.models.boxes import BoxConfig, BoxEncoder
from pipelines.models.cost import count_parameters, video_decoder_cost, video_unet_cost
from pipelines.models.latent_space import Autoencoder, spatial_factor
from pipelines.models.scene import SceneConfig, SceneEncoder
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.video_unet import VideoUNet

DECODER_FRAMES = 6
"""Frames of the decoder's training window (table 8)."""

TEXT_TOKENS = 77

TEXT_ENCODERS: dict[int, dict[str, Any]] = {
    768: {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    1024: {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
"""CLIP ViT-L/14 of Stable Diffusion 1 and OpenCLIP ViT-H/14 of 2, by their width."""

WHOLE = 1024
"""Of the latter the paper counts what goes unused too: its projection (its last layer is unused as well)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One network.

    Attributes:
        name: of the stage or part.
        spatial: parameters of the image network.
        temporal: parameters of the inserted layers.
        flops: floating-point operations of one call; a multiply-add is two.
        shape: what a call takes.
        sampling: how it is sampled.
    """

    name: str
    spatial: int
    temporal: int = 0
    flops: int = 0
    shape: str = ""
    sampling: str = ""


def describe(preset: ModelPreset) -> str:
    """Lay the rows of a system out as a table."""
    lines: list[tuple[str, ...]] = [("", "spatial M", "temporal M", "TFLOP a call", "call on", "sampled by")]
    for row in rows(preset):
        counts = [f"{number / 1e6:,.2f}" if number else "-" for number in (row.spatial, row.temporal)]
        flops = f"{row.flops / 1e12:,.3f}" if row.flops else "-"
        lines.append((row.name, *counts, flops, row.shape, row.sampling))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = []
    for line in lines:
        cells = [
            cell.rjust(width) if 0 < column < 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        texts.append("  ".join(cells).rstrip())
    return "\n".join([f"{preset.name}: networks of Blattmann et al. 2023, tables 6 and 8, appendix H.2.1", *texts])


def rows(preset: ModelPreset) -> Iterator[Row]:
    """List the networks of a system in the order in which a clip passes through them."""
    with torch.device("meta"):
        vae = _autoencoder(preset.autoencoder)
        yield Row(name="autoencoder", spatial=count_parameters(vae))
        yield from _conditions(preset)
        for name, stage in preset.stages.items():
            yield _video(name, preset.unet, stage, preset, spatial_factor(vae))
        first = next(iter(preset.stages.values()))
        factor = spatial_factor(vae)
        channels = int(preset.autoencoder["latent_channels"])
        shape = (1, DECODER_FRAMES, channels, first.height // factor, first.width // factor)
        yield _decoder("decoder", vae, preset.decoder, shape)
        if preset.upsampler is not None:
            upsampler, factor = preset.upsampler, 1
            if upsampler.autoencoder is not None:
                vae = _autoencoder(upsampler.autoencoder)
                factor = spatial_factor(vae)
                yield Row(name="upsampler autoencoder", spatial=count_parameters(vae))
            yield _video("upsampler", upsampler.unet, upsampler.stage, preset, factor)


def _conditions(preset: ModelPreset) -> Iterator[Row]:
    width = int(preset.unet.get("cross_attention_dim") or 0)
    if preset.condition == "scene":
        yield Row(name="scene encoder", spatial=count_parameters(SceneEncoder(SceneConfig(width=width))))
        yield Row(name="box encoder", spatial=count_parameters(BoxEncoder(BoxConfig(width=width))))
    elif preset.condition == "text" and width in TEXT_ENCODERS:
        config = CLIPTextConfig(**TEXT_ENCODERS[width], projection_dim=width)
        encoder = CLIPTextModelWithProjection(config) if width == WHOLE else CLIPTextModel(config)
        yield Row(name="text encoder", spatial=count_parameters(encoder))


def _video(name: str, unet: Network, stage: StageConfig, preset: ModelPreset, factor: int) -> Row:
    family = UNet2DConditionModel if "cross_attention_dim" in unet else UNet2DModel
    shape = (1, stage.num_frames, int(unet["out_channels"]), stage.height // factor, stage.width // factor)
    tokens = TEXT_TOKENS if preset.condition == "text" else 1
    cost = video_unet_cost(VideoUNet(family(**unet), stage.temporal), shape=shape, num_tokens=tokens)
    sampler = stage.sampler
    return Row(
        name=name,
        spatial=cost.spatial_parameters,
        temporal=cost.temporal_parameters,
        flops=cost.flops,
        shape="x".join(map(str, shape[1:])),
        sampling=f"{sampler.name} {sampler.num_steps}, eta {sampler.eta:g}, guidance {stage.guidance_scale:g}",
    )


def _decoder(name: str, vae: Autoencoder, config: DecoderConfig, shape: tuple[int, int, int, int, int]) -> Row:
    cost = video_decoder_cost(VideoDecoder(vae, config), shape=shape)
    return Row(
        name=name,
        spatial=count_parameters(vae.decoder),
        temporal=cost.temporal_parameters,
        flops=cost.flops,
        shape="x".join(map(str, shape[1:])),
    )


def _autoencoder(config: Network) -> Autoencoder:
    return AUTOENCODERS["VQModel" if "num_vq_embeddings" in config else "AutoencoderKL"](**config)

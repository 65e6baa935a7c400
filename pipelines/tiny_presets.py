"""Tiny twins of the paper's systems: every stage and condition of each, with networks that run in milliseconds."""

from dataclasses import replace

from pipelines.config import ModelPreset, Network, StageConfig, UpsamplerPreset
from pipelines.diffusion.noise import NoiseConfig
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.models.temporal import TemporalConfig

TEXT_WIDTH = 32
CHANNELS = (32, 64)


def tiny_driving() -> ModelPreset:
    """Twin of the driving model: scene token, quantised latents, pixel-space upsampler."""
    given = TemporalConfig(
        mix="scalar", cross_attention_dim=None, context_channels=5, context_width=8, embeds_context_level=True
    )
    prediction = replace(_stage(given, num_frames=6, fps=2.0), context_level=30)
    interpolation = replace(
        prediction,
        temporal=replace(given, mix="per_frame", num_frames=5, cross_attention_dim=16, embeds_fps=True),
        num_frames=5,
        fps=30.0,
    )
    upsampler = replace(
        _stage(TemporalConfig(mix="scalar", cross_attention_dim=None, context_channels=3, context_width=8), 8, 4.0),
        guidance_scale=1.0,
        context_level=150,
    )
    return ModelPreset(
        name="tiny-driving",
        condition="scene",
        autoencoder=_autoencoder(4) | {"num_vq_embeddings": 64},
        unet=_unet(cross_attention_dim=24),
        stages={"prediction": prediction, "interpolation": interpolation},
        upsampler=UpsamplerPreset(
            unet=_pixel_unet()
            | {
                "in_channels": 6,
                "out_channels": 3,
                "class_embed_type": "timestep",
                "down_block_types": ("DownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "UpBlock2D"),
                "add_attention": False,
            },
            autoencoder=None,
            stage=upsampler,
        ),
    )


def tiny_mountain_biking() -> ModelPreset:
    """Twin of the mountain-biking model: no conditions, a U-Net without cross-attention."""
    stages = tiny_driving().stages
    return ModelPreset(
        name="tiny-mountain-biking",
        condition="nothing",
        autoencoder=_autoencoder(4),
        unet=_pixel_unet() | {"in_channels": 4, "out_channels": 4},
        stages={"prediction": replace(stages["prediction"], fps=1.875), "interpolation": stages["interpolation"]},
    )


def tiny_text_to_video() -> ModelPreset:
    """Twin of the text-to-video model: text in both kinds of layers, latent upsampler of Stable Diffusion's shape."""
    keyframes = _stage(TemporalConfig(mix="scalar", cross_attention_dim=TEXT_WIDTH), num_frames=8, fps=2.0)
    prediction = replace(
        keyframes,
        temporal=replace(keyframes.temporal, context_channels=5, context_width=8, embeds_context_level=True),
        context_level=30,
    )
    interpolation = replace(
        keyframes,
        temporal=TemporalConfig(
            mix="scalar", cross_attention_dim=TEXT_WIDTH, embeds_fps=True, embeds_context_level=True, input_concat=True
        ),
        num_frames=5,
        fps=30.0,
        context_level=0,
    )
    upsampler = replace(
        keyframes,
        temporal=TemporalConfig(mix="scalar", cross_attention_dim=TEXT_WIDTH, context_channels=3, context_width=8),
        context_level=30,
    )
    unet = _unet(cross_attention_dim=TEXT_WIDTH)
    return ModelPreset(
        name="tiny-text-to-video",
        condition="text",
        autoencoder=_autoencoder(4),
        unet=unet,
        stages={"keyframes": keyframes, "prediction": prediction, "interpolation": interpolation},
        upsampler=UpsamplerPreset(
            unet=unet | {"in_channels": 7, "num_class_embeds": 1000, "only_cross_attention": True},
            autoencoder=_autoencoder(3),
            stage=upsampler,
        ),
    )


def _stage(temporal: TemporalConfig, num_frames: int, fps: float) -> StageConfig:
    return StageConfig(
        temporal=temporal,
        noise=NoiseConfig(prediction="v_prediction", zero_terminal_snr=True),
        sampler=SamplerConfig(name="dpm_solver", num_steps=2),
        guidance_scale=2.0,
        num_frames=num_frames,
        fps=fps,
        height=16,
        width=32,
    )


def _unet(cross_attention_dim: int) -> Network:
    return {
        "sample_size": (2, 4),
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": CHANNELS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": cross_attention_dim,
        "use_linear_projection": True,
    }


def _pixel_unet() -> Network:
    return {
        "block_out_channels": CHANNELS,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 16,
    }


def _autoencoder(levels: int) -> Network:
    return {
        "block_out_channels": (8,) * levels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "sample_size": 32,
        "scaling_factor": 0.5,
    }

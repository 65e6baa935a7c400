"""Model presets: one function per system, named after the table of the paper it mirrors.

A preset says what the networks are; how they are trained stands in `training.presets`.
"""

from dataclasses import dataclass
from typing import Any, Literal

from pipelines.diffusion.noise import NoiseConfig
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.models.temporal import TemporalConfig

StageName = Literal["keyframes", "prediction", "interpolation"]
ConditionKind = Literal["scene", "text", "boxes"]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One video model: what is inserted into the image model, and how it is sampled.

    Attributes:
        temporal: the inserted layers.
        noise: parametrisation and schedule, the image model's own.
        sampler: default sampler.
        guidance_scale: default strength of guidance; 1 is none.
        num_frames: frames of a training clip.
        fps: frames per second of a training clip.
        height: height of a frame in pixels.
        width: width of a frame in pixels.
        context_level: noise level put on given frames when sampling; None leaves them clean (the paper's way).
    """

    temporal: TemporalConfig
    noise: NoiseConfig
    sampler: SamplerConfig
    guidance_scale: float
    num_frames: int
    fps: float
    height: int
    width: int
    context_level: int | None = None

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.fps <= 0:
            raise ValueError(f"num_frames={self.num_frames}, fps={self.fps}; both must be positive")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"size {self.height}x{self.width}; both must be positive")


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """All networks of a system.

    Attributes:
        name: short name, as on the command line.
        condition: what the image model is conditioned on.
        autoencoder: configuration of the diffusers `AutoencoderKL`.
        unet: configuration of the diffusers `UNet2DConditionModel`.
        stages: the video models inserted into that U-Net.
    """

    name: str
    condition: ConditionKind
    autoencoder: dict[str, Any]
    unet: dict[str, Any]
    stages: dict[StageName, StageConfig]


def tiny() -> ModelPreset:
    """The smallest system that shows something: 64x128 frames, trained within minutes on two cores."""
    noise = NoiseConfig(prediction="v_prediction", zero_terminal_snr=True)
    return ModelPreset(
        name="tiny",
        condition="scene",
        autoencoder={
            "block_out_channels": (32, 48, 64, 64),
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 16,
            "sample_size": 64,
        },
        unet={
            "sample_size": (8, 16),
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": (64, 128),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "cross_attention_dim": 64,
            "use_linear_projection": True,
        },
        stages={
            "keyframes": StageConfig(
                temporal=TemporalConfig(mix="scalar", cross_attention_dim=None),
                noise=noise,
                sampler=SamplerConfig(name="ddim", num_steps=25),
                guidance_scale=1.0,
                num_frames=8,
                fps=4.0,
                height=64,
                width=128,
            )
        },
    )

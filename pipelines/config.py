"""What a preset is made of: the configuration of each video model, and of all networks of a system."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pipelines.diffusion.noise import NoiseConfig
from pipelines.diffusion.sampling import SamplerConfig
from pipelines.models.temporal import TemporalConfig
from pipelines.models.temporal_decoder import DecoderConfig

StageName = Literal["keyframes", "prediction", "interpolation", "upsampler"]
ConditionKind = Literal["scene", "text", "nothing"]
Network = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One video model: what is inserted into its image model, and how it is sampled.

    Attributes:
        temporal: the inserted layers.
        noise: parametrisation and schedule, the image model's own.
        sampler: default sampler.
        guidance_scale: default strength of guidance; 1 is none.
        num_frames: frames of a training clip.
        fps: frames per second of a training clip; of interpolation, the higher of its two rates.
        height: height of a frame in pixels.
        width: width of a frame in pixels.
        context_level: noise level put on given frames when sampling; None leaves them clean (the paper's way).
        low_deviation: of frames from their low resolution, for an upsampler of pixels that starts from it (see
            pipelines.diffusion.anchor); None starts from nothing (the paper's way).
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
    low_deviation: float | None = None

    def __post_init__(self) -> None:
        if self.low_deviation is not None and self.low_deviation <= 0:
            raise ValueError(f"low_deviation={self.low_deviation}; use None or a positive number such as 0.1")
        if self.num_frames < 1 or self.fps <= 0:
            raise ValueError(f"num_frames={self.num_frames}, fps={self.fps}; both must be positive")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"size {self.height}x{self.width}; both must be positive")


@dataclass(frozen=True, kw_only=True)
class UpsamplerPreset:
    """The x4 upsampler: an image model of its own with temporal layers.

    Attributes:
        unet: configuration of the diffusers U-Net.
        autoencoder: of its latent space; None works on pixels.
        stage: the temporal layers and how they are sampled; height and width are those of a training patch.
        noise_level: highest level of the noise put on the low resolution in training.
    """

    unet: Network
    autoencoder: Network | None
    stage: StageConfig
    noise_level: int = 250


@dataclass(frozen=True, kw_only=True)
class ModelPreset:
    """All networks of a system.

    Attributes:
        name: as on the command line.
        condition: what the image model is conditioned on.
        autoencoder: configuration of the diffusers `AutoencoderKL`, or `VQModel` if it has `num_vq_embeddings`.
        unet: configuration of the diffusers `UNet2DConditionModel`, or `UNet2DModel` if nothing is cross-attended.
        stages: the video models inserted into that U-Net.
        decoder: temporal layers of the decoder.
        upsampler: the upsampler, if the system has one.
    """

    name: str
    condition: ConditionKind
    autoencoder: Network
    unet: Network
    stages: Mapping[StageName, StageConfig]
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    upsampler: UpsamplerPreset | None = None

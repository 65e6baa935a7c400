"""The networks of a checkpoint folder, each loaded when it is first asked for."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file
from torch import nn

from pipelines import checkpoint
from pipelines.config import StageConfig, StageName
from pipelines.configs import from_json
from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import Autoencoder, spatial_factor
from pipelines.models.scene import SceneEncoder
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.video_unet import VideoUNet
from pipelines.scenes import Scene, scene_labels
from pipelines.tensors import Latents, Timestep


@dataclass(frozen=True)
class Stage:
    """One video model of a checkpoint, ready to sample."""

    network: VideoUNet
    config: StageConfig
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype

    def denoise(self, conditions: Conditions) -> Denoise:
        """Bind conditions; the network computes in its own type, whatever the sampler's."""

        def call(noisy: Latents, timestep: Timestep) -> Latents:
            return self.network(noisy.to(self.dtype), timestep, conditions)

        return call


class Networks:
    """Networks of a checkpoint in evaluation mode on one device; its stages share one image backbone.

    Args:
        uri: checkpoint folder, local or on S3.
        device: where the networks go.
        dtype: of the weights; sampling keeps its own state in float32.
        backbone: another diffusers folder whose U-Net (and text encoder) replaces the checkpoint's, such as a
            personalised one; its shape must be the same.

    Raises:
        ValueError: if the folder is no checkpoint.
    """

    def __init__(
        self,
        uri: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        backbone: str | None = None,
    ) -> None:
        self.folder = checkpoint.local_folder(uri)
        self.manifest = checkpoint.read_manifest(self.folder)
        self.device, self.dtype = torch.device(device), dtype
        self._backbone = Path(backbone) if backbone else None

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The image autoencoder."""
        folder = self._part("backbone/vae")
        family = AutoencoderKL if read_class_name(folder) == "AutoencoderKL" else VQModel
        return self._ready(family.from_pretrained(folder, use_safetensors=True))

    @cached_property
    def unet(self) -> UNet2DConditionModel:
        """The image U-Net that all stages share."""
        folder = self._backbone / "unet" if self._backbone else self._part("backbone/unet")
        return self._ready(UNet2DConditionModel.from_pretrained(folder, use_safetensors=True))

    @cached_property
    def scene_encoder(self) -> SceneEncoder:
        """The encoder of scene labels.

        Raises:
            ValueError: if the checkpoint is not conditioned on scenes.
        """
        return self._ready(SceneEncoder.load(self._part("backbone/condition")))

    def scene_conditions(self, scenes: Sequence[Scene]) -> tuple[Conditions, Conditions]:
        """Conditions of b scenes, and the unconditional side that guidance pushes away from."""
        tokens = self.scene_encoder(*(labels.to(self.device) for labels in scene_labels(scenes)))
        nothing = self.scene_encoder(*(labels.to(self.device) for labels in scene_labels([Scene()] * len(scenes))))
        return Conditions(text=tokens), Conditions(text=nothing)

    @cached_property
    def decoder(self) -> VideoDecoder | Autoencoder:
        """The temporal decoder, or the image autoencoder if the checkpoint has none."""
        if not self._has("decoder/"):
            return self.autoencoder
        folder = self._part("decoder")
        config = from_json(DecoderConfig, _read_json(folder / "config.json"), where=str(folder / "config.json"))
        decoder = VideoDecoder(self.autoencoder, config)
        decoder.load_temporal_state_dict(load_file(folder / checkpoint.WEIGHTS))
        return self._ready(decoder)

    def stage_names(self) -> list[str]:
        """Names of the video models the checkpoint holds."""
        return sorted({path.split("/")[1] for path in self.manifest.files if path.startswith("temporal/")})

    def stage_config(self, name: StageName) -> StageConfig:
        """Read how a stage was trained and is sampled, without loading its weights."""
        folder = self._part(f"temporal/{name}")
        return from_json(StageConfig, _read_json(folder / "config.json"), where=str(folder / "config.json"))

    def stage(self, name: StageName) -> Stage:
        """Load one video model over the shared backbone.

        Raises:
            ValueError: if the checkpoint does not hold it, or its weights do not fit the backbone.
        """
        config = self.stage_config(name)
        network = VideoUNet(self.unet, config.temporal)
        network.load_temporal_state_dict(load_file(self._part(f"temporal/{name}") / checkpoint.WEIGHTS))
        return Stage(
            network=self._ready(network),
            config=config,
            schedule=NoiseSchedule(config.noise),
            device=self.device,
            dtype=self.dtype,
        )

    def latent_shape(self, config: StageConfig, num_frames: int, clips: int = 1) -> tuple[int, int, int, int, int]:
        """Shape (b, t, z, h, w) of the latents of some clips of a stage."""
        factor, channels = spatial_factor(self.autoencoder), self.autoencoder.config["latent_channels"]
        return clips, num_frames, channels, config.height // factor, config.width // factor

    def _has(self, prefix: str) -> bool:
        return any(path.startswith(prefix) for path in self.manifest.files)

    def _part(self, part: str) -> Path:
        if not self._has(f"{part}/"):
            held = sorted({path.rsplit("/", 1)[0] for path in self.manifest.files})
            raise ValueError(f"checkpoint {str(self.folder)!r} has no {part}; it has {', '.join(held)}")
        checkpoint.verify(self.folder, [f"{part}/"])
        return self.folder / part

    def _ready(self, network: Any) -> Any:
        assert isinstance(network, nn.Module)
        return network.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)


def read_class_name(folder: Path) -> str:
    """Read which diffusers class a folder holds.

    Raises:
        ValueError: if it holds none.
    """
    name = _read_json(folder / "config.json").get("_class_name")
    if not isinstance(name, str):
        raise ValueError(f"{str(folder / 'config.json')!r} names no diffusers class; give a diffusers folder")
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError as err:
        raise ValueError(f"no file {str(path)!r}; give a complete diffusers or checkpoint folder") from err
    except json.JSONDecodeError as err:
        raise ValueError(f"{str(path)!r} is not JSON ({err}); fetch or train it again") from err
    return values

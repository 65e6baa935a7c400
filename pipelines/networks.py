"""The networks of a checkpoint folder, each loaded when it is first asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from pipelines import checkpoint
from pipelines.config import ConditionKind, StageConfig, StageName
from pipelines.configs import from_json
from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.image_stage import ImageStage
from pipelines.loading import (
    check_same_prediction,
    check_same_shape,
    diffusers_folder,
    load_autoencoder,
    load_unet,
    read_json,
    read_noise,
    usable_device,
)
from pipelines.models.boxes import BoxEncoder
from pipelines.models.checks import UNet
from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import Autoencoder, check_size, spatial_factor
from pipelines.models.lora import TEXT, UNET, Adapter
from pipelines.models.scene import SceneEncoder
from pipelines.models.temporal_decoder import DecoderConfig, VideoDecoder
from pipelines.models.text import TextEncoder
from pipelines.models.video_unet import VideoUNet
from pipelines.scenes import Scene, scene_labels
from pipelines.tensors import Latents, Timestep

UPSAMPLER, BOXES = "upsampler", "boxes"
"""Parts of a checkpoint with an image model of their own."""

LIKE_LATENTS = ("text", "temporal_text", "context")
"""Conditions that enter a network as its activations do; the others are numbers."""


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
        given = {name: getattr(conditions, name) for name in LIKE_LATENTS}
        cast = {name: value.to(self.dtype) for name, value in given.items() if value is not None}
        own = replace(conditions, **cast)

        def call(noisy: Latents, timestep: Timestep) -> Latents:
            return self.network(noisy.to(self.dtype), timestep, own)

        return call


class Networks:
    """Networks of a checkpoint in evaluation mode on one device; its stages share one image backbone.

    Args:
        uri: checkpoint folder, local or on S3.
        device: where the networks go.
        dtype: of the weights; sampling keeps its own state in float32.
        backbone: another diffusers folder, or its id on the hub, whose U-Net (and text encoder) replaces the
            checkpoint's, such as a personalised one; its shape must be the same.
        adapter: fused into the image model (U-Net, and its text encoder); temporal layers and their text stay.

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
        adapter: Adapter | None = None,
    ) -> None:
        self.folder = checkpoint.local_folder(uri)
        self.manifest = checkpoint.read_manifest(self.folder)
        self.device, self.dtype = usable_device(device), dtype
        self._backbone = diffusers_folder(backbone) if backbone else None
        self._adapter = adapter or Adapter({})

    @property
    def condition_kind(self) -> ConditionKind:
        """What the image model is conditioned on."""
        if self.has("backbone/condition"):
            return "scene"
        return "text" if self.has("backbone/text_encoder") else "nothing"

    @cached_property
    def autoencoder(self) -> Autoencoder:
        """The image autoencoder."""
        return self._on_device(load_autoencoder(self._part("backbone/vae"), self.dtype))

    @cached_property
    def unet(self) -> UNet:
        """The image U-Net that all stages share.

        Raises:
            ValueError: if another backbone was given that has another shape.
        """
        folder = self._backbone / "unet" if self._backbone else self._part("backbone/unet")
        if self._backbone and self.has("backbone/unet"):
            check_same_shape(folder, self.folder / "backbone" / "unet")
        unet = load_unet(folder, self.dtype)
        self._adapter.fuse_into(unet, UNET)
        return self._on_device(unet)

    @cached_property
    def scene_encoder(self) -> SceneEncoder:
        """The encoder of scene labels.

        Raises:
            ValueError: if the checkpoint is not conditioned on scenes.
        """
        return self._on_device(SceneEncoder.load(self._part("backbone/condition")))

    def scene_conditions(self, scenes: Sequence[Scene]) -> tuple[Conditions, Conditions]:
        """Conditions of b scenes, and the unconditional side that guidance pushes away from."""
        tokens = self.scene_encoder(*(labels.to(self.device) for labels in scene_labels(scenes)))
        nothing = self.scene_encoder(*(labels.to(self.device) for labels in scene_labels([Scene()] * len(scenes))))
        return Conditions(text=tokens), Conditions(text=nothing)

    @cached_property
    def temporal_text_encoder(self) -> TextEncoder:
        """The text encoder that the temporal layers were trained with: the checkpoint's own."""
        return self._text_encoder("backbone")

    @cached_property
    def text_encoder(self) -> TextEncoder:
        """The text encoder of the image model: that of a personalised backbone if it brings one (appendix H.3)."""
        other = self._backbone if self._backbone and (self._backbone / "text_encoder").is_dir() else None
        if other is None and not self._adapter.changes(TEXT):
            return self.temporal_text_encoder
        encoder = TextEncoder.from_folder(other) if other else self._text_encoder("backbone")
        self._adapter.fuse_into(encoder.model, TEXT)
        return self._ready(encoder)

    @cached_property
    def upsampler_text_encoder(self) -> TextEncoder | None:
        """The text encoder of the upsampler; None if neither it nor the backbone has one."""
        if self.has(f"{UPSAMPLER}/text_encoder"):
            return self._text_encoder(UPSAMPLER)
        return self.temporal_text_encoder if self.condition_kind == "text" else None

    @cached_property
    def decoder(self) -> VideoDecoder | Autoencoder:
        """The temporal decoder, or the image autoencoder if the checkpoint has none."""
        if not self.has("decoder"):
            return self.autoencoder
        folder = self._part("decoder")
        config = from_json(DecoderConfig, read_json(folder / "config.json"), where=str(folder / "config.json"))
        decoder = VideoDecoder(self.autoencoder, config)
        decoder.load_temporal_state_dict(load_file(folder / checkpoint.WEIGHTS))
        return self._ready(decoder)

    @cached_property
    def upsampler_autoencoder(self) -> Autoencoder | None:
        """The autoencoder of the upsampler's latent space; None if it works on pixels."""
        if not self.has(f"{UPSAMPLER}/vae"):
            return None
        return self._on_device(load_autoencoder(self._part(f"{UPSAMPLER}/vae"), self.dtype))

    @cached_property
    def upsampler_unet(self) -> UNet:
        """The image U-Net of the upsampler."""
        return self._on_device(load_unet(self._part(f"{UPSAMPLER}/unet"), self.dtype))

    @cached_property
    def box_encoder(self) -> BoxEncoder:
        """The encoder of vehicle boxes, for the box-conditioned image model."""
        return self._on_device(BoxEncoder.load(self._part(f"{BOXES}/condition")))

    def stage_names(self) -> list[str]:
        """Names of the video models the checkpoint holds."""
        return sorted({path.split("/")[1] for path in self.manifest.files if path.startswith("temporal/")})

    def stage_config(self, name: StageName) -> StageConfig:
        """Read how a stage was trained and is sampled, without loading its weights."""
        folder = self._part(f"temporal/{name}")
        return from_json(StageConfig, read_json(folder / "config.json"), where=str(folder / "config.json"))

    def first_config(self) -> StageConfig:
        """Settings of the stage that starts a clip: key frames, or prediction that is given no frame.

        Raises:
            ValueError: if the checkpoint holds neither.
        """
        return self.stage_config("keyframes" if "keyframes" in self.stage_names() else "prediction")

    def stage(self, name: StageName, *, attention_window: int | None = None) -> Stage:
        """Load one video model over the backbone it shares with the others.

        The upsampler has a backbone of its own; so has a stage whose image layers were trained with the temporal ones.

        Args:
            name: of the stage.
            attention_window: how many frames away a frame may look, for clips longer than trained on; default the
                checkpoint's.

        Raises:
            ValueError: if the checkpoint does not hold it, or its weights do not fit the backbone.
        """
        config = self.stage_config(name)
        own = f"temporal/{name}/unet"
        if name == UPSAMPLER:
            unet = self.upsampler_unet
        elif self.has(own):
            unet = self._on_device(load_unet(self._part(own), self.dtype))
        else:
            unet = self.unet
            if self._backbone:
                check_same_prediction(self._backbone, config.noise)
        temporal = (
            config.temporal if attention_window is None else replace(config.temporal, attention_window=attention_window)
        )
        network = VideoUNet(unet, temporal)
        network.load_temporal_state_dict(load_file(self._part(f"temporal/{name}") / checkpoint.WEIGHTS))
        return Stage(self._ready(network), config, NoiseSchedule(config.noise), self.device, self.dtype)

    def image_stage(self) -> ImageStage:
        """The image model under the video models, by itself."""
        config = self.first_config()
        noise = read_noise(self._backbone or self.folder / "backbone") or config.noise
        return ImageStage(self.unet, config, NoiseSchedule(noise), self.device, self.dtype)

    def box_stage(self) -> ImageStage:
        """The image model that is conditioned on vehicle boxes (appendix H.1)."""
        config = self.first_config()
        unet = self._on_device(load_unet(self._part(f"{BOXES}/unet"), self.dtype))
        noise = read_noise(self.folder / BOXES) or config.noise
        return ImageStage(unet, config, NoiseSchedule(noise), self.device, self.dtype)

    def latent_shape(
        self, config: StageConfig, num_frames: int, clips: int = 1, size: tuple[int, int] | None = None
    ) -> tuple[int, int, int, int, int]:
        """Shape (b, t, z, h, w) of the latents of some clips of a stage.

        Args:
            config: of the stage.
            num_frames: t.
            clips: b.
            size: height and width in pixels; default those the stage was trained on.

        Raises:
            ValueError: if a side does not divide by the autoencoder's factor.
        """
        factor, channels = spatial_factor(self.autoencoder), self.autoencoder.config["latent_channels"]
        check_size(size or (config.height, config.width), factor)
        height, width = size or (config.height, config.width)
        return clips, num_frames, channels, height // factor, width // factor

    def has(self, part: str) -> bool:
        """Whether the checkpoint holds a part, such as "decoder" or "upsampler/vae"."""
        return any(path.startswith(f"{part}/") for path in self.manifest.files)

    def weight_bytes(self, part: str) -> int:
        """Bytes of the weights below a part."""
        files = [path for path in self.manifest.files if path.startswith(f"{part}/") and path.endswith(".safetensors")]
        return sum((self.folder / path).stat().st_size for path in files)

    def _text_encoder(self, part: str) -> TextEncoder:
        for name in ("text_encoder", "tokenizer"):
            self._part(f"{part}/{name}")
        return self._ready(TextEncoder.from_folder(self.folder / part))

    def _part(self, part: str) -> Path:
        if not self.has(part):
            held = sorted({path.rsplit("/", 1)[0] for path in self.manifest.files})
            raise ValueError(f"checkpoint {str(self.folder)!r} has no {part}; it has {', '.join(held)}")
        checkpoint.verify(self.folder, [f"{part}/"])
        return self.folder / part

    def _ready(self, network: Any) -> Any:
        assert isinstance(network, nn.Module)
        return network.to(device=self.device, dtype=self.dtype).eval().requires_grad_(False)

    def _on_device(self, network: Any) -> Any:
        """Leave the type: networks of diffusers are loaded in theirs, small encoders of numbers stay in float32."""
        assert isinstance(network, nn.Module)
        return network.to(self.device).eval().requires_grad_(False)

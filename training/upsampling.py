"""The upsampler runs: a x4 upsampler of single frames, then temporal layers in it.

The low resolution is made noisy by a random amount, of which the network is told, and stands beside the noise to be
removed (Blattmann et al. 2023, section 3.4 and equation 5). Works on pixels, or in an autoencoder's latent space.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines import checkpoint
from pipelines.config import StageConfig, UpsamplerPreset
from pipelines.configs import to_json
from pipelines.diffusion.anchor import anchored
from pipelines.diffusion.frame_masks import draw_levels
from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.diffusion.objective import denoising_loss, draw_noise
from pipelines.diffusion.sampler_state import clip_noise, finish, initial_state
from pipelines.diffusion.sampling import sample
from pipelines.image_stage import denoise_frames
from pipelines.models.autoencoder import encode_moments, sample_latents
from pipelines.models.checks import UNet
from pipelines.models.conditioning import Conditions
from pipelines.models.latent_space import decode_images, latent_scaling
from pipelines.models.video_unet import VideoUNet
from pipelines.pixels import to_uint8
from pipelines.randomness import generator
from pipelines.tensors import Context, Frames, Latents, Timestep, VideoFrames
from training.batches import FrameRecipe, TensorBatch
from training.config import TrainConfig
from training.data import Sample, Source
from training.initial import quiet_branches
from training.sources import open_videos
from training.task import Inputs, LossNetwork, PhaseSpec, freeze, put_part, seeded, trained_parameters
from training.watch import largest

FACTOR = 4
FOLDER = "upsampler"


@dataclass(frozen=True, kw_only=True)
class UpsampleBatch(TensorBatch):
    """Clips for the upsampler.

    Attributes:
        frames: high-resolution patches in [-1, 1].
        latents: what is to be denoised: the frames, or their latents.
        low: low-resolution frames with noise, at the resolution of the latents.
        level: noise level of `low`.
        noise, timestep: of the latents.
    """

    frames: Frames
    latents: Latents
    low: Context
    level: Timestep
    noise: Latents
    timestep: Timestep

    def magnitude(self) -> Float[Tensor, " b"]:
        """Largest absolute pixel of each clip."""
        return largest(self.frames)


@dataclass(frozen=True, kw_only=True)
class UpsampleRecipe:
    """How video clips become an UpsampleBatch.

    Attributes:
        crops: random patches.
        schedule: of the upsampler; its noise also goes on the low resolution.
        max_level: highest level of the latter.
        vae: autoencoder of the upsampler's latent space; None works on pixels.
    """

    crops: FrameRecipe
    schedule: NoiseSchedule
    max_level: int
    vae: AutoencoderKL | None

    @torch.no_grad()
    def collate(self, samples: Sequence[Sample], items: Sequence[UInt8[Tensor, "t H W 3"]]) -> UpsampleBatch:
        """Crop, shrink, encode, and draw all noise."""
        frames = self.crops.collate(samples, items).frames
        random = [generator(self.crops.seed, sample.id, sample.epoch, "upsampling") for sample in samples]
        latents = frames
        if self.vae is not None:
            # Sample by sample: a clip's latents must not depend on its batch.
            moments = [encode_moments(self.vae, clip[None]) for clip in frames]
            scaling = latent_scaling(self.vae)
            latents = torch.cat([sample_latents(m, scaling, own) for m, own in zip(moments, random, strict=True)])
        timestep, noise = draw_noise(self.schedule, latents, random)
        level = draw_levels(self.max_level, random)
        small = shrink(frames)
        own_noise = torch.cat([torch.randn((1, *small.shape[1:]), generator=own) for own in random])
        low = fit_to(self.schedule.add_noise(small, level, own_noise), latents)
        return UpsampleBatch(frames=frames, latents=latents, low=low, level=level, noise=noise, timestep=timestep)


def shrink(frames: Frames) -> Frames:
    """Average over squares of 4x4 pixels."""
    small = functional.avg_pool2d(rearrange(frames, "b t c H W -> (b t) c H W"), FACTOR)
    return rearrange(small, "(b t) c H W -> b t c H W", b=frames.shape[0])


def fit_to(low: Frames, latents: Latents) -> Context:
    """Bring low-resolution frames to the size of the latents; in an f4 latent space they have it already."""
    images = rearrange(low, "b t c H W -> (b t) c H W")
    if images.shape[2:] != latents.shape[3:]:
        images = functional.interpolate(images, latents.shape[3:], mode="bilinear", align_corners=False)
    return rearrange(images, "(b t) c H W -> b t c H W", b=low.shape[0])


class UpsampleNetwork(LossNetwork):
    """The upsampler, as an image network or with temporal layers."""

    def __init__(self, unet: UNet | None, video: VideoUNet | None, stage: StageConfig, config: TrainConfig) -> None:
        super().__init__(config)
        self.unet, self.video = unet, video
        self.schedule, self.low_deviation = NoiseSchedule(stage.noise), stage.low_deviation

    def denoise(self, batch: UpsampleBatch) -> Denoise:
        """Bind the low resolution."""
        denoise = self._network(batch)
        if self.low_deviation is None:
            return denoise
        return anchored(denoise, batch.low, batch.level, self.schedule, self.low_deviation)

    def losses(self, batch: UpsampleBatch) -> Float[Tensor, " b"]:
        """See LossNetwork."""
        return denoising_loss(self.denoise(batch), batch.latents, self.schedule, batch.timestep, batch.noise)

    def _network(self, batch: UpsampleBatch) -> Denoise:
        if self.video is not None:
            return partial(self.video, conditions=self._conditions(self.video.unet, batch))
        assert self.unet is not None
        return partial(denoise_frames, self.unet, conditions=self._conditions(self.unet, batch))

    def _conditions(self, unet: UNet, batch: UpsampleBatch) -> Conditions:
        width = unet.config.get("cross_attention_dim")
        text = batch.latents.new_zeros(len(batch.latents), 1, width) if width else None
        return Conditions(text=text, context=batch.low, class_labels=batch.level.long())


@dataclass
class UpsampleTask:
    """See training.task.Task."""

    config: TrainConfig
    preset: UpsamplerPreset
    network: UpsampleNetwork
    source: Source[Any]
    held_out: Source[Any]
    recipe: UpsampleRecipe
    identity: dict[str, str]

    @property
    def phases(self) -> Sequence[PhaseSpec]:
        """One network."""
        return [PhaseSpec(name="upsampler", network=self.network, trained=trained_parameters(self.network))]

    def collate(self, samples: Sequence[Sample], items: Sequence[UInt8[Tensor, "t H W 3"]]) -> UpsampleBatch:
        """See Task."""
        return self.recipe.collate(samples, items)

    @torch.no_grad()
    def preview(self, count: int) -> list[VideoFrames]:
        """Held-out clips, each followed by its low resolution brought back to size by the network."""
        bucket = next(bucket for bucket in self.held_out.buckets if bucket)
        refs = list(bucket)[:count]
        samples = [Sample(f"preview {i}", 0, ref) for i, ref in enumerate(refs)]
        batch = self.collate(samples, self.held_out.read(refs)).to(next(self.network.parameters()).device)
        start = initial_state(clip_noise(tuple(batch.latents.shape), self.config.seed, "preview").to(batch.low))
        states = sample(
            self.preset.stage.sampler, self.network.denoise(batch), self.network.schedule, start, seed=self.config.seed
        )
        frames = finish(states)
        if self.recipe.vae is not None:
            frames = decode_images(self.recipe.vae, frames.cpu())
        return [to_uint8(clip) for pair in zip(batch.frames, frames, strict=True) for clip in pair]

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write upsampler/unet, or temporal/upsampler."""
        put = partial(put_part, folder, name=self.config.model.name, record=record)
        if self.network.video is not None:
            put(f"temporal/{FOLDER}", self._write_temporal)
            return
        unet: Any = self.network.unet
        put(f"{FOLDER}/unet", lambda aside: unet.save_pretrained(aside, safe_serialization=True))

    def _write_temporal(self, folder: Path) -> None:
        assert self.network.video is not None
        (folder / "config.json").write_text(json.dumps(to_json(self.preset.stage), indent=1) + "\n")
        weights = {name: value.contiguous() for name, value in self.network.video.temporal_state_dict().items()}
        save_file(weights, folder / checkpoint.WEIGHTS)


def upsample_task(config: TrainConfig, inputs: Inputs) -> UpsampleTask:
    """Make the upsampler's image network, or load it and insert temporal layers.

    Raises:
        ValueError: if the system has no upsampler, or there is no corpus or no image network.
    """
    preset = config.model.upsampler
    if preset is None:
        raise ValueError(f"{config.model.name!r} has no upsampler; use a system that has one, such as 'driving'")
    source, held_out = open_videos(config, inputs)
    identity = {"data": source.digest}
    vae: AutoencoderKL | None = None
    if preset.autoencoder is not None:
        vae = AutoencoderKL.from_pretrained(_backbone(inputs) / "vae", use_safetensors=True).requires_grad_(False)
    with seeded(config.seed):
        unet = _image_network(config, preset, inputs)
        if config.objective == "upsampler-image":
            network = UpsampleNetwork(unet, None, preset.stage, config)
        else:
            freeze([unet], config)
            video = VideoUNet(unet, preset.stage.temporal)
            network = UpsampleNetwork(None, video, preset.stage, config)
            identity["backbone"] = checkpoint.read_manifest(checkpoint.local_folder(inputs.out)).digest(
                f"{FOLDER}/unet/"
            )
    crop = (config.data.crop, config.data.crop) if config.data.crop else (config.data.height, config.data.width)
    return UpsampleTask(
        config=config,
        preset=preset,
        network=network,
        source=source,
        held_out=held_out,
        recipe=UpsampleRecipe(
            crops=FrameRecipe(seed=config.seed, crop=crop, factor=1, latent_channels=1),
            schedule=network.schedule,
            max_level=preset.noise_level,
            vae=vae,
        ),
        identity=identity,
    )


def _image_network(config: TrainConfig, preset: UpsamplerPreset, inputs: Inputs) -> UNet:
    """A new network, or the one that is there: to insert temporal layers, or to go on from with --backbone."""
    folder = _backbone(inputs) / "unet"
    if config.objective == "upsampler-image" and not (inputs.backbone and folder.is_dir()):
        unet: UNet = _family(preset)(**preset.unet)
        quiet_branches(unet)
        if preset.stage.low_deviation is not None:
            for parameter in unet.conv_out.parameters():
                nn.init.zeros_(parameter)
        return unet
    return _family(preset).from_pretrained(folder, use_safetensors=True)


def _family(preset: UpsamplerPreset) -> type[UNet2DConditionModel] | type[UNet2DModel]:
    return UNet2DConditionModel if "cross_attention_dim" in preset.unet else UNet2DModel


def _backbone(inputs: Inputs) -> Path:
    return Path(inputs.backbone) if inputs.backbone else checkpoint.local_folder(inputs.out) / FOLDER

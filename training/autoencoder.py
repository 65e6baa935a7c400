"""The autoencoder run: frames of videos to an f8 autoencoder with a Gaussian latent space."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vq_model import VQModel
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from pipelines.models.autoencoder import encode_moments
from pipelines.models.latent_space import spatial_factor
from pipelines.pixels import to_float, to_uint8
from pipelines.tensors import VideoFrames
from training.batches import FrameBatch, FrameRecipe
from training.config import TrainConfig
from training.data import Order, Sample, Source
from training.initial import normalise_latents, prepare_autoencoder
from training.objectives import autoencoder_losses
from training.sources import VideoSource, open_videos
from training.task import Inputs, LossNetwork, PhaseSpec, put_part, seeded, trained_parameters

SCALE_FRAMES = 256
"""Frames over which the scale of the latents is measured."""


class AutoencoderNetwork(LossNetwork):
    """The autoencoder and its reconstruction loss."""

    def __init__(self, vae: Any, config: TrainConfig) -> None:
        super().__init__(config)
        self.vae = vae

    def losses(self, batch: FrameBatch) -> Float[Tensor, " b"]:
        """See LossNetwork."""
        return autoencoder_losses(self.vae, batch, gradient_weight=1.0, kl_weight=1e-4)


@dataclass
class AutoencoderTask:
    """See training.task.Task."""

    config: TrainConfig
    network: AutoencoderNetwork
    source: VideoSource
    held_out: Source[Any]
    recipe: FrameRecipe

    @property
    def phases(self) -> Sequence[PhaseSpec]:
        """One: encoder and decoder together."""
        return [PhaseSpec(name="autoencoder", network=self.network, trained=trained_parameters(self.network))]

    @property
    def identity(self) -> dict[str, str]:
        """The videos."""
        return {"data": self.source.digest}

    def collate(self, samples: Sequence[Sample], items: Sequence[UInt8[Tensor, "t H W 3"]]) -> FrameBatch:
        """See Task."""
        return self.recipe.collate(samples, items)

    @torch.no_grad()
    def preview(self, count: int) -> list[VideoFrames]:
        """Frames of some videos, then what comes back of them."""
        frames = self._some_frames(4 * count).to(next(self.network.parameters()).device)
        decoded = self.network.vae(frames).sample
        return [to_uint8(frames), to_uint8(decoded)]

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write backbone/vae with latents of zero mean and unit variance: in every channel if it has quant_conv."""
        vae = deepcopy(self.network.vae)
        if isinstance(vae, AutoencoderKL) and vae.quant_conv is not None:
            normalise_latents(vae, *self._latent_statistics(vae, per_channel=True))
        mean, deviation = self._latent_statistics(vae, per_channel=False)
        vae.register_to_config(scaling_factor=round(1 / float(deviation), 5), shift_factor=round(float(mean), 5))
        put_part(
            folder,
            "backbone/vae",
            lambda aside: vae.save_pretrained(aside, safe_serialization=True),
            name=self.config.model.name,
            record=record,
        )

    @torch.no_grad()
    def _latent_statistics(self, vae: Any, *, per_channel: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of some frames."""
        latents = [
            encode_moments(vae, frames[None])[:, :, : self.recipe.latent_channels]
            for frames in torch.split(self._some_frames(SCALE_FRAMES), 16)
        ]
        z = rearrange(torch.cat(latents, dim=1).double(), "1 t z h w -> z (t h w)")
        z = z if per_channel else z.flatten()
        return z.mean(-1), z.std(-1)

    def _some_frames(self, count: int) -> Float[Tensor, "t 3 H W"]:
        order = Order(self.source.buckets, batch_size=count, seed=0)
        clips = self.source.read([sample.ref for sample in order.batch(0)])
        return to_float(torch.stack([clip[0] for clip in clips]))


def autoencoder_task(config: TrainConfig, inputs: Inputs) -> AutoencoderTask:
    """Make a new autoencoder of the preset's shape, or go on from that of a backbone.

    Raises:
        ValueError: if there is no corpus, or the frames do not divide by the autoencoder's factor.
    """
    source, held_out = open_videos(config, inputs)
    with seeded(config.seed):
        family = VQModel if "num_vq_embeddings" in config.model.autoencoder else AutoencoderKL
        if inputs.backbone is not None:
            vae: Any = family.from_pretrained(Path(inputs.backbone) / "vae", use_safetensors=True)
        else:
            vae = family(**config.model.autoencoder)
            prepare_autoencoder(vae)
    data, factor = config.data, spatial_factor(vae)
    crop = (data.crop, data.crop) if data.crop else (data.height, data.width)
    for size in (*crop, data.height, data.width):
        if size % factor:
            raise ValueError(f"size {size} does not divide by the autoencoder's factor {factor}; use a multiple of it")

    return AutoencoderTask(
        config=config,
        network=AutoencoderNetwork(vae, config),
        source=source,
        held_out=held_out,
        recipe=FrameRecipe(
            seed=config.seed, crop=crop, factor=factor, latent_channels=int(vae.config["latent_channels"])
        ),
    )

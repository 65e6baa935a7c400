"""The temporal decoder run: temporal layers in the autoencoder's decoder, against a discriminator of volumes or none.

Source: Blattmann et al. 2023, section 3.1.1 and table 8; loss weights and the discriminator's layers are not published.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines import checkpoint
from pipelines.configs import to_json
from pipelines.digests import network_digest
from pipelines.metrics.extractors import load_extractor
from pipelines.models.autoencoder import encode_moments, sample_latents
from pipelines.models.discriminator import DiscriminatorConfig, VideoDiscriminator, adaptive_weight
from pipelines.models.latent_space import latent_scaling, spatial_factor
from pipelines.models.temporal_decoder import VideoDecoder
from pipelines.networks import Networks
from pipelines.pixels import to_uint8
from pipelines.tensors import Frames, VideoFrames
from training.batches import FrameBatch, FrameRecipe
from training.config import TrainConfig
from training.data import Sample, Source
from training.objectives import adversarial_losses, discriminator_losses, perceptual_losses, reconstruction_losses
from training.sources import open_videos
from training.task import Inputs, LossNetwork, PhaseSpec, freeze, put_part, seeded, trained_parameters

GRADIENT_WEIGHT = 1.0
PERCEPTUAL_WEIGHT = 1.0
ADVERSARIAL_SCALE = 0.5
"""Weight of the adversarial loss for Gaussian autoencoders in the code the paper builds on."""


class DecoderNetwork(LossNetwork):
    """The decoder's phase: reconstruction, and what a discriminator says of it if there is one."""

    def __init__(
        self, decoder: VideoDecoder, judge: VideoDiscriminator | None, distance: nn.Module | None, config: TrainConfig
    ) -> None:
        super().__init__(config)
        self.decoder = decoder
        # In a tuple, so that the discriminator's weights are not this network's.
        self._judge = (judge,)
        self.distance = distance

    def decode(self, frames: Frames) -> Frames:
        """Encode frames one by one, without gradient, and decode them as a clip."""
        with torch.no_grad():
            moments = encode_moments(self.decoder.vae, frames)
            latents = sample_latents(moments, latent_scaling(self.decoder.vae), None)
        # oneDNN crashes in the backward pass of convolutions over latents in the strides that encoding leaves.
        return self.decoder(latents.clone(memory_format=torch.contiguous_format))

    def losses(self, batch: FrameBatch) -> Float[Tensor, " b"]:
        """See LossNetwork."""
        frames = self.decode(batch.frames)
        reconstruction = reconstruction_losses(frames, batch.frames, GRADIENT_WEIGHT)
        if self.distance is not None:
            reconstruction = reconstruction + PERCEPTUAL_WEIGHT * perceptual_losses(frames, batch.frames, self.distance)
        (judge,) = self._judge
        if judge is None or not torch.is_grad_enabled():
            return reconstruction
        adversarial = adversarial_losses(judge(frames))
        weight = adaptive_weight(
            reconstruction.mean(), adversarial.mean(), self.decoder.last_weight(), scale=ADVERSARIAL_SCALE
        )
        return reconstruction + weight * adversarial


class DiscriminatorNetwork(LossNetwork):
    """The discriminator's phase: telling real clips from decoded ones."""

    def __init__(self, generator: DecoderNetwork, judge: VideoDiscriminator, config: TrainConfig) -> None:
        super().__init__(config)
        self.judge = judge
        self._generator = (generator,)

    def losses(self, batch: FrameBatch) -> Float[Tensor, " b"]:
        """See LossNetwork."""
        with torch.no_grad():
            decoded = self._generator[0].decode(batch.frames)
        return discriminator_losses(self.judge(batch.frames), self.judge(decoded))


@dataclass
class DecoderTask:
    """See training.task.Task."""

    config: TrainConfig
    network: DecoderNetwork
    discriminator: DiscriminatorNetwork | None
    source: Source[Any]
    held_out: Source[Any]
    recipe: FrameRecipe
    identity: dict[str, str]

    @property
    def phases(self) -> Sequence[PhaseSpec]:
        """Decoder, then the discriminator if there is one."""
        trained = {
            name: parameter
            for name, parameter in trained_parameters(self.network).items()
            if name.startswith("decoder.temporal.")
        }
        decoder, judge = PhaseSpec(name="decoder", network=self.network, trained=trained), self.discriminator
        if judge is None:
            return [decoder]
        return [decoder, PhaseSpec(name="discriminator", network=judge, trained=trained_parameters(judge))]

    def collate(self, samples: Sequence[Sample], items: Sequence[UInt8[Tensor, "t H W 3"]]) -> FrameBatch:
        """See Task."""
        return self.recipe.collate(samples, items)

    @torch.no_grad()
    def preview(self, count: int) -> list[VideoFrames]:
        """Held-out clips, each followed by what comes back of it."""
        bucket = next(bucket for bucket in self.held_out.buckets if bucket)
        refs = list(bucket)[:count]
        samples = [Sample(f"preview {i}", 0, ref) for i, ref in enumerate(refs)]
        device = next(self.network.parameters()).device
        frames = self.collate(samples, self.held_out.read(refs)).to(device).frames
        decoded = self.network.decode(frames)
        return [to_uint8(clip) for pair in zip(frames, decoded, strict=True) for clip in pair]

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write decoder/: the temporal layers."""
        put_part(folder, "decoder", self._write, name=self.config.model.name, record=record)

    def _write(self, folder: Path) -> None:
        decoder = self.network.decoder
        (folder / "config.json").write_text(json.dumps(to_json(decoder.config), indent=1) + "\n")
        weights = {name: value.contiguous() for name, value in decoder.temporal_state_dict().items()}
        save_file(weights, folder / checkpoint.WEIGHTS)


def discriminator_width(vae: Any) -> int:
    """Half the channels that the decoder has at full size: 64 for Stable Diffusion's, fewer for a small one."""
    return max(16, vae.config["block_out_channels"][0] // 2)


def decoder_task(config: TrainConfig, inputs: Inputs) -> DecoderTask:
    """Load the autoencoder and insert temporal layers.

    Raises:
        ValueError: if there is no corpus or no autoencoder, or ZeRO-3 is asked for.
    """
    if config.is_partitioned:
        raise ValueError("two networks that use each other's weights cannot be partitioned; use ZeRO stage 0, 1 or 2")
    source, held_out = open_videos(config, inputs)
    networks = Networks(inputs.out, backbone=inputs.backbone)
    vae: Any = networks.autoencoder
    freeze([vae], config)
    with seeded(config.seed):
        decoder = VideoDecoder(vae, config.model.decoder)
        width = discriminator_width(vae)
        judge = None if config.discriminator is None else VideoDiscriminator(DiscriminatorConfig(width=width))
    # Both losses' gradients are compared here; it is not trained.
    decoder.last_weight().requires_grad_(True)
    distance = None if config.perceptual is None else load_extractor(config.perceptual, Path(inputs.measures)).network
    network = DecoderNetwork(decoder, judge, distance, config)
    size = (config.data.crop, config.data.crop) if config.data.crop else (config.data.height, config.data.width)
    return DecoderTask(
        config=config,
        network=network,
        discriminator=None if judge is None else DiscriminatorNetwork(network, judge, config),
        source=source,
        held_out=held_out,
        recipe=FrameRecipe(
            seed=config.seed,
            crop=size,
            factor=spatial_factor(vae),
            latent_channels=int(vae.config["latent_channels"]),
        ),
        identity={"data": source.digest, "autoencoder": network_digest(networks.folder / "backbone" / "vae")},
    )

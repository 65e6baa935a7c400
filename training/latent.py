"""Runs on latent shards: the image model, and the video models made of it (key frames, prediction, interpolation)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from pipelines import checkpoint
from pipelines.config import StageConfig
from pipelines.configs import to_json
from pipelines.diffusion.noise import Denoise, NoiseSchedule
from pipelines.diffusion.objective import denoising_loss
from pipelines.diffusion.sampler_state import clip_noise, finish, initial_state
from pipelines.diffusion.sampling import sample
from pipelines.diffusion.scheduler_config import diffusers_from_noise_config
from pipelines.image_stage import denoise_frames
from pipelines.models.autoencoder import decode_latents
from pipelines.models.boxes import MAP_CHANNELS, box_maps
from pipelines.models.checks import UNet
from pipelines.models.conditioning import Conditions
from pipelines.models.lean_backbone import recompute_transformers
from pipelines.models.lora import fuse_lora
from pipelines.models.video_unet import VideoUNet
from pipelines.networks import Networks
from pipelines.pixels import to_uint8
from pipelines.shard_format import LatentClip
from pipelines.tensors import VideoFrames
from training.batches import LatentBatch, LatentRecipe
from training.condition import BoxCondition, Condition, SceneCondition, frozen_condition, new_condition
from training.config import TrainConfig
from training.context import ContextRecipe
from training.data import Sample, Source
from training.initial import quiet_branches, widen_input
from training.latent_inputs import clips_for, digests, open_for, scaling_of
from training.low_rank import LowRank
from training.sources import LatentSource
from training.task import Inputs, LossNetwork, PhaseSpec, freeze, put_part, seeded, trained_parameters


class ImageNetwork(LossNetwork):
    """The image model and its condition, trained together; or low-rank changes of both frozen."""

    def __init__(self, unet: UNet, condition: Condition, schedule: NoiseSchedule, config: TrainConfig) -> None:
        super().__init__(config)
        self.unet, self.condition, self.schedule = unet, condition, schedule
        self.low_rank = LowRank(unet, config.lora_rank) if config.lora_rank else None

    def denoise(self, batch: LatentBatch) -> Denoise:
        """Bind the conditions of a batch."""
        size = (batch.latents.shape[-2], batch.latents.shape[-1])
        has_boxes = isinstance(self.condition, BoxCondition)
        maps = box_maps(batch.boxes, size).to(batch.latents) if has_boxes else None
        conditions = Conditions(text=self.condition(batch), context=maps)
        return partial(denoise_frames, self.unet, conditions=conditions)

    def losses(self, batch: LatentBatch) -> Float[Tensor, " b"]:
        """See LossNetwork."""
        return denoising_loss(self.denoise(batch), batch.latents, self.schedule, batch.timestep, batch.noise)


class VideoNetwork(LossNetwork):
    """The image model, frozen, with temporal layers that are trained."""

    def __init__(self, video: VideoUNet, condition: Condition, schedule: NoiseSchedule, config: TrainConfig) -> None:
        super().__init__(config)
        self.video, self.condition, self.schedule = video, condition, schedule
        self.low_rank = LowRank(video.unet, config.lora_rank) if config.lora_rank else None

    def denoise(self, batch: LatentBatch) -> Denoise:
        """Bind the conditions of a batch."""
        conditions = Conditions(
            text=self.condition(batch),
            context=batch.context,
            context_level=batch.context_level,
            fps=batch.fps if self.video.config.embeds_fps else None,
            is_image=batch.is_image,
        )
        return partial(self.video, conditions=conditions)

    def losses(self, batch: LatentBatch) -> Float[Tensor, " b"]:
        """See LossNetwork."""
        return denoising_loss(self.denoise(batch), batch.latents, self.schedule, batch.timestep, batch.noise)


@dataclass
class LatentTask:
    """See training.task.Task; the base of image and video runs."""

    config: TrainConfig
    stage: StageConfig
    network: ImageNetwork | VideoNetwork
    source: LatentSource
    held_out: Source[Any]
    recipe: LatentRecipe
    networks: Networks
    identity: dict[str, str]

    @property
    def phases(self) -> Sequence[PhaseSpec]:
        """One network."""
        return [PhaseSpec(name=self.config.objective, network=self.network, trained=trained_parameters(self.network))]

    def collate(self, samples: Sequence[Sample], items: Sequence[LatentClip]) -> LatentBatch:
        """See Task."""
        return self.recipe.collate(samples, items)

    @torch.no_grad()
    def preview(self, count: int) -> list[VideoFrames]:
        """Sample clips with the conditions (and given frames) of held-out clips."""
        device = next(self.network.parameters()).device
        bucket = next(bucket for bucket in self.held_out.buckets if bucket)
        refs = [list(bucket)[i % len(bucket)] for i in range(count)]
        samples = [Sample(f"preview {i}", 0, ref) for i, ref in enumerate(refs)]
        recipe = replace(self.recipe, label_dropout=0.0, image_share=0.0)
        batch = recipe.collate(samples, self.held_out.read(refs)).to(device)
        start = initial_state(clip_noise(tuple(batch.latents.shape), self.config.seed, "preview").to(device))
        denoise = self.network.denoise(batch)
        states = sample(self.stage.sampler, denoise, self.network.schedule, start, seed=self.config.seed)
        frames = decode_latents(self.networks.autoencoder, finish(states).float().cpu())
        return [to_uint8(clip) for clip in frames]

    def export(self, folder: Path, record: dict[str, Any]) -> None:
        """Write backbone/{unet,condition,scheduler} (boxes/ if they condition it), lora/, or temporal/<stage>."""
        put = partial(put_part, folder, name=self.config.model.name, record=record)
        if isinstance(self.network, VideoNetwork):
            put(f"temporal/{self.config.objective}", self._write_temporal)
            return
        image = self.network
        if image.low_rank is not None:
            put("lora", image.low_rank.save)
            return
        # The box-conditioned image model stands beside the one that the video models are made of (appendix H.1).
        part = "boxes" if isinstance(image.condition, BoxCondition) else "backbone"
        put(f"{part}/unet", lambda aside: image.unet.save_pretrained(aside, safe_serialization=True))
        if isinstance(image.condition, SceneCondition | BoxCondition):
            put(f"{part}/condition", image.condition.encoder.save)
        put(f"{part}/scheduler", self._write_scheduler)

    def _write_temporal(self, folder: Path) -> None:
        assert isinstance(self.network, VideoNetwork)
        weights = self.network.video.temporal_state_dict()
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / checkpoint.WEIGHTS)
        unet = self.network.video.unet
        if self.network.low_rank is not None:
            # Frozen weights may be in bfloat16, which would swallow a small change.
            nn.Module.to(unet, torch.float32)
            fuse_lora(unet, self.network.low_rank.weights())
        if self.config.train_all or self.network.low_rank is not None:
            # Its image network is no longer the backbone's.
            unet.save_pretrained(folder / "unet", safe_serialization=True)
        (folder / "config.json").write_text(checkpoint_json(self.stage))

    def _write_scheduler(self, folder: Path) -> None:
        text = checkpoint_json(diffusers_from_noise_config(self.stage.noise))
        (folder / "scheduler_config.json").write_text(text)


def latent_task(config: TrainConfig, inputs: Inputs) -> LatentTask:
    """Open the shards; make the image model, or load it and insert temporal layers.

    Raises:
        ValueError: if shards, checkpoint and preset do not fit together.
    """
    # The image model shares the noise of the video models made of it, whichever they are.
    name = next(iter(config.model.stages)) if config.objective == "image" else config.objective
    stages: dict[str, StageConfig] = dict(config.model.stages.items())
    if name not in stages:
        raise ValueError(f"system {config.model.name!r} has no stage {name!r}; it has {', '.join(stages)}")
    stage = stages[name]
    shards = open_for(config, inputs)
    networks = Networks(inputs.out, backbone=inputs.backbone)
    schedule = NoiseSchedule(stage.noise)
    source, held_out = (clips_for(config, shards, validation=part) for part in (False, True))
    with seeded(config.seed):
        network = (
            _image_network(config, networks, schedule, inputs)
            if config.objective == "image"
            else _video_network(config, stage, networks, schedule, inputs)
        )
    return LatentTask(
        config=config,
        stage=stage,
        network=network,
        source=source,
        held_out=held_out if any(held_out.buckets) else source,
        recipe=LatentRecipe(
            seed=config.seed,
            schedule=schedule,
            scaling=scaling_of(shards),
            num_frames=config.data.num_frames,
            label_dropout=config.data.label_dropout,
            context=context_recipe(config, stage),
            image_share=config.data.image_share,
        ),
        networks=networks,
        identity=digests(config, inputs, shards),
    )


def context_recipe(config: TrainConfig, stage: StageConfig) -> ContextRecipe | None:
    """What an objective gives its network to know; noise on it only if the network is told its level."""
    if config.objective not in ("prediction", "interpolation"):
        return None
    max_level = config.data.context_noise or 0 if stage.temporal.embeds_context_level else None
    return ContextRecipe(kind=config.objective, max_level=max_level)


def _image_network(config: TrainConfig, networks: Networks, schedule: NoiseSchedule, inputs: Inputs) -> ImageNetwork:
    if config.lora_rank is not None:
        folder = Path(inputs.backbone) if inputs.backbone else networks.folder / "backbone"
        frozen, known = networks.unet, frozen_condition(config, folder)
        freeze([frozen, known], config)
        return ImageNetwork(frozen, known, schedule, config)
    condition = new_condition(config, inputs.backbone)
    if inputs.backbone is not None:
        unet: UNet = UNet2DConditionModel.from_pretrained(Path(inputs.backbone) / "unet", use_safetensors=True)
    elif "cross_attention_dim" in config.model.unet:
        unet = UNet2DConditionModel(**config.model.unet)
    else:
        unet = UNet2DModel(**config.model.unet)
    if inputs.backbone is None:
        quiet_branches(unet)
    if config.data.boxes:
        widen_input(unet, config.model.unet["in_channels"] + MAP_CHANNELS)
    return ImageNetwork(unet.requires_grad_(True), condition, schedule, config)


def _video_network(
    config: TrainConfig, stage: StageConfig, networks: Networks, schedule: NoiseSchedule, inputs: Inputs
) -> VideoNetwork:
    folder = Path(inputs.backbone) if inputs.backbone else networks.folder / "backbone"
    unet, condition = networks.unet, frozen_condition(config, folder)
    freeze([condition] if config.train_all else [unet, condition], config)
    video = VideoUNet(unet, stage.temporal)
    if config.recompute:
        recompute_transformers(unet)
    if config.initialise_from is not None:
        video.initialise_temporal(networks.stage(config.initialise_from).network.temporal_state_dict())
    (video if config.train_all else video.temporal).requires_grad_(True)
    return VideoNetwork(video, condition, schedule, config)


def checkpoint_json(config: Any) -> str:
    """Text of a config file in a checkpoint."""
    values = config if isinstance(config, dict) else to_json(config)
    return json.dumps(values, indent=1) + "\n"

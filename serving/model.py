"""The networks of one checkpoint in one worker, each loaded once, and the backbones that can be put under them."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.generation import LONG_CLIP_WINDOW
from pipelines.image_stage import ImageStage
from pipelines.models.text import TextEncoder
from pipelines.networks import BOXES, Networks, Stage
from pipelines.tensors import Latents
from serving import pipeline_plan
from serving.backbones import Backbones
from serving.previews import fit_preview


class Model:
    """What a worker holds of a checkpoint.

    Args:
        networks: of the checkpoint.
        backbones: name and diffusers folder of further image backbones.
    """

    def __init__(self, networks: Networks, backbones: dict[str, str]) -> None:
        self.networks, self.backbones = networks, backbones
        self.description = pipeline_plan.describe(networks, sorted(backbones))
        self._stages: dict[tuple[str, bool], Stage] = {}
        self._texts: dict[str, TextEncoder] = {}

    def load(self, tasks: Iterable[str]) -> None:
        """Load all that some kinds of tasks need."""
        held, networks, wanted = self.networks.stage_names(), self.networks, set(tasks)
        for task, stage in [(name, name) for name in ("keyframes", "prediction", "interpolation")] + [
            ("upsample", "upsampler")
        ]:
            if task in wanted and stage in held:
                self.stage(stage)
        if "image" in wanted:
            _ = self.image_stage
            if networks.has(BOXES):
                _ = self.box_stage, networks.box_encoder
        if "upsample" in wanted and networks.has("upsampler"):
            _ = networks.upsampler_autoencoder, networks.upsampler_text_encoder
        if "decode" in wanted:
            _ = networks.decoder
        if self._stages:
            _ = self.preview_map, self.variants
            if networks.condition_kind == "scene":
                _ = networks.scene_encoder
            elif networks.condition_kind == "text":
                _ = networks.text_encoder, networks.temporal_text_encoder

    def stage(self, name: Any, *, is_long: bool = False) -> Stage:
        """Get a video model; for clips longer than it was trained on, one whose frames look a few frames away."""
        if (name, is_long) not in self._stages:
            window = LONG_CLIP_WINDOW if is_long else None
            self._stages[name, is_long] = self.networks.stage(name, attention_window=window)
        return self._stages[name, is_long]

    @cached_property
    def image_stage(self) -> ImageStage:
        """The image model under the video models."""
        return self.networks.image_stage()

    @cached_property
    def box_stage(self) -> ImageStage:
        """The image model that takes boxes."""
        return self.networks.box_stage()

    @cached_property
    def variants(self) -> Backbones:
        """The further backbones."""
        return Backbones(self.networks.unet, self.backbones)

    @cached_property
    def preview_map(self) -> Tensor:
        """Linear map from latents to colours."""
        return fit_preview(self.networks.autoencoder)

    def own_text_encoder(self, backbone: str | None) -> TextEncoder | None:
        """The text encoder that a further backbone brings; None if it has none."""
        if backbone is None or not (Path(self.backbones[backbone]) / "text_encoder").is_dir():
            return None
        if backbone not in self._texts:
            encoder = TextEncoder.from_folder(Path(self.backbones[backbone]))
            self._texts[backbone] = encoder.to(self.networks.device).eval().requires_grad_(False)
        return self._texts[backbone]

    def latent_shape(self, num_frames: int, request: dict[str, Any]) -> tuple[int, int, int, int, int]:
        """Shape of the latents of so many frames of a request."""
        config, size = self.networks.first_config(), pipeline_plan.base_size(request)
        return self.networks.latent_shape(config, num_frames, size=size)

    def no_frames(self, request: dict[str, Any]) -> Latents:
        """Latents of no frame, which prediction can begin with."""
        return torch.zeros(self.latent_shape(0, request), device=self.networks.device)

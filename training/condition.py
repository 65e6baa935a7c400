"""From what a batch knows of its clips to the tokens that the image network attends to."""

from pathlib import Path

import torch
from torch import nn

from pipelines.models.boxes import BoxConfig, BoxEncoder
from pipelines.models.scene import SceneConfig, SceneEncoder
from pipelines.models.text import TextEncoder
from pipelines.tensors import Tokens
from training.batches import LatentBatch
from training.config import TrainConfig


class SceneCondition(nn.Module):
    """Day or night and crowdedness."""

    def __init__(self, encoder: SceneEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: LatentBatch) -> Tokens:
        """Encode the labels of a batch."""
        return self.encoder(batch.night, batch.crowdedness)


class BoxCondition(nn.Module):
    """Vehicle boxes of the first frame."""

    def __init__(self, encoder: BoxEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, batch: LatentBatch) -> Tokens:
        """Encode the boxes of a batch."""
        return self.encoder(batch.boxes)


class TextCondition(nn.Module):
    """Captions, by a frozen text encoder; each distinct caption is encoded once and kept in CPU memory."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self._known: dict[str, Tokens] = {}

    @torch.no_grad()
    def forward(self, batch: LatentBatch) -> Tokens:
        """Encode the captions of a batch."""
        new = sorted({caption for caption in batch.captions if caption not in self._known})
        if new:
            self._known |= zip(new, torch.split(self.encoder(new).cpu(), 1), strict=True)
        return torch.cat([self._known[caption] for caption in batch.captions]).to(batch.latents.device)


class NoCondition(nn.Module):
    """For networks without cross-attention."""

    def forward(self, batch: LatentBatch) -> None:
        """Give nothing."""


Condition = SceneCondition | BoxCondition | TextCondition | NoCondition


def new_condition(config: TrainConfig, backbone: str | None) -> Condition:
    """Make the condition of an image model that is to be trained.

    Raises:
        ValueError: if a text model is to be trained without a folder that has its text encoder.
    """
    width = int(config.model.unet.get("cross_attention_dim", 0))
    if config.data.boxes:
        return BoxCondition(BoxEncoder(BoxConfig(width=width)))
    if config.model.condition == "scene":
        if backbone is not None and (Path(backbone) / "condition").is_dir():
            return SceneCondition(SceneEncoder.load(Path(backbone) / "condition"))
        return SceneCondition(SceneEncoder(SceneConfig(width=width)))
    if config.model.condition == "nothing":
        return NoCondition()
    if backbone is None:
        raise ValueError(f"{config.name} reads text; give the diffusers folder of a text-to-image model by --backbone")
    return TextCondition(TextEncoder.from_folder(Path(backbone)))


def frozen_condition(config: TrainConfig, folder: Path) -> Condition:
    """Load the condition of a trained image model from its `backbone/` folder."""
    if config.model.condition == "scene":
        return SceneCondition(SceneEncoder.load(folder / "condition"))
    if config.model.condition == "text":
        return TextCondition(TextEncoder.from_folder(folder))
    return NoCondition()

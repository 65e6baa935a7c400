"""CLIPSIM: how well frames fit their caption, by a CLIP model from the user's own folder.

Source: Wu et al. 2021 (GODIVA, arXiv 2104.14806), section 4.2; the paper takes ViT-B/32 and the mean over all frames.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional
from transformers import CLIPModel, CLIPTokenizer

from pipelines.digests import network_digest
from pipelines.metrics.frames import PerFrame
from pipelines.tensors import Frames

NAME = "CLIPSIM"
# Of the published models' preprocessing, for colours in [0, 1].
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
BATCH = 16


class ClipSimilarity:
    """A CLIP model with its tokenizer.

    Args:
        folder: as transformers saves CLIPModel and CLIPTokenizer.

    Raises:
        ValueError: if it is not such a folder.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.digest = network_digest(folder)
            self._model = cast(Any, CLIPModel.from_pretrained(folder, use_safetensors=True))
            self._tokenizer = CLIPTokenizer.from_pretrained(folder)
        except (OSError, ValueError) as err:
            raise ValueError(
                f"no CLIP model at {str(folder)!r} ({err}); give a folder with model and tokenizer"
            ) from err
        self._model.eval().requires_grad_(False)
        self.size = int(self._model.config.vision_config.image_size)

    @property
    def resize_rule(self) -> str:
        """How frames come to the network's size, in words."""
        return f"shorter side to {self.size}, bicubic, antialiased, middle cut out"

    @torch.inference_mode()
    def similarity(self, frames: Frames, captions: Sequence[str]) -> PerFrame:
        """Cosine of every frame's and its clip's caption's embedding."""
        images = torch.split(self._fit(rearrange(frames, "b t c H W -> (b t) c H W")), BATCH)
        seen = torch.cat([self._model.visual_projection(self._model.vision_model(i).pooler_output) for i in images])
        tokens = self._tokenizer(list(captions), padding=True, truncation=True, return_tensors="pt")
        told = self._model.text_projection(self._model.text_model(**tokens).pooler_output)
        each = rearrange(functional.normalize(seen, dim=1), "(b t) d -> b t d", b=len(captions))
        return torch.einsum("btd,bd->bt", each, functional.normalize(told, dim=1))

    def _fit(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        scale = self.size / min(height, width)
        size = [max(self.size, round(side * scale)) for side in (height, width)]
        whole = functional.interpolate(images, size, mode="bicubic", align_corners=False, antialias=True)
        top, left = ((side - self.size) // 2 for side in size)
        cut = whole[..., top : top + self.size, left : left + self.size].clamp(-1, 1)
        mean, deviation = (rearrange(images.new_tensor(values), "c -> 1 c 1 1") for values in (MEAN, DEVIATION))
        return ((cut + 1) / 2 - mean) / deviation

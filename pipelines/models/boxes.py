"""Vehicle boxes as cross-attention tokens, and as maps beside the latents.

The paper embeds box coordinates, fuses them by a transformer and attends to the result; sizes, the box format and
the greatest number of boxes are not published. A small image network hardly knows where in the picture it is, so it
does not learn from tokens where a box lies; the maps tell it.
Source: Blattmann et al. 2023, appendix H.1.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pipelines.tensors import Context, Tokens

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 as fractions of the width and height, from the top left corner."""

CONFIG, WEIGHTS = "config.json", "model.safetensors"

MAP_CHANNELS = 3
"""Of `box_maps`."""


@dataclass(frozen=True, kw_only=True)
class BoxConfig:
    """Sizes of the box encoder.

    Attributes:
        width: of the tokens: the cross-attention width of the image network.
        max_boxes: number of tokens.
        depth: layers of the transformer.
        heads: heads of its attention.
        frequencies: octaves of the coordinates' sinusoids; 8 tell a 256th of the image apart.
    """

    width: int
    max_boxes: int = 16
    depth: int = 2
    heads: int = 4
    frequencies: int = 8


class BoxEncoder(nn.Module):
    """One token for each of up to `max_boxes` vehicles: coordinates embedded, then fused by a transformer.

    Places without a box hold a learned token; so do all places of a clip whose boxes are unknown, another one, which
    is the unconditional side of guidance. The boxes are a set: their order does not matter.
    """

    def __init__(self, config: BoxConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.proj = nn.Linear(4 * 2 * config.frequencies, width)
        self.no_box = nn.Parameter(torch.randn(width))
        self.unknown = nn.Parameter(torch.randn(width))
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, config.depth, nn.LayerNorm(width), enable_nested_tensor=False)

    def forward(self, clips: Sequence[Sequence[Box] | None]) -> Tokens:
        """Return tokens b max_boxes d.

        Args:
            clips: boxes of each clip; empty for a road without vehicles, None if unknown.

        Raises:
            ValueError: a box leaves the image or is empty, or there are too many.
        """
        places = self.config.max_boxes
        tokens = repeat(self.no_box, "d -> b n d", b=len(clips), n=places).clone()
        for index, boxes in enumerate(clips):
            if boxes is None:
                tokens[index] = self.unknown
            elif boxes:
                check_boxes(boxes, places)
                tokens[index, : len(boxes)] = self.embed(self.no_box.new_tensor(boxes))
        return self.transformer(tokens)

    def embed(self, boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n d"]:
        """Embed coordinates as sinusoids of octaves, then project."""
        octaves = torch.pi * 2.0 ** torch.arange(self.config.frequencies, device=boxes.device, dtype=boxes.dtype)
        phase = boxes[..., None] * octaves
        return self.proj(rearrange([phase.sin(), phase.cos()], "two n side f -> n (two side f)"))

    def save(self, folder: Path) -> None:
        """Write config.json and model.safetensors into `folder`, which is made if missing."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1) + "\n")
        save_file({name: value.contiguous() for name, value in self.state_dict().items()}, folder / WEIGHTS)

    @classmethod
    def load(cls, folder: Path) -> "BoxEncoder":
        """Read what `save` wrote."""
        encoder = cls(BoxConfig(**json.loads((folder / CONFIG).read_text())))
        encoder.load_state_dict(load_file(folder / WEIGHTS))
        return encoder


def box_maps(clips: Sequence[Sequence[Box] | None], size: tuple[int, int]) -> Context:
    """Draw the boxes of each clip as maps b 1 c h w: the share of a cell that is inside a box, and where in it.

    The place in a box runs from -1 (left, top) to 1. Boxes that end lower are nearer and cover the others. Unknown
    boxes leave the maps empty as no boxes do; the tokens tell them apart.

    Args:
        clips: boxes of each clip.
        size: (h, w) of the latents.
    """
    maps = torch.zeros(len(clips), MAP_CHANNELS, *size)
    for drawn, boxes in zip(maps, clips, strict=True):
        for x1, y1, x2, y2 in sorted(boxes or (), key=lambda box: box[3]):
            down, below = _along(y1, y2, size[0])
            across, beside = _along(x1, x2, size[1])
            places = torch.stack([torch.ones(size), beside.expand(size), below[:, None].expand(size)])
            drawn.lerp_(places, down[:, None] * across)
    return maps[:, None]


def _along(low: float, high: float, cells: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Along one side: the share of each cell inside the box, and the place of its middle in it."""
    edges = torch.arange(cells + 1) / cells
    inside = (edges[1:].clamp(max=high) - edges[:-1].clamp(min=low)).clamp(min=0) * cells
    middles = (edges[1:] + edges[:-1]) / 2
    return inside, ((2 * middles - low - high) / (high - low)).clamp(-1, 1)


def check_boxes(boxes: Sequence[Box], max_boxes: int) -> None:
    """Check the boxes of one clip.

    Raises:
        ValueError: a box leaves the image or is empty, or there are too many.
    """
    if len(boxes) > max_boxes:
        raise ValueError(f"{len(boxes)} boxes; the model takes up to {max_boxes}: keep the largest")
    for x1, y1, x2, y2 in boxes:
        if not (x1 >= 0 and x2 <= 1 and y1 >= 0 and y2 <= 1):
            raise ValueError(f"box {(x1, y1, x2, y2)} leaves the image; give fractions of width and height in [0, 1]")
        if x1 >= x2 or y1 >= y2:
            raise ValueError(f"box {(x1, y1, x2, y2)} is empty; give x1 < x2 and y1 < y2")

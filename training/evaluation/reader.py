"""The scene reader: a small network that reads night, the number of vehicles and their boxes off frames.

It is trained on rendered clips, whose labels are exact, and stands in where the paper has no measure: are the labels
that were asked for in the generated clip? Its own errors on real clips are printed beside every figure it makes.
"""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from pipelines.shard_format import Box

SIZE = (128, 256)
STRIDE = 4
WIDTHS = (16, 32, 48, 64)
MIN_SCORE = 0.3
NAME = "scene-reader.safetensors"
PRETRAINED = Path(str(files("pipelines") / "pretrained" / NAME))
"""The reader that ships; its record says how it was trained and how well it reads."""

Maps = Float[Tensor, "n 5 h w"]
"""Logit of a vehicle's middle being in the cell, and the distances from its middle to left, top, right, bottom edge."""


class SceneReader(nn.Module):
    """Frames to night, vehicle count and vehicle maps.

    Source: boxes as middles and sizes after Zhou et al. 2019 (CenterNet, arXiv 1904.07850).
    """

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.down = nn.ModuleList([_block(3, a, 2), _block(a, b, 2), _block(b, c, 2), _block(c, d, 2)])
        self.deep = _block(d, d, 1)
        self.up = nn.ModuleList([_block(d + c, c, 1), _block(c + b, b, 1)])
        self.head = nn.Conv2d(b, 5, 1)
        self.labels = nn.Sequential(nn.Linear(d + 1, 64), nn.ReLU(), nn.Linear(64, 2))
        # Middles are rare: a start near their share keeps the first steps calm.
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[:1], -4.0)

    def forward(self, images: Float[Tensor, "n 3 H W"]) -> tuple[Float[Tensor, "n 2"], Maps]:
        """Return (night logit, log(1 + vehicles)) and maps of a quarter of the size.

        Args:
            images: in [-1, 1], of SIZE.
        """
        found = []
        x = images
        for block in self.down:
            x = block(x)
            found.append(x)
        x = self.deep(x)
        pooled = x.mean(dim=(2, 3))
        for block, skip in zip(self.up, (found[2], found[1]), strict=True):
            x = functional.interpolate(x, scale_factor=2.0, mode="nearest") if x.shape[2:] != skip.shape[2:] else x
            x = block(torch.cat([x, skip], dim=1))
        maps = self.head(x)
        total = maps[:, 0].sigmoid().sum(dim=(1, 2)).log1p()[:, None]
        return self.labels(torch.cat([pooled, total], dim=1)), maps

    @torch.inference_mode()
    def read(
        self, frames: Float[Tensor, "t 3 H W"]
    ) -> tuple[Float[Tensor, " t"], Float[Tensor, " t"], list[Float[Tensor, "v 4"]]]:
        """Read a clip: probability of night and number of vehicles of each frame, and their boxes in [0, 1]."""
        labels, maps = self(fit(frames.cpu()))
        return labels[:, 0].sigmoid(), labels[:, 1].expm1().clamp(min=0), [find_boxes(one) for one in maps]


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU(),
    )  # fmt: skip


def fit(frames: Float[Tensor, "t 3 H W"]) -> Float[Tensor, "t 3 h w"]:
    """Scale frames to the reader's size."""
    return functional.interpolate(frames, SIZE, mode="bilinear", align_corners=False, antialias=True)


def find_boxes(maps: Float[Tensor, "5 h w"], min_score: float = MIN_SCORE) -> Float[Tensor, "v 4"]:
    """Boxes around the cells that are likelier than their neighbours, in [0, 1], the likeliest first."""
    scores, sides = maps[0].sigmoid(), maps[1:].exp()
    is_peak = functional.max_pool2d(scores[None], 3, stride=1, padding=1)[0] == scores
    rows, columns = torch.nonzero(is_peak & (scores >= min_score), as_tuple=True)
    order = scores[rows, columns].argsort(descending=True)
    rows, columns = rows[order], columns[order]
    height, width = (side * STRIDE for side in maps.shape[1:])
    x, y = (columns + 0.5) * STRIDE, (rows + 0.5) * STRIDE
    left, top, right, bottom = sides[:, rows, columns]
    boxes = torch.stack([(x - left) / width, (y - top) / height, (x + right) / width, (y + bottom) / height], dim=1)
    return boxes.clamp(0, 1)


def reader_losses(
    labels: Float[Tensor, "n 2"],
    maps: Maps,
    night: Float[Tensor, " n"],
    counts: Float[Tensor, " n"],
    boxes: Sequence[Sequence[Box]],
) -> Float[Tensor, ""]:
    """Loss of a batch: night, count, middles (focal), and log distances to the edges."""
    goal, sides, mask = draw_maps(boxes, maps.shape[2:])
    probability = maps[:, 0].sigmoid().clamp(1e-4, 1 - 1e-4)
    is_middle = goal == 1
    hit = -((1 - probability) ** 2) * probability.log() * is_middle
    miss = -((1 - goal) ** 4) * probability**2 * (1 - probability).log() * ~is_middle
    num_boxes = max(int(mask.sum()), 1)
    middles = (hit + miss).sum() / num_boxes
    edges = ((maps[:, 1:] - sides).abs() * mask[:, None]).sum() / num_boxes
    known = functional.binary_cross_entropy_with_logits(labels[:, 0], night)
    return known + functional.l1_loss(labels[:, 1], counts.log1p()) + middles + 0.5 * edges


def draw_maps(boxes: Sequence[Sequence[Box]], size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """What the maps should be: bumps around middles n h w, log distances to the edges n 4 h w, and where, n h w."""
    h, w = size
    n = len(boxes)
    goal, sides, mask = torch.zeros(n, h, w), torch.zeros(n, 4, h, w), torch.zeros(n, h, w)
    rows, columns = torch.arange(h)[:, None], torch.arange(w)[None]
    for image, own in enumerate(boxes):
        for x1, y1, x2, y2 in own:
            column, row = min(int((x1 + x2) / 2 * w), w - 1), min(int((y1 + y2) / 2 * h), h - 1)
            # The bump falls to a third a sixth of the box away from the middle, and is never narrower than a cell.
            spread_x, spread_y = max((x2 - x1) * w / 6, 0.6), max((y2 - y1) * h / 6, 0.6)
            bump = torch.exp(-((columns - column) ** 2) / (2 * spread_x**2) - (rows - row) ** 2 / (2 * spread_y**2))
            goal[image] = torch.maximum(goal[image], bump)
            x, y = (column + 0.5) * STRIDE, (row + 0.5) * STRIDE
            edges = torch.tensor([x - x1 * w * STRIDE, y - y1 * h * STRIDE, x2 * w * STRIDE - x, y2 * h * STRIDE - y])
            sides[image, :, row, column] = edges.clamp(min=0.5).log()
            mask[image, row, column] = 1
    return goal, sides, mask


def save_reader(reader: SceneReader, path: Path, record: dict[str, object]) -> None:
    """Write the reader's weights with a record of how it was trained and how well it reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.half().contiguous() for name, value in reader.state_dict().items()}
    save_file(weights, path, metadata={"record": json.dumps(record)})


def load_reader(path: Path) -> SceneReader:
    """Load a trained reader.

    Raises:
        ValueError: if the file is missing; says how to make one.
    """
    if not path.is_file():
        raise ValueError(f"no scene reader at {str(path)!r}; train one: python -m training reader --corpus CORPUS")
    reader = SceneReader()
    with safe_open(path, framework="pt") as file:
        reader.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    return reader.eval().requires_grad_(False)


def read_record(path: Path) -> dict[str, object]:
    """What is known of a trained reader."""
    with safe_open(path, framework="pt") as file:
        record: dict[str, object] = json.loads((file.metadata() or {}).get("record", "{}"))
    return record

"""Agreement of two sets of boxes in a frame: those asked for and those found in the result."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Boxes = Float[Tensor, "n 4"]
"""x1, y1, x2, y2 with x1 < x2 and y1 < y2, as shares of width and height or in pixels."""


@dataclass(frozen=True)
class BoxMatch:
    """A pair of boxes, by their row in either set, and their overlap."""

    expected: int
    found: int
    iou: float


def box_iou(one: Boxes, other: Float[Tensor, "m 4"]) -> Float[Tensor, "n m"]:
    """Intersection over union of every pair, 0 for boxes that only touch.

    Raises:
        ValueError: If a box has no area.
    """
    for boxes in (one, other):
        if bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            raise ValueError(f"a box of {boxes.tolist()} has no area; use x1 < x2 and y1 < y2")
    x, y = one.double(), other.double()
    low = torch.maximum(x[:, None, :2], y[None, :, :2])
    high = torch.minimum(x[:, None, 2:], y[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    return shared / (_area(x)[:, None] + _area(y)[None, :] - shared)


def match_boxes(expected: Boxes, found: Float[Tensor, "m 4"], threshold: float = 0.5) -> list[BoxMatch]:
    """Pair boxes one to one, the best overlap first, down to `threshold`.

    Raises:
        ValueError: If the threshold is no overlap, or a box has no area.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}; use an overlap above 0 and up to 1, such as 0.5")
    iou = box_iou(expected, found)
    matches: list[BoxMatch] = []
    while iou.numel() and iou.max() >= threshold:
        row, column = divmod(int(iou.argmax()), iou.shape[1])
        matches.append(BoxMatch(expected=row, found=column, iou=iou[row, column].item()))
        iou[row], iou[:, column] = -1.0, -1.0
    return matches


@dataclass(frozen=True)
class BoxAgreement:
    """Counts over many frames, and the rates that follow.

    Attributes:
        num_expected: boxes asked for.
        num_found: boxes found.
        num_matched: pairs above the threshold.
        sum_iou: sum of their overlaps.
    """

    num_expected: int = 0
    num_found: int = 0
    num_matched: int = 0
    sum_iou: float = 0.0

    @property
    def precision(self) -> float:
        """Share of found boxes that were asked for; nan if none was found."""
        return self.num_matched / self.num_found if self.num_found else float("nan")

    @property
    def recall(self) -> float:
        """Share of boxes asked for that were found; nan if none was asked for."""
        return self.num_matched / self.num_expected if self.num_expected else float("nan")

    @property
    def mean_iou(self) -> float:
        """Mean overlap over the boxes asked for, 0 for those missed; nan if none was asked for."""
        return self.sum_iou / self.num_expected if self.num_expected else float("nan")


def add_frame(
    agreement: BoxAgreement, expected: Boxes, found: Float[Tensor, "m 4"], threshold: float = 0.5
) -> BoxAgreement:
    """Count one more frame."""
    matches = match_boxes(expected, found, threshold)
    return BoxAgreement(
        num_expected=agreement.num_expected + len(expected),
        num_found=agreement.num_found + len(found),
        num_matched=agreement.num_matched + len(matches),
        sum_iou=agreement.sum_iou + sum(match.iou for match in matches),
    )


def _area(boxes: Boxes) -> Float[Tensor, " n"]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=-1)

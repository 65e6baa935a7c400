"""Scenes in words: what a caller may ask of a driving model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from pipelines.models.scene import UNKNOWN

LIGHT = {"day": 0, "night": 1}
CROWDEDNESS = {"empty": 0, "sparse": 3, "busy": 8, "crowded": 14}
"""Words for the number of vehicles in sight, the mean over a clip."""

WORDS = (*LIGHT, *CROWDEDNESS)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a clip shows; None leaves it to the model.

    Attributes:
        night: 1 by night, 0 by day.
        crowdedness: vehicles in sight, the mean over the clip.
    """

    night: int | None = None
    crowdedness: int | None = None


def parse_scene(text: str) -> Scene:
    """Read words such as "night,crowded"; an empty text leaves everything to the model.

    Raises:
        ValueError: for an unknown word, or two that contradict each other.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    for word in words:
        if word not in WORDS:
            raise ValueError(f"scene word {word!r} is not known; use {', '.join(WORDS)}")
    return Scene(night=_one_of(LIGHT, words), crowdedness=_one_of(CROWDEDNESS, words))


def scene_labels(scenes: Sequence[Scene]) -> tuple[Int[Tensor, " b"], Int[Tensor, " b"]]:
    """Labels of b scenes as the scene encoder takes them: night and crowdedness, UNKNOWN where left open."""
    night = [UNKNOWN if scene.night is None else scene.night for scene in scenes]
    crowdedness = [UNKNOWN if scene.crowdedness is None else scene.crowdedness for scene in scenes]
    return torch.tensor(night), torch.tensor(crowdedness)


def _one_of(meanings: dict[str, int], words: Sequence[str]) -> int | None:
    said = [word for word in words if word in meanings]
    if len(said) > 1:
        raise ValueError(f"scene words {', '.join(said)} contradict each other; use one of {', '.join(meanings)}")
    return meanings[said[0]] if said else None

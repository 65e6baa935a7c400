"""Which frames of a training clip are given, and how clean they are.

Source: Blattmann et al. 2023, sections 3.2 and 3.3, appendices H.1 and H.2.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pipelines.diffusion.frame_masks import (
    NUM_CONTEXT_PROBABILITIES,
    draw_levels,
    draw_num_context,
    drop_context,
    interpolation_mask,
    masked_context,
    noisy_context,
    prediction_mask,
)
from pipelines.diffusion.noise import NoiseSchedule
from pipelines.tensors import Latents


@dataclass(frozen=True, kw_only=True)
class ContextRecipe:
    """How context is drawn for a clip.

    Attributes:
        kind: "prediction" gives the first 0, 1 or 2 frames; "interpolation" the first and the last.
        probabilities: of 0, 1 and 2 given frames in prediction; none given is what context guidance compares with.
        dropout: probability that interpolation gives none.
        max_level: highest noise level put on the given frames, drawn evenly from 0; None leaves them clean.
    """

    kind: Literal["prediction", "interpolation"]
    probabilities: tuple[float, ...] = NUM_CONTEXT_PROBABILITIES
    dropout: float = 0.1
    max_level: int | None = None


def draw_context(
    recipe: ContextRecipe, latents: Latents, schedule: NoiseSchedule, random: torch.Generator
) -> dict[str, Tensor]:
    """Draw given frames and their noise for one clip: `context`, and `context_level` if it is noised.

    Raises:
        ValueError: if the clip has too few frames for its context.
    """
    num_frames = latents.shape[1]
    if recipe.kind == "prediction":
        mask = prediction_mask(draw_num_context([random], recipe.probabilities), num_frames)
    else:
        mask = drop_context(interpolation_mask(1, num_frames), recipe.dropout, [random])
    if recipe.max_level is None:
        return {"context": masked_context(latents, mask)}
    level = draw_levels(recipe.max_level, [random])
    noise = torch.randn(latents.shape, generator=random)
    return {"context": noisy_context(latents, mask, level, noise, schedule), "context_level": level}

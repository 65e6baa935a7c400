"""From what a caller asks to see to both sides of guidance (conditions, unconditional), by the kind of checkpoint."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from pipelines.models.boxes import Box, box_maps, check_boxes
from pipelines.models.conditioning import Conditions
from pipelines.models.text import TextEncoder
from pipelines.networks import BOXES, Networks, Stage
from pipelines.scenes import Scene
from pipelines.stage_inputs import Sides

SIDES = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a clip shall show; what is left out is left to the model.

    Attributes:
        prompt: text for the image layers, in the words of the backbone.
        negative_prompt: text that guidance pushes away from.
        temporal_prompt: text for the temporal layers, in the words of the encoder they were trained with: the prompt
            without a personalised backbone's own words (appendix H.3). Default the prompt.
        scene: light and traffic.
        boxes: vehicles of the first frame; empty for a road without any.
    """

    prompt: str = ""
    negative_prompt: str = ""
    temporal_prompt: str | None = None
    scene: Scene = field(default_factory=Scene)
    boxes: tuple[Box, ...] | None = None


def check_wish(networks: Networks, wish: Wish) -> None:
    """Refuse what the checkpoint cannot show.

    Raises:
        ValueError: naming the option and what the checkpoint takes instead.
    """
    kind, name = networks.condition_kind, networks.manifest.name
    takes = {"scene": "scenes: use --scene", "text": "text: use --prompt", "nothing": "no conditions: leave it out"}
    has_text = bool(wish.prompt or wish.negative_prompt or wish.temporal_prompt)
    if has_text and kind != "text":
        raise ValueError(f"prompt {(wish.prompt or wish.negative_prompt)[:40]!r}: {name!r} takes {takes[kind]}")
    if wish.scene != Scene() and kind != "scene":
        raise ValueError(f"scene {wish.scene}: {name!r} takes {takes[kind]}")
    if wish.boxes is not None:
        if not networks.has(BOXES):
            raise ValueError(f"{name!r} has no box-conditioned image model (part {BOXES!r}); leave --boxes out")
        check_boxes(wish.boxes, networks.box_encoder.config.max_boxes)


def image_and_video_sides(networks: Networks, wish: Wish) -> Sides:
    """Conditions of one clip for the image and the video models.

    Raises:
        ValueError: a prompt has more tokens than the encoder takes.
    """
    if networks.condition_kind == "scene":
        return networks.scene_conditions([wish.scene])
    if networks.condition_kind == "nothing":
        return Conditions(), Conditions()
    spatial = networks.text_encoder
    temporal = networks.temporal_text_encoder
    moves = wish.prompt if wish.temporal_prompt is None else wish.temporal_prompt
    return (
        Conditions(text=spatial([wish.prompt]), temporal_text=temporal([moves])),
        Conditions(text=spatial([wish.negative_prompt]), temporal_text=temporal([wish.negative_prompt])),
    )


def box_sides(networks: Networks, wish: Wish, size: tuple[int, int]) -> Sides:
    """Conditions of the box-conditioned image model; the other side of guidance knows no boxes.

    Args:
        networks: with a box-conditioned image model.
        wish: what is asked for.
        size: (h, w) of the latents.
    """
    given, nothing = (
        Conditions(text=networks.box_encoder([boxes]), context=box_maps([boxes], size).to(networks.device))
        for boxes in (wish.boxes, None)
    )
    return given, nothing


def interpolation_sides(stage: Stage, sides: Sides, fps: float) -> Sides:
    """Tell an interpolation model the frame rate to reach, its temporal layers' only token."""
    if not stage.config.temporal.embeds_fps:
        return sides
    rate = torch.tensor([float(fps)], device=stage.device)
    given, nothing = (replace(side, temporal_text=None, fps=rate) for side in sides)
    return given, nothing


def upsampler_sides(networks: Networks, wish: Wish) -> Sides:
    """Conditions of the upsampler: text if it attends to it. The low resolution is added by the stage."""
    width = networks.upsampler_unet.config.get("cross_attention_dim")
    encoder = networks.upsampler_text_encoder
    if not width:
        return Conditions(), Conditions()
    if encoder is None or not _fits(encoder, int(width)):
        # Trained without text, it attends to one token of zeros.
        zeros = torch.zeros(1, 1, int(width), device=networks.device)
        return Conditions(text=zeros), Conditions(text=zeros)
    moves = wish.prompt if wish.temporal_prompt is None else wish.temporal_prompt
    return Conditions(text=encoder([moves])), Conditions(text=encoder([wish.negative_prompt]))


def read_boxes(path: Path) -> tuple[Box, ...]:
    """Read vehicle boxes from JSON: a list of [x1, y1, x2, y2] or {"x1": ...}, as fractions of width and height.

    Raises:
        ValueError: if the file is missing or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as err:
        raise ValueError(f"no file {str(path)!r}; give a JSON list of boxes") from err
    except (json.JSONDecodeError, UnicodeDecodeError) as err:
        raise ValueError(f"{str(path)!r} is not JSON ({err}); give a JSON list of boxes") from err
    if not isinstance(values, list):
        raise ValueError(f"{str(path)!r} holds a {type(values).__name__}; give a list of boxes")
    boxes = tuple(_box(value, path) for value in values)
    check_boxes(boxes, max_boxes=len(boxes))
    return boxes


def _box(value: Any, path: Path) -> Box:
    if isinstance(value, dict) and set(value) == set(SIDES):
        value = [value[side] for side in SIDES]
    if not isinstance(value, list) or len(value) != len(SIDES) or not all(_is_number(side) for side in value):
        raise ValueError(f'{str(path)!r}: {value!r} is no box; give [x1, y1, x2, y2] or {{"x1": ..., "y2": ...}}')
    x1, y1, x2, y2 = (float(side) for side in value)
    return x1, y1, x2, y2


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits(encoder: TextEncoder, width: int) -> bool:
    return int(encoder.model.config.hidden_size) == width

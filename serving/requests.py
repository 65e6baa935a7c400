"""What a caller may ask for: the fields of the OpenAI Videos API and our own, checked before anything is stored."""

import hashlib
import json
import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from pipelines.scenes import parse_scene
from serving.config import Limits
from serving.errors import ApiError


def _parse_json(value: Any) -> Any:
    """Multipart parts are text; structured fields come as JSON in them."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except json.JSONDecodeError as err:
            raise ValueError(f"not JSON: {err}") from err
    return value


def _text(value: str) -> str:
    if "\x00" in value or any(0xD800 <= ord(char) <= 0xDFFF for char in value):
        raise ValueError("holds a NUL or a lone surrogate, which no text has")
    return value


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError("must be a finite number")
    return value


Text = Annotated[str, AfterValidator(_text)]
Number = Annotated[float, AfterValidator(_finite)]


class Box(BaseModel):
    """A vehicle's place in the first frame, as shares of width and height."""

    model_config = ConfigDict(extra="forbid")

    x1: Annotated[float, Field(ge=0, le=1)]
    y1: Annotated[float, Field(ge=0, le=1)]
    x2: Annotated[float, Field(ge=0, le=1)]
    y2: Annotated[float, Field(ge=0, le=1)]


Boxes = Annotated[list[Box], BeforeValidator(_parse_json), Field(max_length=64)]
Stages = Annotated[list[Annotated[Text, Field(max_length=32)]], BeforeValidator(_parse_json), Field(max_length=8)]


class VideoRequest(BaseModel):
    """A video to make. Fields that are not given take the checkpoint's own values; `seed` is drawn at random."""

    model_config = ConfigDict(extra="forbid")

    prompt: Annotated[Text, Field(min_length=1, description="What the video shows.")]
    model: Annotated[Text, Field(description="Name of the served model.")] | None = None
    seconds: Annotated[Number, Field(gt=0, le=86400, description="Length; num_frames comes first.")] | None = None
    size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="WIDTHxHEIGHT")] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63, description="Same seed and fields, same bytes.")] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=10000)] | None = None
    guidance_scale: Annotated[Number, Field(ge=0, le=100)] | None = None
    negative_prompt: Text | None = None
    num_frames: Annotated[int, Field(ge=1, le=10**6)] | None = None
    fps: Annotated[Number, Field(gt=0, le=240)] | None = None
    scene: Annotated[str, Field(max_length=64, pattern=r"^[a-z, ]*$", description="Such as night,crowded")] | None = (
        None
    )
    boxes: Boxes | None = None
    minutes: Annotated[Number, Field(gt=0, le=1440, description="Length of a long video.")] | None = None
    stages: Stages | None = None
    backbone: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="One that is served.")] | None = None
    priority: Annotated[int, Field(ge=0, le=9, description="Higher goes first, up to what the key allows.")] = 0
    deadline_s: Annotated[Number, Field(gt=0, description="Fail if it is not done by then.")] | None = None
    callback_url: Annotated[Text, Field(max_length=2000, description="Where to send the webhook.")] | None = None


def fingerprint(request: VideoRequest, *extra: str) -> str:
    """Identify what was asked for: equal requests have equal fingerprints."""
    fields = json.dumps(request.model_dump(), sort_keys=True)
    return hashlib.sha256("\n".join([fields, *extra]).encode()).hexdigest()


def resolve(request: VideoRequest, description: dict[str, Any], limits: Limits, random_seed: int) -> dict[str, Any]:
    """Give every field its value, so that a result depends on the stored request and the checkpoint alone.

    Args:
        request: as sent.
        description: of the checkpoint: its defaults and what it allows.
        limits: of the service.
        random_seed: for a request without a seed.

    Raises:
        ApiError: a value that this checkpoint or service does not allow.
    """
    if request.model is not None and request.model not in (description["name"], f"{description['name']}-latest"):
        names = description["name"]
        raise ApiError(404, "model_not_found", f"model {request.model!r} is not served; use {names!r}", param="model")
    _check_choices("stages", request.stages or [], description.get("all_stages", description.get("stages", [])))
    stages = request.stages or description.get("stages", [])
    for name, changes in description.get("without", {}).items():
        description = description if name in stages else {**description, **changes}
    _check(len(request.prompt) <= limits.max_prompt_chars, "prompt", len(request.prompt), limits.max_prompt_chars)
    width, height = _size(request, description)
    fps = request.fps if request.fps is not None else description["fps"]
    num_frames = _num_frames(request, description, fps)
    max_frames = min(limits.max_frames, description.get("max_frames", limits.max_frames))
    _check(num_frames <= max_frames, "num_frames", num_frames, max_frames)
    num_steps = request.num_inference_steps or description["num_inference_steps"]
    _check(num_steps <= limits.max_steps, "num_inference_steps", num_steps, limits.max_steps)
    if request.deadline_s is not None:
        _check(request.deadline_s <= limits.max_deadline_s, "deadline_s", request.deadline_s, limits.max_deadline_s)
    _check_choices("backbone", [request.backbone] if request.backbone else [], description.get("backbones", []))
    for name in ("boxes", "negative_prompt"):
        if getattr(request, name) not in (None, "") and name not in description.get("fields", []):
            raise ApiError(400, "invalid_value", f"this checkpoint does not use {name}; leave it out", param=name)
    _check_boxes(request.boxes or [])
    words = [word.strip() for word in (request.scene or "").split(",") if word.strip()]
    _check_choices("scene", words, description.get("scenes", []))
    _check_scene(words)
    return {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt or "",
        "width": width,
        "height": height,
        "fps": fps,
        "num_frames": num_frames,
        "num_inference_steps": num_steps,
        "guidance_scale": description["guidance_scale"] if request.guidance_scale is None else request.guidance_scale,
        "seed": random_seed if request.seed is None else request.seed,
        "scene": ",".join(words),
        "boxes": None if request.boxes is None else [[box.x1, box.y1, box.x2, box.y2] for box in request.boxes],
        "stages": stages,
        "backbone": request.backbone,
    }


def _check_boxes(boxes: list[Box]) -> None:
    for box in boxes:
        if not (box.x1 < box.x2 and box.y1 < box.y2):
            message = f"box {[box.x1, box.y1, box.x2, box.y2]} is empty; give x1 < x2 and y1 < y2"
            raise ApiError(400, "invalid_value", message, param="boxes")


def _check_scene(words: list[str]) -> None:
    try:
        parse_scene(",".join(words))
    except ValueError as err:
        raise ApiError(400, "invalid_value", str(err), param="scene") from err


def _size(request: VideoRequest, description: dict[str, Any]) -> tuple[int, int]:
    allowed = [tuple(size) for size in description["sizes"]]
    if request.size is None:
        return allowed[0]
    width, height = (int(part) for part in request.size.split("x"))
    if (width, height) not in allowed:
        names = ", ".join(f"{w}x{h}" for w, h in allowed)
        raise ApiError(400, "invalid_value", f"size {request.size!r} is not offered; use one of {names}", param="size")
    return width, height


def _num_frames(request: VideoRequest, description: dict[str, Any], fps: float) -> int:
    if request.num_frames is not None:
        return request.num_frames
    if request.minutes is not None:
        return max(1, round(60 * request.minutes * fps))
    if request.seconds is not None:
        return max(1, round(request.seconds * fps))
    return int(description["num_frames"])


def _check(is_allowed: bool, param: str, value: float, limit: float) -> None:
    if not is_allowed:
        raise ApiError(400, "limit_exceeded", f"{param} is {value:g}; the limit is {limit:g}", param=param)


def _check_choices(param: str, values: list[str], allowed: list[str]) -> None:
    for value in values:
        if value not in allowed:
            offer = f"use {', '.join(allowed)}" if allowed else "this checkpoint has none"
            raise ApiError(400, "invalid_value", f"{param} {value!r} is not known; {offer}", param=param)

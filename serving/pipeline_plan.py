"""What a checkpoint can do, and how a request becomes tasks: known from settings alone, before any weight is loaded.

A video is made in segments. The first begins with noise, a picture or an image made from boxes; each further one goes
on from the last two key frames before it. A segment is interpolated, decoded and upsampled as soon as its key frames
are there, while the next is being denoised, so memory and the wait for the first segment do not grow with the length.

    prepare | image -> keyframes | prediction -> interpolation -> decode -> upsample -> publish
"""

from dataclasses import dataclass
from typing import Any

from pipelines.diffusion.windows import interpolated_length
from pipelines.generation_plan import GAPS_AT_ONCE, SEGMENT_FRAMES, SEGMENT_OVERLAP, Request, make_plan
from pipelines.loading import read_json
from pipelines.networks import BOXES, UPSAMPLER, Networks
from pipelines.scenes import WORDS
from pipelines.stages import UPSAMPLING
from serving.records import TaskSpec

# Sampling further than this many times the trained length in one go gives poor videos.
_MAX_STRETCH = 4
_MAX_ROLLOUT_FRAMES = 100_000
CONTEXT_FRAMES = 2
EDIT_KEPT = 0.3
"""Share of the denoising that an edit leaves out, and with it so much of the source's layout."""

_STARTS = ("image", "keyframes", "prediction")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A part of a clip that is denoised at once.

    Attributes:
        keyframes: key frames it adds.
        frames: frames it adds once they are interpolated, cut to the clip's length.
        first_frame: place of the first of them in the clip.
        gaps: gaps between key frames that it fills.
    """

    keyframes: int
    frames: int
    first_frame: int
    gaps: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """Frames that are upsampled at once: `frames` of them from `offset` on in a segment, from `first_frame` on."""

    segment: int
    offset: int
    frames: int
    first_frame: int


def describe(networks: Networks, backbones: list[str]) -> dict[str, Any]:
    """Tell what the API must know of a checkpoint: names, defaults and what it allows."""
    held, config, whole = networks.stage_names(), networks.first_config(), make_plan(networks, Request())
    rolls_out = "prediction" in held
    longest = _MAX_ROLLOUT_FRAMES if rolls_out else interpolated_length(_keyframe_limit(networks), whole.passes)
    default = [whole.start, *(name for name in ("prediction", "interpolation", "upsampler") if name in held)]
    runs = [*_STARTS[:1], *(name for name in ("keyframes", "prediction", "interpolation") if name in held)]
    large = UPSAMPLING if whole.upsamples else 1
    shortest = _MAX_ROLLOUT_FRAMES if rolls_out else _keyframe_limit(networks)
    without = {
        "interpolation": {"fps": config.fps, "num_frames": config.num_frames, "max_frames": shortest},
        "upsampler": {"sizes": [[config.width, config.height]]},
    }
    fields = ["boxes"] * networks.has(BOXES) + ["negative_prompt"] * (networks.condition_kind == "text")
    return {
        "name": networks.manifest.name,
        "sizes": [[large * config.width, large * config.height]],
        "fps": whole.fps,
        "num_frames": whole.num_frames,
        "max_frames": longest,
        "num_inference_steps": config.sampler.num_steps,
        "guidance_scale": config.guidance_scale,
        "steps": {name: networks.stage_config(name).sampler.num_steps for name in held},  # type: ignore[arg-type]
        "window": networks.stage_config("prediction").num_frames if rolls_out else None,
        "keyframes": networks.stage_config("keyframes").num_frames if "keyframes" in held else None,
        "rates": list(whole.rates),
        "stages": list(dict.fromkeys(default)),
        "all_stages": [*_STARTS[:1], *held],
        "without": {name: changes for name, changes in without.items() if name in held},
        "runs": [*runs, *["upsample"] * whole.upsamples, "prepare", "transcode", "decode", "publish"],
        "scenes": list(WORDS) if networks.condition_kind == "scene" else [],
        "fields": fields,
        "max_boxes": _max_boxes(networks) if networks.has(BOXES) else 0,
        "inputs": ["input_reference", "video"] if rolls_out else ["video"],
        "modes": ["create", "edit", "extend"] if rolls_out else ["create", "edit"],
        "backbones": backbones,
    }


def start_of(request: dict[str, Any]) -> str:
    """What the first segment begins with: picture, boxes, video, or the first of the stages that can begin.

    Raises:
        ValueError: nothing that was asked for makes a first frame.
    """
    if request["mode"] == "edit":
        start = next((name for name in _STARTS[1:] if name in request["stages"]), None)
        if start is None:
            raise ValueError(f"an edit needs one of the stages {', '.join(_STARTS[1:])}; add one that the model has")
        return start
    if request["mode"] == "extend":
        return "video"
    if "input_reference" in request["inputs"]:
        if request.get("boxes") is not None:
            raise ValueError("a picture and boxes both decide the first frame; give one of them")
        return "picture"
    if request.get("boxes") is not None:
        return "boxes"
    start = next((name for name in request["stages"] if name in _STARTS), None)
    if start is None:
        raise ValueError(f"stages {', '.join(request['stages'])} make no first frame; add one of {', '.join(_STARTS)}")
    return start


def num_passes(request: dict[str, Any], description: dict[str, Any]) -> int:
    """Passes of interpolation, each of which puts three frames into every gap."""
    return len(description["rates"]) if "interpolation" in request["stages"] else 0


def steps_of(request: dict[str, Any], description: dict[str, Any], stage: str) -> int:
    """Steps of a stage: its own, unless the request asks for other ones than the default."""
    asked: int = request["num_inference_steps"]
    own: int = description["steps"].get(stage, asked)
    return own if asked == description["num_inference_steps"] else asked


def steps_left_out(num_steps: int) -> int:
    """Steps that an edit leaves out."""
    return min(num_steps - 1, round(EDIT_KEPT * num_steps))


def segments(request: dict[str, Any], description: dict[str, Any]) -> list[Segment]:
    """Lay a clip out.

    Raises:
        ValueError: the stages that were asked for cannot make so many frames.
    """
    wanted, start, factor = request["num_frames"], start_of(request), 4 ** num_passes(request, description)
    goes_on = start == "video"
    total = -(-wanted // factor) if goes_on else -(-(wanted - 1) // factor) + 1
    window: int | None = description["window"] if "prediction" in request["stages"] else None
    if window is None and total > 1 and start != "keyframes":
        raise ValueError(f"a clip of {wanted} frames that starts from {start} needs the stage prediction; add it")
    first = {"video": (window or 0) - CONTEXT_FRAMES, "keyframes": description["keyframes"]}.get(start, window)
    sizes = [total if window is None else min(first, total)]
    while window is not None and sum(sizes) < total:
        sizes.append(min(window - CONTEXT_FRAMES, total - sum(sizes)))
    found: list[Segment] = []
    for index, size in enumerate(sizes):
        gaps = size if index or goes_on else size - 1
        place = sum(each.frames for each in found)
        frames = factor * gaps + (size - gaps)
        found.append(Segment(keyframes=size, frames=min(frames, wanted - place), first_frame=place, gaps=gaps))
    return found


def parts(request: dict[str, Any], description: dict[str, Any]) -> list[Part]:
    """Lay out what is upsampled at once: few frames, since they are sixteen times as large."""
    new = SEGMENT_FRAMES - SEGMENT_OVERLAP
    return [
        Part(segment=index, offset=offset, frames=min(new, own.frames - offset), first_frame=own.first_frame + offset)
        for index, own in enumerate(segments(request, description))
        for offset in range(0, own.frames, new)
    ]


def base_size(request: dict[str, Any]) -> tuple[int, int]:
    """Height and width before upsampling."""
    factor = UPSAMPLING if UPSAMPLER in request["stages"] else 1
    return request["height"] // factor, request["width"] // factor


def plan(request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
    """Tasks of a request; cost in millions of pixels denoised or decoded.

    Raises:
        ValueError: the request does not fit the checkpoint.
    """
    height, width = base_size(request)
    pixels, start = height * width / 1e6, start_of(request)
    if len(request.get("boxes") or ()) > description["max_boxes"]:
        raise ValueError(f"{len(request['boxes'])} boxes; the model takes up to {description['max_boxes']}")
    specs: list[TaskSpec] = []

    def add(stage: str, segment: int, needs: tuple[int, ...], num_steps: int, cost: float) -> int:
        specs.append(TaskSpec(stage=stage, segment=segment, needs=needs, num_steps=num_steps, cost=cost))
        return len(specs) - 1

    begun: tuple[int, ...] = ()
    source: tuple[int, ...] = ()
    if start in ("picture", "video"):
        begun = (add("prepare", 0, (), 1, pixels),)
    elif start in ("boxes", "image"):
        steps = steps_of(request, description, _first_stage(description))
        begun = (add("image", 0, (), steps, steps * pixels),)
    elif request["mode"] == "edit":
        source = (add("prepare", 0, (), 1, request["num_frames"] * pixels),)
    files = [add("transcode", 0, (), 1, pixels)] if start == "video" else []
    keys, dense = begun, begun if start == "video" else ()
    decoded: list[int] = []
    for index, segment in enumerate(segments(request, description)):
        before = keys
        if index or start not in ("picture", "boxes", "image") or segment.keyframes > 1:
            stage = "keyframes" if start == "keyframes" and not index else "prediction"
            steps = steps_of(request, description, stage)
            steps -= steps_left_out(steps) if source else 0
            cost = steps * segment.keyframes * pixels
            keys = (add(stage, index, (*keys, *source), steps, cost),)
        own = keys[0]
        if segment.gaps and num_passes(request, description):
            steps = _interpolation_steps(segment, request, description)
            ends = before if index or start == "video" else ()
            cost = steps_of(request, description, "interpolation") * 5 * segment.frames / 4 * pixels
            own = add("interpolation", index, (keys[0], *ends), steps, cost)
        # The frames before a segment come along, so that the decoder's windows overlap across the border.
        decoded.append(add("decode", index, (own, *dense), 1, segment.frames * pixels))
        dense = (own,)
    if UPSAMPLER not in request["stages"]:
        files += decoded
    else:
        steps = steps_of(request, description, "upsampler")
        last: tuple[int, ...] = ()
        for index, part in enumerate(parts(request, description)):
            cost = steps * part.frames * pixels * UPSAMPLING**2
            last = (add("upsample", index, (decoded[part.segment], *last), steps, cost),)
            files += last
    add("publish", 0, tuple(files), 1, 0.1 * request["num_frames"] * pixels)
    return tuple(specs)


def _interpolation_steps(segment: Segment, request: dict[str, Any], description: dict[str, Any]) -> int:
    batches = [-(-segment.gaps * 4**done // GAPS_AT_ONCE) for done in range(num_passes(request, description))]
    return sum(batches) * steps_of(request, description, "interpolation")


def _first_stage(description: dict[str, Any]) -> str:
    return "keyframes" if description["keyframes"] else "prediction"


def _keyframe_limit(networks: Networks) -> int:
    config = networks.first_config()
    return config.num_frames if config.temporal.mix == "per_frame" else _MAX_STRETCH * config.num_frames


def _max_boxes(networks: Networks) -> int:
    return int(read_json(networks.folder / BOXES / "condition" / "config.json")["max_boxes"])

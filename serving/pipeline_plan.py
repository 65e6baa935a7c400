"""What a checkpoint can do, and how a request becomes tasks: known from settings alone, before any weight is loaded.

A video is made in segments. The first comes from noise (key frames), or goes on from a given picture or video; each
further one goes on from the last two frames before it (prediction). A segment is decoded as soon as its latents are
there, while the next is being denoised, so memory and the wait for the first segment do not grow with the length.
"""

from typing import Any

from pipelines.networks import Networks
from pipelines.scenes import WORDS
from serving.records import TaskSpec

# Sampling further than this many times the trained length in one go gives poor videos.
_MAX_STRETCH = 4
_MAX_ROLLOUT_FRAMES = 100_000
CONTEXT_FRAMES = 2


def describe(networks: Networks, backbones: list[str]) -> dict[str, Any]:
    """Tell what the API must know of a checkpoint: names, defaults and what it allows."""
    names = networks.stage_names()
    config = networks.stage_config("keyframes")
    has_scenes = any(path.startswith("backbone/condition/") for path in networks.manifest.files)
    rolls_out = "prediction" in names
    return {
        "name": networks.manifest.name,
        "sizes": [[config.width, config.height]],
        "fps": config.fps,
        "num_frames": config.num_frames,
        "max_frames": _MAX_ROLLOUT_FRAMES if rolls_out else _MAX_STRETCH * config.num_frames,
        "window": networks.stage_config("prediction").num_frames if rolls_out else None,
        "num_inference_steps": config.sampler.num_steps,
        "guidance_scale": config.guidance_scale,
        "scenes": list(WORDS) if has_scenes else [],
        "inputs": ["input_reference", "video"] if rolls_out else [],
        "modes": ["create", "extend"] if rolls_out else ["create"],
        "backbones": backbones,
    }


def segment_frames(request: dict[str, Any], description: dict[str, Any]) -> list[int]:
    """New frames of each segment."""
    wanted, window = request["num_frames"], description["window"]
    if window is None:
        return [wanted]
    given = len(request["inputs"]) > 0
    first = window - _num_context(request) if given else description["num_frames"]
    frames = [min(first, wanted)]
    while sum(frames) < wanted:
        frames.append(min(window - CONTEXT_FRAMES, wanted - sum(frames)))
    return frames


def _num_context(request: dict[str, Any]) -> int:
    return CONTEXT_FRAMES if "video" in request["inputs"] else 1


def plan(request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
    """Tasks of a request; cost in millions of pixels denoised or decoded."""
    pixels, steps = request["width"] * request["height"] / 1e6, request["num_inference_steps"]
    specs: list[TaskSpec] = []

    def add(stage: str, segment: int, needs: tuple[int, ...], num_steps: int, cost: float) -> int:
        specs.append(TaskSpec(stage=stage, segment=segment, needs=needs, num_steps=num_steps, cost=cost))
        return len(specs) - 1

    files: list[int] = []
    latents: tuple[int, ...] = ()
    if request["inputs"]:
        latents = (add("prepare", 0, (), 1, pixels),)
    if request["mode"] == "extend":
        files.append(add("transcode", 0, (), 1, pixels))
    for segment, frames in enumerate(segment_frames(request, description)):
        stage = "prediction" if latents else "keyframes"
        own = add(stage, segment, latents, steps, steps * frames * pixels)
        # The frames before a segment come along, so that the decoder's windows overlap across the border.
        files.append(add("decode", segment, (own, *latents), 1, frames * pixels))
        latents = (own,)
    add("publish", 0, tuple(files), 1, 0.1 * request["num_frames"] * pixels)
    return tuple(specs)

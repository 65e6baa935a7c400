"""What all denoising tasks share: conditions, sampling, going on from a state, the job's own backbone at every step."""

from collections.abc import Generator, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipelines import stages
from pipelines.conditions import Wish, image_and_video_sides
from pipelines.config import StageName
from pipelines.diffusion.sampler_state import SamplerState, clip_noise
from pipelines.diffusion.sampling import sampling_timesteps
from pipelines.generation_plan import Request, sampling_of
from pipelines.networks import Stage
from pipelines.scenes import WORDS, Scene, parse_scene
from pipelines.stage_inputs import Sides
from pipelines.stage_state import DONE, StageState
from pipelines.tensors import Latents
from serving.model import Model
from serving.pipeline_plan import steps_left_out, steps_of
from serving.seeds import segment_seed
from serving.stage_set import Call, State


def denoise(
    model: Model,
    call: Call,
    steps: Iterator[StageState],
    *,
    done: Tensor | None = None,
    beside: State | None = None,
) -> Generator[State, None, Tensor]:
    """Go through the steps, each with the job's own backbone in place; returns the finished latents.

    Args:
        model: of the worker.
        call: the task.
        steps: of a stage.
        done: finished latents of the state it goes on from.
        beside: what else belongs into the saved state.
    """
    if call.state is not None and done is None:
        done = call.state.get(DONE)
    while True:
        # Another job may have used another backbone since the last step.
        model.variants.use(call.request["backbone"])
        with torch.inference_mode():
            after = next(steps, None)
        if after is None:
            assert done is not None
            return done.to(model.networks.device)
        done = after.done
        yield {**after.to_tensors(), **(beside or {})}


def resumed(model: Model, call: Call, *, without: tuple[str, ...] = ()) -> StageState | None:
    """The state that an earlier run of the task was in."""
    if call.state is None:
        return None
    here = {name: value.to(model.networks.device) for name, value in call.state.items() if name not in without}
    return StageState.from_tensors(here)


def edited(stage: Stage, how: stages.Sampling, source: Latents) -> StageState:
    """Where an edit starts: the source with so much noise that its layout stays and the rest is made anew.

    Source: Meng et al. 2022 (SDEdit, arXiv 2108.01073).
    """
    skipped = steps_left_out(how.sampler.num_steps)
    timestep = sampling_timesteps(how.sampler, stage.schedule.config)[skipped : skipped + 1].to(source.device)
    noise = clip_noise(tuple(source.shape), f"{how.seed}/edit", "start").to(source.device)
    noisy = stage.schedule.add_noise(source, timestep, noise)
    return StageState(None, SamplerState(noisy, skipped, {"denoised": source}))


def sampling(model: Model, stage: StageName, call: Call) -> stages.Sampling:
    """How a stage samples: its own settings, but for what the request changes."""
    request, description = call.request, model.description
    scale: float | None = request["guidance_scale"]
    config = model.networks.stage_config(stage)
    asked = Request(
        num_steps=steps_of(request, description, stage),
        guidance_scale=None if scale == description["guidance_scale"] else scale,
    )
    how = sampling_of(description["name"], config, stage, asked, segment_seed(request["seed"], _place(call)))
    if request["mode"] == "edit" and how.sampler.name == "unipc":
        # It looks back further than an edit's start reaches.
        how = replace(how, sampler=replace(how.sampler, name="dpm_solver"))
    return how


def _place(call: Call) -> int:
    # The upsampler's noise is drawn frame by frame for the whole clip: its parts share one seed.
    return 0 if call.stage == "upsample" else call.segment


def wish(model: Model, request: dict[str, Any]) -> Wish:
    """What the clip shall show."""
    kind = model.networks.condition_kind
    boxes = None if request["boxes"] is None else tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in request["boxes"])
    return Wish(
        prompt=request["prompt"] if kind == "text" else "",
        negative_prompt=request["negative_prompt"] if kind == "text" else "",
        scene=parse_scene(scene_words(request)) if kind == "scene" else Scene(),
        boxes=boxes,
    )


def conditions(model: Model, request: dict[str, Any]) -> Sides:
    """Conditions of the clip, and what guidance pushes away from."""
    with torch.inference_mode():
        asked = wish(model, request)
        shown, nothing = image_and_video_sides(model.networks, asked)
        encoder = model.own_text_encoder(request["backbone"])
        if encoder is not None and shown.text is not None:
            shown = replace(shown, text=encoder([asked.prompt]))
            nothing = replace(nothing, text=encoder([asked.negative_prompt]))
    return shown, nothing


def scene_words(request: dict[str, Any]) -> str:
    """The words that say what a scene shows: those asked for, else those that the prompt happens to use."""
    if request["scene"]:
        return str(request["scene"])
    said = [word.strip(".,;:!?") for word in request["prompt"].lower().split()]
    found = ",".join(dict.fromkeys(word for word in said if word in WORDS))
    try:
        parse_scene(found)
    except ValueError:
        return ""
    return found

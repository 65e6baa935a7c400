"""The stages of `pipelines` as workers run them: what each needs of a checkpoint, and its steps."""

import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipelines import stages
from pipelines.conditions import box_sides, interpolation_sides, upsampler_sides
from pipelines.generation_plan import GAPS_AT_ONCE, SEGMENT_OVERLAP
from pipelines.models.latent_space import spatial_factor
from pipelines.networks import Networks
from pipelines.pixels import to_float, to_uint8
from serving import given, pipeline_plan
from serving.artifacts import pack
from serving.denoising import conditions, denoise, edited, resumed, sampling, wish
from serving.media import encode, join_segments, provenance, stills
from serving.model import Model
from serving.previews import preview
from serving.records import TaskSpec
from serving.stage_set import Call, Output, State

_LATENTS, _FRAMES, _VIDEO = "latents", "frames", "video"
# diffusers loads weights by patching torch's modules for the whole process: two threads at it spoil each other's
# networks. So one loads at a time, and everything is loaded here rather than in a job.
_LOADING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class PipelineStages:
    """All stages of a checkpoint.

    Attributes:
        device: where the networks run.
        backbones: further image backbones under the checkpoint's temporal layers: name and diffusers folder.
    """

    device: str = "cpu"
    backbones: dict[str, str] = field(default_factory=dict)

    @property
    def pools(self) -> dict[str, tuple[str, ...]]:
        """Three pools denoise, each with networks of its own; the fourth makes files."""
        return {
            "denoise": ("image", "keyframes", "prediction"),
            "interpolate": ("interpolation",),
            "upsample": ("upsample",),
            "decode": ("prepare", "transcode", "decode", "publish"),
        }

    def describe(self, checkpoint: str) -> tuple[str, dict[str, Any]]:
        """Read the manifest and the stages' settings; loads no weights."""
        networks = Networks(checkpoint)
        return networks.manifest.digest(), pipeline_plan.describe(networks, sorted(self.backbones))

    def load(self, checkpoint: str, pool: str) -> Model:
        """Load the networks of a pool, so that a damaged checkpoint fails now rather than in a job."""
        with _LOADING:
            model = Model(Networks(checkpoint, device=self.device), self.backbones)
            model.load(self.pools[pool])
        return model

    def plan(self, request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
        """Tasks of a request."""
        return pipeline_plan.plan(request, description)

    def run(self, model: Model, call: Call) -> Generator[State, None, Output]:
        """Run one task."""
        return _STAGES[call.stage](model, call)

    def preview(self, model: Model, state: State) -> bytes | None:
        """Show a frame of what the latents are going to be."""
        return preview(state, model.preview_map)


def _image(model: Model, call: Call) -> Generator[State, None, Output]:
    how = sampling(model, "keyframes" if "keyframes" in model.networks.stage_names() else "prediction", call)
    shape = model.latent_shape(1, call.request)
    if call.request["boxes"] is None:
        stage, sides = model.image_stage, conditions(model, call.request)
    else:
        stage, sides = model.box_stage, box_sides(model.networks, wish(model, call.request), shape[-2:])
    done = yield from denoise(model, call, stages.keyframes(stage, *sides, how, shape, resumed(model, call)))
    return _latents(done)


def _keyframes(model: Model, call: Call) -> Generator[State, None, Output]:
    config = model.networks.stage_config("keyframes")
    frames = pipeline_plan.segments(call.request, model.description)[call.segment].keyframes
    # What has a weight for each frame, or goes on from its frames, is sampled at the length it was trained for.
    is_fixed = config.temporal.mix == "per_frame" or "prediction" in call.request["stages"]
    length = config.num_frames if is_fixed else frames
    stage = model.stage("keyframes", is_long=length > config.num_frames)
    how = sampling(model, "keyframes", call)
    state = resumed(model, call)
    if state is None and call.request["mode"] == "edit":
        state = edited(stage, how, _source(model, call, 0, length))
    sides = conditions(model, call.request)
    shape = model.latent_shape(length, call.request)
    done = yield from denoise(model, call, stages.keyframes(stage, *sides, how, shape, state))
    return _latents(done[:, :frames])


def _prediction(model: Model, call: Call) -> Generator[State, None, Output]:
    stage = model.stage("prediction")
    is_edit, request = call.request["mode"] == "edit", call.request
    own = pipeline_plan.segments(request, model.description)[call.segment]
    known = call.inputs[:-1] if is_edit else call.inputs
    before = _read(known[0], model)[:, -pipeline_plan.CONTEXT_FRAMES :] if known else model.no_frames(request)
    how, frames = sampling(model, "prediction", call), stage.config.num_frames
    state = resumed(model, call)
    if state is None and is_edit:
        start = sum(each.keyframes for each in pipeline_plan.segments(request, model.description)[: call.segment])
        state = edited(stage, how, _source(model, call, start - before.shape[1], frames))
    sides = conditions(model, request)
    done = yield from denoise(model, call, stages.predict(stage, before, *sides, how, frames, state))
    # The first frame of a clip that begins with a picture belongs to it; those of an earlier segment do not.
    first = 0 if call.segment == 0 and request["mode"] == "create" else before.shape[1]
    return _latents(done[:, first:][:, : own.keyframes])


def _interpolation(model: Model, call: Call) -> Generator[State, None, Output]:
    stage, own = model.stage("interpolation"), pipeline_plan.segments(call.request, model.description)[call.segment]
    keys = _read(call.inputs[0], model)
    before = _read(call.inputs[1], model)[:, -1:] if len(call.inputs) > 1 else keys[:, :0]
    dense, begun, state = torch.cat([before, keys], dim=1), 0, None
    if call.state is not None:
        begun, dense = int(call.state["pass"]), call.state["dense"].to(model.networks.device)
        state = resumed(model, call, without=("pass", "dense"))
    how = sampling(model, "interpolation", call)
    for number, fps in list(enumerate(model.description["rates"]))[begun:]:
        sides = interpolation_sides(stage, conditions(model, call.request), fps)
        steps = stages.interpolate(stage, dense, *sides, how, gaps_at_once=GAPS_AT_ONCE, state=state)
        beside = {"pass": torch.tensor(number), "dense": dense}
        done = None if state is None else state.done
        dense, state = (yield from denoise(model, call, steps, done=done, beside=beside)), None
    return _latents(dense[:, before.shape[1] :][:, : own.frames])


def _decode(model: Model, call: Call) -> Generator[State, None, Output]:
    latents = _read(call.inputs[0], model)
    before = latents[:, :0]
    if len(call.inputs) > 1:
        before = _read(call.inputs[1], model)[:, -pipeline_plan.CONTEXT_FRAMES :]
    windows = stages.decode(model.networks.decoder, torch.cat([before, latents], dim=1))
    images = []
    while True:
        with torch.inference_mode():
            frames = next(windows, None)
        if frames is None:
            break
        images.append(to_uint8(frames[0]))
        yield {}
    own = pipeline_plan.segments(call.request, model.description)[call.segment]
    made = torch.cat(images)[before.shape[1] :][: own.frames]
    if "upsampler" in call.request["stages"]:
        return _tensors({_FRAMES: made})
    data = encode([made], call.request["fps"])
    return Output(data=data, suffix=".mp4", results={f"segment-{call.segment}": (data, ".mp4")})


def _upsample(model: Model, call: Call) -> Generator[State, None, Output]:
    stage, vae = model.stage("upsampler"), model.networks.upsampler_autoencoder
    part = pipeline_plan.parts(call.request, model.description)[call.segment]
    last = safetensors.torch.load(call.inputs[1]) if len(call.inputs) > 1 else {}
    own = safetensors.torch.load(call.inputs[0])[_FRAMES][part.offset :][: part.frames]
    low = torch.cat([last[_FRAMES], own]) if last else own
    known = last[_LATENTS].to(model.networks.device) if last else None
    shared = 0 if known is None else known.shape[1]
    steps = stages.upsample(
        stage,
        to_float(low)[None].to(model.networks.device),
        *upsampler_sides(model.networks, wish(model, call.request)),
        sampling(model, "upsampler", call),
        factor=1 if vae is None else spatial_factor(vae),
        known=known,
        first_frame=part.first_frame - shared,
        state=resumed(model, call),
    )
    done = yield from denoise(model, call, steps)
    new = done[:, shared:]
    with torch.inference_mode():
        frames = [new.clamp(-1, 1)] if vae is None else list(stages.decode(vae, new, window=1))
    video = encode([to_uint8(each[0]) for each in frames], call.request["fps"])
    tail = -SEGMENT_OVERLAP
    carried = {_LATENTS: done[:, tail:].cpu(), _FRAMES: low[tail:], _VIDEO: _to_tensor(video)}
    output = _tensors(carried)
    return Output(data=output.data, suffix=output.suffix, results={f"segment-{call.segment}": (video, ".mp4")})


def _prepare(model: Model, call: Call) -> Generator[State, None, Output]:
    yield {}
    size, fps = pipeline_plan.base_size(call.request), model.networks.first_config().fps
    if "video" not in call.files:
        images = given.picture(call.files["input_reference"], size)
    elif call.request["mode"] == "extend":
        images = given.last_frames(call.files["video"], size, fps, pipeline_plan.CONTEXT_FRAMES)
    else:
        images = given.first_frames(call.files["video"], size, fps)
    with torch.inference_mode():
        return _latents(given.encode(model.networks.autoencoder, images))


def _transcode(_: Model, call: Call) -> Generator[State, None, Output]:
    yield {}
    size = call.request["height"], call.request["width"]
    return Output(
        data=encode(given.all_frames(call.files["video"], size, call.request["fps"]), call.request["fps"]),
        suffix=".mp4",
    )


def _publish(model: Model, call: Call) -> Generator[State, None, Output]:
    yield {}
    manifest = model.networks.manifest
    tags = provenance(request=call.request, release=manifest.digest(), name=manifest.name)
    video = join_segments([_video(data) for data in call.inputs], tags)
    return Output(data=video, suffix=".mp4", results={"video": (video, ".mp4"), **stills(video)})


_STAGES = {
    "image": _image,
    "keyframes": _keyframes,
    "prediction": _prediction,
    "interpolation": _interpolation,
    "upsample": _upsample,
    "decode": _decode,
    "prepare": _prepare,
    "transcode": _transcode,
    "publish": _publish,
}


def _source(model: Model, call: Call, start: int, count: int) -> Tensor:
    """Key frames of the video that is edited, from `start` on; behind its end the last one goes on."""
    latents = _read(call.inputs[-1], model)
    places = torch.arange(start, start + count).clamp(max=latents.shape[1] - 1)
    return latents[:, places.to(latents.device)]


def _read(data: bytes, model: Model) -> Tensor:
    return safetensors.torch.load(data)[_LATENTS].to(model.networks.device)


def _latents(latents: Tensor) -> Output:
    return _tensors({_LATENTS: latents})


def _tensors(tensors: dict[str, Tensor]) -> Output:
    return Output(data=pack(tensors), suffix=".safetensors")


def _to_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _video(data: bytes) -> bytes:
    """The MP4 in a stage's output: the decoder's is nothing else, the upsampler's has frames to go on from as well."""
    return data if data[4:8] == b"ftyp" else safetensors.torch.load(data)[_VIDEO].numpy().tobytes()

"""The stages of `pipelines` as workers run them: what each needs of a checkpoint, and its steps."""

import tempfile
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pipelines import stages
from pipelines.models.conditioning import Conditions
from pipelines.networks import Networks, Stage
from pipelines.pixels import to_uint8
from pipelines.scenes import WORDS, parse_scene
from pipelines.video_io import write_mp4
from serving import given, pipeline_plan
from serving.backbones import Backbones
from serving.media import join_segments, jpeg, provenance, stills
from serving.previews import fit_preview, preview_picture
from serving.records import TaskSpec
from serving.seeds import segment_seed
from serving.stage_set import Call, Output, State

_LATENTS = "latents"
# diffusers loads weights by patching torch's modules for the whole process: two threads at it spoil each other's
# networks. So one loads at a time, and everything is loaded here rather than in a job.
_LOADING = threading.Lock()
# 43 dB on real driving at 320x512, at a quarter of the time of the preset "medium" (bench_serving_model.py, S13).
QUALITY, PRESET = 22, "superfast"


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
        """One pool denoises, the other makes files."""
        return {"denoise": ("keyframes", "prediction"), "decode": ("prepare", "transcode", "decode", "publish")}

    def describe(self, checkpoint: str) -> tuple[str, dict[str, Any]]:
        """Read the manifest and the stages' settings; loads no weights."""
        networks = Networks(checkpoint)
        return networks.manifest.digest(), pipeline_plan.describe(networks, sorted(self.backbones))

    def load(self, checkpoint: str, pool: str) -> "Model":
        """Load the networks of a pool, so that a damaged checkpoint fails now rather than in a job."""
        with _LOADING:
            model = Model(Networks(checkpoint, device=self.device), self.backbones)
            if pool == "denoise":
                model.warm_up()
            else:
                _ = model.decoder
        return model

    def plan(self, request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
        """Tasks of a request."""
        return pipeline_plan.plan(request, description)

    def run(self, model: "Model", call: Call) -> Generator[State, None, Output]:
        """Run one task."""
        return _STAGES[call.stage](model, call)

    def preview(self, model: "Model", state: State) -> bytes | None:
        """Show the first frame of the latents as they are."""
        latents = state.get(_LATENTS, state.get(stages.DONE))
        return None if latents is None else jpeg(preview_picture(latents[0, -1], model.preview_map))


class Model:
    """Networks of one checkpoint, each loaded when it is first needed, and the backbones that can be put under them."""

    def __init__(self, networks: Networks, backbones: dict[str, str]) -> None:
        self.networks, self.backbones = networks, backbones
        self.description = pipeline_plan.describe(networks, sorted(backbones))
        self._stages: dict[str, Stage] = {}

    def stage(self, name: Any) -> Stage:
        """Get a video model."""
        if name not in self._stages:
            self._stages[name] = self.networks.stage(name)
        return self._stages[name]

    def warm_up(self) -> None:
        """Load what denoising needs."""
        for name in self.networks.stage_names():
            if name in ("keyframes", "prediction"):
                self.stage(name)
        _ = self.preview_map, self.variants
        if self.description["scenes"]:
            _ = self.networks.scene_encoder

    @cached_property
    def decoder(self) -> Any:
        """The decoder of latents."""
        return self.networks.decoder

    @cached_property
    def variants(self) -> Backbones:
        """The further backbones."""
        return Backbones(self.networks.unet, self.backbones)

    @cached_property
    def preview_map(self) -> Tensor:
        """Linear map from latents to colours."""
        return fit_preview(self.networks.autoencoder)


def _keyframes(model: Model, call: Call) -> Generator[State, None, Output]:
    stage = model.stage("keyframes")
    frames = pipeline_plan.segment_frames(call.request, model.description)[0]
    # A checkpoint that can go on from its frames samples the first segment at the length it was trained for.
    length = frames if model.description["window"] is None else stage.config.num_frames
    shape = model.networks.latent_shape(stage.config, length)
    sides = _conditions(model, call)
    steps = stages.keyframes(stage, *sides, _sampling(stage, call), shape, _state(call))
    done = yield from _denoise(model, call, steps)
    return _latents(done[:, :frames])


def _prediction(model: Model, call: Call) -> Generator[State, None, Output]:
    stage = model.stage("prediction")
    before = _read(call.inputs[0], model)[:, -pipeline_plan.CONTEXT_FRAMES :]
    sides = _conditions(model, call)
    frames = stage.config.num_frames
    steps = stages.predict(stage, before, *sides, _sampling(stage, call), frames, _state(call))
    done = yield from _denoise(model, call, steps)
    new = pipeline_plan.segment_frames(call.request, model.description)[call.segment]
    return _latents(done[:, before.shape[1] :][:, :new])


def _denoise(model: Model, call: Call, steps: Iterator[stages.StageState]) -> Generator[State, None, Tensor]:
    """Go through the steps, each with the job's own backbone in place; returns the finished latents."""
    done = None if call.state is None else call.state.get(stages.DONE)
    while True:
        # Another job may have used another backbone since the last step.
        model.variants.use(call.request["backbone"])
        with torch.inference_mode():
            after = next(steps, None)
        if after is None:
            assert done is not None
            return done
        done = after.done
        yield after.to_tensors()


def _decode(model: Model, call: Call) -> Generator[State, None, Output]:
    latents = _read(call.inputs[0], model)
    before = (
        _read(call.inputs[1], model)[:, -pipeline_plan.CONTEXT_FRAMES :] if len(call.inputs) > 1 else latents[:, :0]
    )
    windows = stages.decode(model.decoder, torch.cat([before, latents], dim=1))
    images = []
    while True:
        with torch.inference_mode():
            frames = next(windows, None)
        if frames is None:
            break
        images.append(to_uint8(frames[0]))
        yield {}
    data = _mp4(torch.cat(images)[before.shape[1] :], call)
    return Output(data=data, suffix=".mp4", results={f"segment-{call.segment}": (data, ".mp4")})


def _prepare(model: Model, call: Call) -> Generator[State, None, Output]:
    yield {}
    config = model.networks.stage_config("prediction")
    images = given.last_frames(call.files, config, pipeline_plan.CONTEXT_FRAMES)
    with torch.inference_mode():
        return _latents(given.encode(model.networks.autoencoder, images))


def _transcode(model: Model, call: Call) -> Generator[State, None, Output]:
    yield {}
    images = given.all_frames(call.files["video"], model.networks.stage_config("prediction"), call.request["fps"])
    return Output(data=_mp4(images, call), suffix=".mp4")


def _publish(model: Model, call: Call) -> Generator[State, None, Output]:
    yield {}
    manifest = model.networks.manifest
    tags = provenance(request=call.request, release=manifest.digest(), name=manifest.name)
    video = join_segments(list(call.inputs), tags)
    return Output(data=video, suffix=".mp4", results={"video": (video, ".mp4"), **stills(video)})


_STAGES = {
    "keyframes": _keyframes,
    "prediction": _prediction,
    "decode": _decode,
    "prepare": _prepare,
    "transcode": _transcode,
    "publish": _publish,
}


def _sampling(stage: Stage, call: Call) -> stages.Sampling:
    request = call.request
    return stages.Sampling(
        sampler=replace(stage.config.sampler, num_steps=request["num_inference_steps"]),
        guidance_scale=request["guidance_scale"],
        seed=segment_seed(request["seed"], call.segment),
    )


def _conditions(model: Model, call: Call) -> tuple[Conditions, Conditions]:
    with torch.inference_mode():
        return model.networks.scene_conditions([parse_scene(scene_words(call.request))])


def _state(call: Call) -> stages.StageState | None:
    return None if call.state is None else stages.StageState.from_tensors(call.state)


def _read(data: bytes, model: Model) -> Tensor:
    return safetensors.torch.load(data)[_LATENTS].to(model.networks.device)


def _latents(latents: Tensor) -> Output:
    return Output(data=safetensors.torch.save({_LATENTS: latents.cpu().contiguous()}), suffix=".safetensors")


def _mp4(images: Tensor, call: Call) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "segment.mp4"
        write_mp4(path, images, call.request["fps"], quality=QUALITY, preset=PRESET)
        return path.read_bytes()


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

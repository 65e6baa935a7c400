"""A stage set without a network: same shape of work as the real one, in milliseconds, with exactly known results."""

import hashlib
import io
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import safetensors.torch
import torch

from pipelines.randomness import generator
from serving.media import join_segments, jpeg, provenance, stills
from serving.records import TaskSpec
from serving.stage_set import Call, Output

FRAMES_PER_SEGMENT = 8


@dataclass(frozen=True, kw_only=True)
class ToyStages:
    """Noise that settles step by step, drawn as clips. A checkpoint is a JSON file: name, and how it misbehaves.

    `work` is the size of a matrix product done at each step; `trace` is a file that gets a line for each step.
    """

    work: int = 0
    trace: str | None = None

    @property
    def pools(self) -> dict[str, tuple[str, ...]]:
        return {"denoise": ("keyframes", "prediction"), "decode": ("decode", "publish")}

    def describe(self, checkpoint: str) -> tuple[str, dict[str, Any]]:
        path = Path(checkpoint)
        if not path.is_file():
            raise ValueError(f"no checkpoint at {checkpoint!r}; give the path of one")
        content = path.read_bytes()
        return hashlib.sha256(content).hexdigest(), {
            "name": json.loads(content)["name"],
            "sizes": [[32, 16], [64, 32]],
            "fps": 8.0,
            "num_frames": 8,
            "num_inference_steps": 5,
            "guidance_scale": 1.0,
            "scenes": ["day", "night", "crowded"],
            "stages": ["keyframes", "prediction"],
            "inputs": ["input_reference", "video"],
            "backbones": ["plain"],
            "modes": ["create", "edit", "extend"],
            "fields": ["boxes", "negative_prompt"],
        }

    def load(self, checkpoint: str, pool: str) -> dict[str, Any]:
        model = json.loads(Path(checkpoint).read_text())
        if model.get("broken"):
            raise ValueError("the weights are damaged")
        return {**model, "digest": self.describe(checkpoint)[0]}

    def plan(self, request: dict[str, Any], description: dict[str, Any]) -> tuple[TaskSpec, ...]:
        steps = request["num_inference_steps"]
        segments = -(-request["num_frames"] // FRAMES_PER_SEGMENT)
        specs: list[TaskSpec] = []
        for i in range(segments):
            stage = "prediction" if i else "keyframes"
            needs = (2 * (i - 1),) if i else ()
            specs.append(TaskSpec(stage=stage, segment=i, needs=needs, num_steps=steps, cost=float(steps)))
            specs.append(TaskSpec(stage="decode", segment=i, needs=(2 * i,), num_steps=1, cost=1.0))
        decoded = tuple(2 * i + 1 for i in range(segments))
        return (*specs, TaskSpec(stage="publish", segment=0, needs=decoded, num_steps=1, cost=0.1))

    def run(self, model: dict[str, Any], call: Call) -> Any:
        if call.stage == "decode":
            return self._decode(call)
        if call.stage == "publish":
            return self._publish(model, call)
        return self._denoise(model, call)

    def preview(self, model: dict[str, Any], state: dict[str, torch.Tensor]) -> bytes:
        return jpeg(_pixels(state["latents"])[0])

    def _denoise(self, model: dict[str, Any], call: Call) -> Any:
        request = call.request
        if request["prompt"] == "raise":
            raise ValueError("this prompt cannot be drawn")
        key = (request["seed"], request["prompt"], request["scene"], model["name"], call.segment)
        if call.state is None:
            shape = (FRAMES_PER_SEGMENT, 3, request["height"], request["width"])
            latents, step = torch.randn(shape, generator=generator(*key)), 0
            if call.inputs:
                latents[0] = safetensors.torch.load(call.inputs[0])["latents"][-1]
        else:
            latents, step = call.state["latents"], int(call.state["step"])
        while step < request["num_inference_steps"]:
            self._step(call, step)
            noise = torch.randn(latents.shape, generator=generator(*key, step))
            latents, step = torch.tanh(0.9 * latents + 0.1 * noise), step + 1
            yield {"latents": latents, "step": torch.tensor(step)}
        yield_data = safetensors.torch.save({"latents": latents})
        return Output(data=yield_data, suffix=".safetensors")

    def _step(self, call: Call, step: int) -> None:
        if self.work:
            side = torch.ones(self.work, self.work)
            torch.mm(side, side)
        if self.trace:
            line = f"{time.time():.6f} {os.getpid()} {call.job} {call.segment} {step}\n"
            with open(self.trace, "a") as file:
                file.write(line)

    def _decode(self, call: Call) -> Any:
        yield {}
        latents = safetensors.torch.load(call.inputs[0])["latents"]
        data = encode(_pixels(latents), call.request["fps"])
        return Output(data=data, suffix=".mp4", results={f"segment-{call.segment}": (data, ".mp4")})

    def _publish(self, model: dict[str, Any], call: Call) -> Any:
        yield {}
        tags = provenance(request=call.request, release=model["digest"], name=model["name"])
        video = join_segments(list(call.inputs), tags)
        return Output(data=video, suffix=".mp4", results={"video": (video, ".mp4"), **stills(video)})


def _pixels(latents: torch.Tensor) -> Any:
    return ((latents.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def encode(frames: Any, fps: float) -> bytes:
    data = io.BytesIO()
    with av.open(data, "w", format="mp4") as container:
        # x264's assembler gives varying bytes for frames as small as these (32 pixels wide); 128 wide never did.
        options = {"threads": "1", "preset": "veryfast", "x264-params": "asm=0"}
        stream = container.add_stream("libx264", rate=round(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return data.getvalue()


def make_checkpoint(folder: Path, name: str = "toy", **changes: Any) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"name": name, **changes}))
    return str(path)

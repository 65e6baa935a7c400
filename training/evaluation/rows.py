"""Jobs and results as rows that cross between processes: JSON and safetensors, no pickles."""

import json

import safetensors.torch
import torch

from pipelines.configs import from_json, to_json
from training.evaluation.measuring import Job, Result

FRAMES = "__frames__"


def job_row(job: Job) -> str:
    """A job as JSON."""
    return json.dumps(to_json(job))


def job_of(row: str) -> Job:
    """Read what `job_row` wrote."""
    return from_json(Job, json.loads(row), where="job")


def result_row(result: Result) -> bytes:
    """A result as bytes: one line of JSON, then safetensors."""
    tensors = {name: value.contiguous() for name, value in result.numbers.items()}
    if result.frames is not None:
        tensors[FRAMES] = result.frames.contiguous()
    head = json.dumps({"of": result.of, "index": result.index}).encode()
    return head + b"\n" + safetensors.torch.save(tensors)


def result_of(row: bytes) -> Result:
    """Read what `result_row` wrote."""
    head, _, body = bytes(row).partition(b"\n")
    tensors: dict[str, torch.Tensor] = safetensors.torch.load(body)
    frames = tensors.pop(FRAMES, None)
    return Result(**json.loads(head), numbers=tensors, frames=frames)

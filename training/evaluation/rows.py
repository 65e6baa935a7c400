"""Jobs and results as rows that cross between processes: JSON and safetensors, no pickles."""

import json
from collections.abc import Sequence

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
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in result.numbers.items()}
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


def pack(results: Sequence[Result]) -> bytes:
    """The results of a job as bytes: a line with their lengths, then one after the other."""
    rows = [result_row(result) for result in results]
    return b" ".join(str(len(row)).encode() for row in rows) + b"\n" + b"".join(rows)


def unpack(data: bytes) -> list[Result]:
    """Read what `pack` wrote."""
    head, _, body = bytes(data).partition(b"\n")
    results, start = [], 0
    for size in map(int, head.split()):
        results.append(result_of(body[start : start + size]))
        start += size
    return results

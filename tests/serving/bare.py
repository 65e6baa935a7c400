"""A request through all its stages in one process and in memory: what a script would do, without any service."""

from typing import Any

import safetensors.torch

from serving.artifacts import pack
from serving.config import Limits
from serving.pipeline_stages import PipelineStages
from serving.requests import VideoRequest, resolve
from serving.stage_set import Call


def resolved(description: dict[str, Any], *, mode: str = "create", inputs: tuple[str, ...] = (), **fields: Any) -> Any:
    """A request with a value for every field."""
    request = resolve(VideoRequest(**{"prompt": "a busy road at night", "seed": 7, **fields}), description, Limits(), 0)
    return {**request, "mode": mode, "inputs": dict.fromkeys(inputs, "")}


def make(
    stages: PipelineStages,
    models: dict[str, Any],
    request: dict[str, Any],
    files: dict[str, bytes] | None = None,
    *,
    broken_off: bool = False,
) -> bytes:
    """The clip of a request.

    Args:
        stages: of the service.
        models: loaded, by pool.
        request: from `resolved`.
        files: what the caller uploaded.
        broken_off: take up every task anew after each of its steps, from the state it has yielded last.
    """
    outputs: list[bytes] = []
    description = models["denoise"].description
    for spec in stages.plan(request, description):
        model = models[next(pool for pool, names in stages.pools.items() if spec.stage in names)]
        inputs = tuple(outputs[position] for position in spec.needs)
        state, steps = None, 0
        run = None
        while True:
            if run is None or (broken_off and state):
                call = Call(
                    job="bare",
                    request=request,
                    stage=spec.stage,
                    segment=spec.segment,
                    inputs=inputs,
                    files={} if inputs else files or {},
                    state=state,
                )
                run = stages.run(model, call)
            try:
                yielded = next(run)
            except StopIteration as end:
                outputs.append(end.value.data)
                break
            steps += 1
            state = safetensors.torch.load(pack(yielded)) if broken_off and yielded else None
        if spec.stage not in ("prepare", "transcode", "decode", "publish"):
            assert steps == spec.num_steps, spec
    return outputs[-1]

"""Seeded kills of any worker at any moment, with other numbers of workers each time: no trace in the result."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.faults import MOMENTS, Attempt, Kill, run_attempts
from training.checkpoints import CheckpointStore
from training.config import TrainConfig
from training.reduction import Workers
from training.worker import Job, run_worker


def result(job: Job) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    found = CheckpointStore(job.run_uri, job.config.checkpoints).newest()
    assert found is not None
    return dict(found.progress), {f"{f}/{n}": v for f, values in found.load().items() for n, v in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize("moment", list(MOMENTS))
def test_run_killed_at_any_moment_equals_an_undisturbed_one(
    moment: str, system: Any, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    config = make_config("image", steps=8, virtual_shards=4, track=False)
    alone, disturbed = system.job(config, "alone"), system.job(config, "disturbed")
    run_worker(alone, Workers(), torch.device("cpu"))
    rng = random.Random(moment)
    writes = moment in ("upload", "commit")
    attempts = [
        Attempt(count, Kill(0 if writes else rng.randrange(count), moment, rng.randint(1, 4), rng.random() < 0.5))
        for count in (2, 4, 1)
    ]
    records = run_attempts(disturbed, [*attempts, Attempt(2), Attempt(1)], tmp_path)
    assert records[-1].is_done
    assert any(record.killed_at is not None for record in records)
    progress, tensors = result(alone)
    assert result(disturbed)[0] == progress
    for name, value in result(disturbed)[1].items():
        assert torch.equal(value, tensors[name]), name

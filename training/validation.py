"""Look at a run from outside: the loss on a fixed set with fixed noise, and sample clips from the averaged weights."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from training.config import TrainConfig
from training.data import Order
from training.loop import Phase
from training.reduction import Workers
from training.task import Task

VALIDATION_EPOCH = -1
"""Epoch by which validation's random numbers are keyed: no training epoch has it."""


@torch.no_grad()
def validation_loss(task: Task, phase: Phase, config: TrainConfig, workers: Workers) -> float:
    """Mean loss over the same held-out samples, noise and timesteps at every call; all workers share the work."""
    order = Order(task.held_out.buckets, batch_size=config.batch_size, seed=config.seed)
    size = config.batch_size // config.virtual_shards
    losses = torch.zeros(config.validation.batches, config.batch_size, dtype=torch.float64)
    for batch in range(config.validation.batches):
        samples = [sample._replace(epoch=VALIDATION_EPOCH) for sample in order.batch(batch)]
        for shard in workers.leaves(config.virtual_shards):
            place = slice(shard * size, (shard + 1) * size)
            items = task.held_out.read([sample.ref for sample in samples[place]])
            losses[batch, place] = phase.engine.network(task.collate(samples[place], items)).double().cpu()
    return float(workers.share(losses).mean())


@contextmanager
def previewing(task: Task, phases: Sequence[Phase]) -> Iterator[None]:
    """Put the averaged weights in the networks while the block runs; they come back bit for bit."""
    specs = {spec.name: spec for spec in task.phases}
    kept = {}
    with torch.no_grad():
        for phase in phases:
            assert phase.average is not None
            for name, parameter in specs[phase.name].trained.items():
                kept[phase.name, name] = parameter.detach().clone()
                parameter.copy_(phase.average.tensors[name])
        try:
            yield
        finally:
            for (phase_name, name), value in kept.items():
                specs[phase_name].trained[name].copy_(value)

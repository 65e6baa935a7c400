"""The step loop: any engine, any network, any data; it knows neither Ray nor DeepSpeed.

A step cuts its global batch into V virtual shards, takes each one's gradient alone and sums them in one fixed tree, so
that the numbers do not depend on the number of workers. A sample that is not finite or far out is found by all workers
in the same step, put aside for good, and the step is done again without it before any weight changes.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from training.config import OptimizerConfig, WatchConfig
from training.data import Sample
from training.ema import MovingAverage
from training.reduction import Node, Workers, combine, local_sums
from training.schedule import learning_rate
from training.torch_engine import Engine
from training.watch import bad_samples


class Batch(Protocol):
    """The samples of one virtual shard, with all their random numbers drawn."""

    def magnitude(self) -> Float[Tensor, " b"]:
        """Largest absolute input of each sample."""

    def masked(self, keep: Bool[Tensor, " b"]) -> Self:
        """The same batch with zeros in place of the samples that are not kept."""


class GaveUpError(RuntimeError):
    """The run cannot go on, and trying again would not help; its last checkpoint is good."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One network and optimizer trained at every step; a GAN has two, done one after the other.

    Attributes:
        name: used in metrics and checkpoints.
        engine: network (batch -> loss per sample), trained parameters, optimizer.
        optimizer: learning rate and clipping.
        average: moving average of the trained weights, on the worker that keeps it.
        first_step: the phase does nothing before.
    """

    name: str
    engine: Engine
    optimizer: OptimizerConfig
    average: MovingAverage | None = None
    first_step: int = 0


@dataclass(kw_only=True)
class Progress:
    """Where a run is: with the engines' state, all that is needed to go on.

    Attributes:
        step: next step.
        applied: samples that have changed the weights.
        ledger: digest chained over all of them in order: equal ledgers mean equal histories.
        mean_loss: running mean of the first phase's loss.
        quarantine: reason by id of each sample put aside.
        bad_in_a_row: how many of the last samples were put aside without a good one between them.
    """

    step: int = 0
    applied: int = 0
    ledger: str = ""
    mean_loss: float = 0.0
    quarantine: dict[str, str] = field(default_factory=dict)
    bad_in_a_row: int = 0


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a step did.

    Attributes:
        step: its number.
        losses: mean loss of each phase over the samples that counted.
        gradient_norm: norm of each phase's gradient before clipping.
        learning_rate: of the first phase.
        put_aside: samples newly put aside, with the reason.
        seconds: of the whole step.
        waited_s: of which waiting for data.
        worker_s: seconds per virtual shard of each worker.
        stop: whether any worker asked to stop; the same on all.
    """

    step: int
    losses: Mapping[str, float]
    gradient_norm: Mapping[str, float]
    learning_rate: float
    put_aside: Mapping[str, str]
    seconds: float
    waited_s: float
    worker_s: list[float]
    stop: bool


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """Sizes of the loop: see TrainConfig; num_shards is V, into how many virtual shards the batch is cut."""

    steps: int
    batch_size: int
    num_shards: int
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        if self.batch_size % self.num_shards:
            raise ValueError(
                f"batch_size={self.batch_size} does not divide into {self.num_shards} virtual shards; "
                f"use a multiple of {self.num_shards}"
            )


def train(
    phases: Sequence[Phase],
    reader: Iterator[tuple[int, Mapping[int, Batch]]],
    samples: Callable[[int], Sequence[Sample]],
    workers: Workers,
    config: LoopConfig,
    progress: Progress,
    *,
    wants_stop: Callable[[], bool] = lambda: False,
) -> Iterator[StepResult]:
    """Train from `progress.step` to the last step, yielding after each; `progress` is kept up to date.

    Args:
        phases: what is trained.
        reader: yields each step's virtual shards of this worker, starting at `progress.step`.
        samples: all samples of a step, the same on every worker.
        workers: who takes part.
        config: sizes.
        progress: where to begin; changed in place.
        wants_stop: asked once a step; the answer of any worker reaches all in the result.

    Raises:
        GaveUpError: if too many samples in a row are bad.
    """
    while progress.step < config.steps:
        started = time.perf_counter()
        step, batches = next(reader)
        waited_s = time.perf_counter() - started
        assert step == progress.step, f"reader is at step {step}, the run at {progress.step}"
        attempt = _Attempt(samples(step), batches, workers, config, progress)
        losses, norms, stop = {}, {}, wants_stop()
        for phase in phases:
            if step >= phase.first_step:
                losses[phase.name], norms[phase.name] = attempt.optimize(phase, stop)
        attempt.enter_ledger(losses[phases[0].name])
        progress.step += 1
        yield StepResult(
            step=step,
            losses=losses,
            gradient_norm=norms,
            learning_rate=learning_rate(phases[0].optimizer, step, config.steps),
            put_aside=attempt.put_aside,
            seconds=time.perf_counter() - started,
            waited_s=waited_s,
            worker_s=attempt.worker_s,
            stop=attempt.stop,
        )


class _Attempt:
    """One step, tried until no new sample is bad."""

    def __init__(
        self,
        samples: Sequence[Sample],
        batches: Mapping[int, Batch],
        workers: Workers,
        config: LoopConfig,
        progress: Progress,
    ) -> None:
        self.samples = samples
        self.put_aside: dict[str, str] = {}
        self.worker_s: list[float] = []
        self.stop = False
        self._batches = batches
        self._workers = workers
        self._config = config
        self._progress = progress
        self._shard_size = config.batch_size // config.num_shards

    def optimize(self, phase: Phase, stop: bool) -> tuple[float, float]:
        """Update one phase; returns its mean loss and gradient norm."""
        watch = self._config.watch
        while True:
            partials, report = self._gradients(phase, stop)
            if not self._find_bad(report):
                break
            longest, _ = self._bad_in_a_row()
            if longest > watch.patience * self._shard_size:
                last = f"step {self._progress.step}: {longest} samples in a row are bad"
                reason = list(self.put_aside.values())[-1]
                raise GaveUpError(f"{last}, the last: {reason}; look at the data or lower the learning rate")
        total = combine(partials, self._config.num_shards, self._workers)
        norm = float(torch.linalg.vector_norm(total, dtype=torch.float64))
        if not math.isfinite(norm):
            raise GaveUpError(f"step {self._progress.step}: the summed gradient is not finite though each part is")
        if phase.optimizer.clip_norm and norm > phase.optimizer.clip_norm:
            total.mul_(phase.optimizer.clip_norm / norm)
        phase.engine.step(total, learning_rate(phase.optimizer, self._progress.step, self._config.steps))
        weights = phase.engine.weights()
        if phase.average is not None:
            phase.average.update(weights)
        kept = self._kept()
        return float(report.losses[kept].mean()) if kept.any() else 0.0, norm

    def enter_ledger(self, loss: float) -> None:
        """Chain the applied samples to the ledger and the loss to its running mean."""
        applied = [s for s in self.samples if s.id not in self._progress.quarantine]
        text = self._progress.ledger + "".join(f"\n{sample.id} {sample.epoch}" for sample in applied)
        self._progress.ledger = hashlib.sha256(text.encode()).hexdigest()
        self._progress.applied += len(applied)
        mean = self._progress.mean_loss
        self._progress.mean_loss = loss if mean == 0 else 0.99 * mean + 0.01 * loss
        _, self._progress.bad_in_a_row = self._bad_in_a_row()

    def _bad_in_a_row(self) -> tuple[int, int]:
        """Longest and last row of samples newly put aside, the steps before included; earlier finds count nothing."""
        longest = row = self._progress.bad_in_a_row
        for sample in self.samples:
            if sample.id in self.put_aside:
                row += 1
            elif sample.id not in self._progress.quarantine:
                row = 0
            longest = max(longest, row)
        return longest, row

    def _kept(self) -> Tensor:
        return torch.tensor([sample.id not in self._progress.quarantine for sample in self.samples])

    def _gradients(self, phase: Phase, stop: bool) -> tuple[dict[Node, Tensor], "_Report"]:
        kept = self._kept()
        report = _Report(self._config, self._workers)
        started = time.perf_counter()

        def leaf(shard: int) -> Tensor:
            place = slice(shard * self._shard_size, (shard + 1) * self._shard_size)
            batch = self._batches[shard]
            report.magnitudes[place] = torch.where(kept[place], batch.magnitude().cpu(), 0)
            if not kept[place].all():
                batch = batch.masked(kept[place])
            losses = phase.engine.network(batch)
            weight = kept[place].to(losses.device) / self._config.batch_size
            gradient = phase.engine.gradient((losses * weight).sum())
            report.losses[place] = torch.where(kept[place], losses.detach().cpu(), 0)
            report.norms[shard] = torch.linalg.vector_norm(gradient)
            return gradient

        partials = local_sums(leaf, self._config.num_shards, self._workers)
        shards = max(1, len(self._workers.leaves(self._config.num_shards)))
        report.seconds[self._workers.rank] = (time.perf_counter() - started) / shards
        report.stop[self._workers.rank] = stop
        self._workers.share(report.values)
        self.worker_s = report.seconds.tolist()
        self.stop = bool(report.stop.any())
        return partials, report

    def _find_bad(self, report: "_Report") -> bool:
        """Put newly found bad samples aside; the same on all workers."""
        mean = self._progress.mean_loss
        reasons = bad_samples(report.losses, report.magnitudes, mean, self._config.watch)
        if not reasons:
            # A finite loss with an infinite gradient: only the virtual shard is known.
            for shard in torch.nonzero(~torch.isfinite(report.norms)).flatten().tolist():
                place = range(shard * self._shard_size, (shard + 1) * self._shard_size)
                reasons |= dict.fromkeys(place, "gradient is not finite")
        new = {self.samples[i].id: why for i, why in reasons.items()}
        new = {name: why for name, why in new.items() if name not in self._progress.quarantine}
        if reasons and not new:
            reason = next(iter(reasons.values()))
            raise GaveUpError(f"step {self._progress.step}: {reason} though nothing is left of it")
        self._progress.quarantine |= new
        self.put_aside |= new
        return bool(new)


class _Report:
    """What the workers tell each other in a step: one tensor, each entry written by one worker."""

    def __init__(self, config: LoopConfig, workers: Workers) -> None:
        sizes = [config.batch_size, config.batch_size, config.num_shards, workers.count, workers.count]
        self.values = torch.zeros(sum(sizes), dtype=torch.float64)
        self.losses, self.magnitudes, self.norms, self.seconds, self.stop = torch.split(self.values, sizes)

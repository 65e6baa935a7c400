"""One worker of a run, from its start or restart to its end; knows neither Ray nor what is trained."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from infra import storage
from pipelines.configs import to_json
from pipelines.memory import keep_freed_memory
from training.checkpoints import CheckpointStore, refuse_other_run
from training.config import TrainConfig
from training.data import Order, Reader
from training.loop import GaveUpError, LoopConfig, Progress, StepResult, train
from training.phases import build_phases, snapshot
from training.recorder import Recorder, metrics_of
from training.reduction import Workers
from training.task import Inputs, Task
from training.tasks import make_task
from training.validation import previewing, validation_loss
from training.watch import StragglerWatch

logger = logging.getLogger(__name__)

STOP = "stop"
"""A file of this name in the run's folder asks the run to save itself and leave."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run as every worker gets it.

    Attributes:
        config: the run.
        inputs: what it reads and writes.
        run_uri: folder of its checkpoints and records.
        seconds: longest training time; None trains to the last step.
    """

    config: TrainConfig
    inputs: Inputs
    run_uri: str
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: the next step.
        is_done: whether it reached its last step or its time.
        loss: of the last step.
        put_aside: samples put aside.
        error: why it could not start, save itself or go on; for the one who started it.
    """

    step: int
    is_done: bool
    loss: float
    put_aside: dict[str, str] = field(default_factory=dict)
    error: str | None = None


def run_worker(
    job: Job,
    workers: Workers,
    device: torch.device,
    *,
    is_leaving: Callable[[], bool] = lambda: False,
    must_save: Callable[[], bool] = lambda: False,
    publish: Callable[[Mapping[str, float]], None] | None = None,
) -> Outcome:
    """Train until the last step, the time limit or a request to leave; saves itself at the end.

    What cannot be mended by trying again (inputs that do not fit together, a full disk, bad samples alone) is told in
    the outcome, since a launcher restarts workers that raise.

    Args:
        job: the run.
        workers: this worker's place.
        device: where it computes.
        is_leaving: whether this worker must go; one that must takes all along, with the run saved.
        must_save: whether to save now, such as on a preemption notice; asked after each step, it gives all workers the
            same answer.
        publish: takes the figures of a step, for those who watch from outside.
    """
    torch.set_num_threads(job.config.threads)
    keep_freed_memory()
    try:
        run = _Run(job, make_task(job.config, job.inputs), workers, device, publish)
    except (ValueError, *storage.STORE_ERRORS) as err:
        return Outcome(step=0, is_done=False, loss=float("nan"), error=str(err))
    try:
        outcome = run.go(is_leaving, must_save)
    except GaveUpError as err:
        run.close("FAILED")
        return Outcome(step=run.progress.step, is_done=False, loss=float("nan"), error=str(err))
    except BaseException:
        run.close("FAILED")
        raise
    run.close("FINISHED" if outcome.is_done else "KILLED")
    return outcome


def identity_of(config: TrainConfig, task: Task) -> dict[str, Any]:
    """What a checkpoint must agree with to be gone on from."""
    return {"config": config.numerics, **task.identity}


class _Run:
    """The state of a worker between its start and its end."""

    def __init__(
        self,
        job: Job,
        task: Task,
        workers: Workers,
        device: torch.device,
        publish: Callable[[Mapping[str, float]], None] | None,
    ) -> None:
        self.config, self.task, self.workers = job.config, task, workers
        self.store = store = CheckpointStore(job.run_uri, job.config.checkpoints)
        self._error: str | None = None
        self._job = job
        self.identity = identity_of(job.config, task)
        found = store.newest()
        self.progress = Progress()
        if found is not None:
            refuse_other_run(found.identity, self.identity, found.uri)
            self.progress = Progress(**found.progress["loop"])
        self.phases = build_phases(task.phases, job.config, device, found, keeps_average=workers.rank == 0)
        self._worker_s = found.worker_s if found is not None else 0.0
        self._metric: float | None = None
        self.recorder: Recorder | None = None
        if workers.rank == 0:
            record = {"config": to_json(job.config), **task.identity}
            self.recorder = Recorder(job.run_uri, job.config, record, publish)
        self._stragglers = StragglerWatch()

    def go(self, is_leaving: Callable[[], bool], must_save: Callable[[], bool]) -> Outcome:
        """Train, record, validate and save."""
        config = self.config
        order = Order(self.task.source.buckets, batch_size=config.batch_size, seed=config.seed)
        loop = LoopConfig(
            steps=config.steps, batch_size=config.batch_size, num_shards=config.virtual_shards, watch=config.watch
        )
        reader: Reader[Any, Any] = Reader(
            self.task.source,
            order,
            self.task.collate,
            shards=self.workers.leaves(config.virtual_shards),
            num_shards=config.virtual_shards,
            start=self.progress.step,
        )
        deadline = time.monotonic() + self._job.seconds if self._job.seconds else None
        wants_stop = _StopSigns(
            self._job.run_uri, deadline, lambda: is_leaving() or self._error is not None, asks=self.workers.rank == 0
        )
        loss, saved, stopped = self.progress.mean_loss, self.progress.step, False
        steps = train(self.phases, reader, order.batch, self.workers, loop, self.progress, wants_stop=wants_stop)
        try:
            for result in steps:
                loss = result.losses[self.phases[0].name]
                self._worker_s += result.seconds * self.workers.count
                self._record(result)
                self._validate(result.step)
                if must_save() or self.progress.step % config.checkpoints.every_steps == 0:
                    self._save()
                    saved = self.progress.step
                if result.stop:
                    stopped = True
                    break
        finally:
            reader.close()
        if saved != self.progress.step or self.progress.step == 0:
            self._save()
        self._write(self.store.wait)
        is_out_of_time = deadline is not None and time.monotonic() >= deadline
        is_done = not stopped or (is_out_of_time and not wants_stop.is_asked)
        return Outcome(
            step=self.progress.step,
            is_done=is_done and self._error is None,
            loss=loss,
            put_aside=self.progress.quarantine,
            error=self._error,
        )

    def close(self, status: str) -> None:
        """End the records."""
        self._write(self.store.wait)
        if self.recorder is not None:
            self.recorder.close(status)

    def _save(self) -> None:
        tensors, counts = snapshot(self.phases)
        if self.workers.rank == 0:
            progress = {"loop": asdict(self.progress), **counts}
            step, identity = self.progress.step, self.identity
            figures: dict[str, Any] = {"metric": self._metric, "worker_s": self._worker_s}
            self._write(lambda: self.store.save(step, tensors, identity=identity, progress=progress, **figures))
        self._metric = None

    def _write(self, call: Callable[[], None]) -> None:
        """Remember why writing failed; the run then leaves with all its workers, its last checkpoint untouched."""
        try:
            call()
        except storage.STORE_ERRORS as err:
            self._error = f"the run cannot save itself: {err}"
            logger.error("checkpoint failed error=%s", err)

    def _validate(self, step: int) -> None:
        every = self.config.validation.every_steps
        if not every or (step + 1) % every:
            return
        self._metric = validation_loss(self.task, self.phases[0], self.config, self.workers)
        if self.recorder is None:
            return
        self.recorder.step(step, {"validation_loss": self._metric})
        if self.config.is_partitioned:
            return
        with previewing(self.task, self.phases):
            clips = self.task.preview(self.config.validation.clips)
        self.recorder.clips(step, clips, fps=self.config.data.fps[0] if self.config.data.fps else 4.0)

    def _record(self, result: StepResult) -> None:
        slow = self._stragglers.slow_workers(result.worker_s)
        if self.recorder is None:
            return
        for name, reason in result.put_aside.items():
            logger.warning("sample put aside step=%d id=%s reason=%s", result.step, name, reason)
            self.recorder.tags({f"quarantine.{name}": reason})
        for rank in slow:
            logger.warning("slow worker rank=%d step=%d seconds=%.3f", rank, result.step, result.worker_s[rank])
        if result.step % self.config.log_every and result.step + 1 != self.config.steps:
            return
        own = {
            "checkpoint_stall_s": self.store.stalled_s,
            "checkpoint_age_s": self.store.age_s,
            "put_aside": float(len(self.progress.quarantine)),
            "worker_hours": self._worker_s / 3600,
            "cost": self._worker_s / 3600 * self.config.cluster.price_per_hour,
        }
        self.recorder.step(result.step, {**metrics_of(result, self.config, slow), **own})


class _StopSigns:
    """Whether this worker wants the run to save itself and leave; looks at the store every two seconds at most."""

    def __init__(self, run_uri: str, deadline: float | None, is_leaving: Callable[[], bool], *, asks: bool) -> None:
        self._path = storage.join(run_uri, STOP)
        self._deadline, self._is_leaving, self._asks = deadline, is_leaving, asks
        self._looked = 0.0
        self.is_asked = False
        """Whether someone asked, as against the time being over."""

    def __call__(self) -> bool:
        self.is_asked = self._is_leaving() or self.is_asked
        if self._asks and not self.is_asked and time.monotonic() - self._looked > 2:
            self._looked, self.is_asked = time.monotonic(), storage.exists(self._path)
        return self.is_asked or (self._asks and self._deadline is not None and time.monotonic() >= self._deadline)

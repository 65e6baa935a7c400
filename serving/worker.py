"""A worker: leases one task after another and runs it step by step, looking at its controls before every step.

It may be killed at any moment. What it saved is gone on from by whoever leases the task next, with equal results.
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from opentelemetry import trace

from serving.artifacts import ArtifactStore, LostFileError
from serving.bell import Bell
from serving.config import WorkerConfig
from serving.database import retry
from serving.leases import Lease, LeaseLostError, WorkQueue
from serving.releases import ReleaseStore
from serving.shelf import Shelf
from serving.stage_set import Call, Output, StageSet, State
from serving.traces import of_job

logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)

# The bell wakes a worker at once; this is for a ring that got lost.
_IDLE_S = 2.0
_DATABASE_PATIENCE_S = 120.0
_KEPT_RUNS = 8
# Saving, and drawing previews, may each cost no more than a fiftieth of the time, however slow storage is.
_PAUSE_PER_TIME = 50.0

Run = Generator[State, None, Output]


class Observer(Protocol):
    """Where a worker's figures go."""

    def __call__(self, name: str, value: float, stage: str) -> None:
        """Record one figure of a stage."""


@dataclass(kw_only=True)
class _Progress:
    """Where the running task stands, and when what was done last."""

    lease: Lease
    run: Run
    steps_done: int
    saving: "_Pace"
    previewing: "_Pace"
    reporting: "_Pace"
    state: State | None = None
    saved_steps: int = 0
    saved: str | None = None


class _Pace:
    """When something is due: every so often, but with pauses many times as long as it takes; 0 is after every step."""

    def __init__(self, every_s: float) -> None:
        self._every_s, self._ended_at, self._took_s = every_s, time.monotonic(), 0.0

    @property
    def is_due(self) -> bool:
        pause_s = max(self._every_s, _PAUSE_PER_TIME * self._took_s) if self._every_s else 0.0
        return time.monotonic() - self._ended_at >= pause_s

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._ended_at = time.monotonic()
        self._took_s = self._ended_at - began


class Worker:
    """One worker of a pool. `run` is its life; everything else happens in it, but for the heart beat."""

    def __init__(
        self,
        *,
        owner: str,
        pool: str,
        stage_set: StageSet,
        queue: WorkQueue,
        releases: ReleaseStore,
        artifacts: ArtifactStore,
        bell: Bell,
        config: WorkerConfig,
        observe: Observer,
    ) -> None:
        self.owner, self.pool, self.stages = owner, pool, stage_set.pools[pool]
        self.stage_set, self.queue, self.releases, self.artifacts = stage_set, queue, releases, artifacts
        self.bell, self.config, self.observe = bell, config, observe
        self.shelf = Shelf(stage_set, pool, releases, owner)
        self.stopping = threading.Event()
        self._current: Lease | None = None
        self._step_began = time.monotonic()
        self._paused: OrderedDict[tuple[str, int, int], Run] = OrderedDict()

    def run(self) -> None:
        """Work until `stopping` is set; then save what runs and give it back."""
        beat = threading.Thread(target=self._beat, daemon=True)
        beat.start()
        listener = self.bell.listen((*self.stages, "workers"))
        refreshed_at = 0.0
        while not self.stopping.is_set():
            if time.monotonic() - refreshed_at > _IDLE_S or self.shelf.changed.is_set():
                self.shelf.changed.clear()
                retry(self.shelf.refresh, patience_s=_DATABASE_PATIENCE_S)
                refreshed_at = time.monotonic()
            lease = retry(self._lease, patience_s=_DATABASE_PATIENCE_S)
            if lease is None:
                listener.wait(_IDLE_S if self.shelf.ready else 0.1)
                continue
            self._work(lease)
        listener.close()
        retry(lambda: self.releases.forget(self.owner), patience_s=1.0)

    def _lease(self) -> Lease | None:
        ready = self.shelf.ready
        return self.queue.lease(self.owner, self.stages, ready) if ready else None

    def _work(self, lease: Lease) -> None:
        logger.info("task begun job=%s stage=%s step=%d", lease.job, lease.stage, lease.steps_done)
        self._step_began, self._current = time.monotonic(), lease
        about: dict[str, str | int] = {
            "job": lease.job,
            "segment": lease.segment,
            "step": lease.steps_done,
            "worker": self.owner,
        }
        with tracer.start_as_current_span(f"stage {lease.stage}", of_job(lease.job), attributes=about):
            self._run(lease)

    def _run(self, lease: Lease) -> None:
        if lease.position == 0 and lease.token == 1:
            self.observe("queue_wait_s", time.time() - lease.created_at, lease.stage)
        try:
            self._steps(self._begin(lease))
        except LeaseLostError as err:
            logger.warning("task lost job=%s stage=%s reason=%s", lease.job, lease.stage, err)
            self.observe("lost", 1.0, lease.stage)
            # A job cancelled during its last step ends here, with the lease still ours; whoever cancelled waits for it.
            retry(lambda: self.queue.let_go(lease), patience_s=_DATABASE_PATIENCE_S)
        except (LostFileError, MemoryError, OSError, RuntimeError) as err:
            reason, lost = f"{type(err).__name__}: {err}", err.reference if isinstance(err, LostFileError) else None
            # A full device or disk may pass; the attempts are counted, and the job fails when they are used up.
            logger.exception("task failed, to be tried again job=%s stage=%s", lease.job, lease.stage)
            self.observe("retries", 1.0, lease.stage)
            retry(lambda: self.queue.give_back(lease, error=reason, lost=lost), patience_s=_DATABASE_PATIENCE_S)
        except Exception as err:
            logger.exception("task failed job=%s stage=%s", lease.job, lease.stage)
            message = f"stage {lease.stage}: {type(err).__name__}: {err}"
            retry(lambda: self.queue.fail(lease, "stage_failed", message), patience_s=_DATABASE_PATIENCE_S)
        finally:
            self._current = None

    def _begin(self, lease: Lease) -> _Progress:
        run, config = self._start(lease), self.config
        return _Progress(
            lease=lease,
            run=run,
            steps_done=lease.steps_done,
            saving=_Pace(config.save_every_s),
            previewing=_Pace(config.preview_every_s),
            reporting=_Pace(config.report_every_s),
            saved_steps=lease.steps_done,
            saved=lease.state,
        )

    def _start(self, lease: Lease) -> Run:
        paused = self._paused.pop((lease.job, lease.position, lease.steps_done), None)
        if paused is not None:
            return paused
        uploads: dict[str, str] = lease.request["inputs"]
        call = Call(
            job=lease.job,
            request=lease.request,
            stage=lease.stage,
            segment=lease.segment,
            inputs=tuple(self.artifacts.get(reference) for reference in lease.inputs),
            files={} if lease.inputs else {field: self.artifacts.get(ref) for field, ref in uploads.items()},
            state=self.artifacts.get_tensors(lease.state) if lease.state else None,
        )
        return self.stage_set.run(self.shelf.model(lease.release), call)

    def _steps(self, progress: _Progress) -> None:
        lease = progress.lease
        while self._may_go_on(progress):
            began = self._step_began = time.monotonic()
            try:
                progress.state = next(progress.run)
            except StopIteration as end:
                self._finish(lease, end.value, progress)
                return
            progress.steps_done += 1
            self.observe("step_s", time.monotonic() - began, lease.stage)
            self._tell(progress)

    def _may_go_on(self, progress: _Progress) -> bool:
        lease = progress.lease
        control = retry(lambda: self.queue.look(lease, self.stages, self.shelf.ready), patience_s=_DATABASE_PATIENCE_S)
        if control.is_cancelled:
            retry(lambda: self.queue.let_go(lease), patience_s=_DATABASE_PATIENCE_S)
            self.observe("cancels", 1.0, lease.stage)
        elif control.is_overdue:
            message = (
                f"not finished in time; stage {lease.stage} was at step {progress.steps_done} of {lease.num_steps}"
            )
            retry(lambda: self.queue.fail(lease, "deadline_exceeded", message), patience_s=_DATABASE_PATIENCE_S)
        elif control.is_preempted or self.stopping.is_set():
            self._pause(progress)
        else:
            return True
        return False

    def _pause(self, progress: _Progress) -> None:
        self._save(progress)
        lease = progress.lease
        self._paused[(lease.job, lease.position, progress.saved_steps)] = progress.run
        while len(self._paused) > _KEPT_RUNS:
            self._paused.popitem(last=False)
        retry(lambda: self.queue.give_back(lease), patience_s=_DATABASE_PATIENCE_S)
        self.observe("preemptions", 1.0, lease.stage)

    def _tell(self, progress: _Progress) -> None:
        """Save, preview and report, each as often as it is due."""
        lease = progress.lease
        if progress.saving.is_due:
            self._save(progress)
        preview = None
        if progress.previewing.is_due and progress.state:
            with progress.previewing.timed():
                picture = self.stage_set.preview(self.shelf.model(lease.release), progress.state)
                preview = self.artifacts.put(lease.job, picture, ".jpg", durable=False) if picture else None
        if preview or progress.reporting.is_due:
            with progress.reporting.timed():
                steps_done = progress.steps_done
                retry(lambda: self.queue.report(lease, steps_done, preview=preview), patience_s=_DATABASE_PATIENCE_S)

    def _save(self, progress: _Progress) -> None:
        if not progress.state or progress.saved_steps == progress.steps_done:
            return
        lease, old = progress.lease, progress.saved
        with progress.saving.timed():
            reference = self.artifacts.put_tensors(lease.job, progress.state)
            retry(lambda: self.queue.save(lease, progress.steps_done, reference), patience_s=_DATABASE_PATIENCE_S)
            progress.saved, progress.saved_steps = reference, progress.steps_done
            if old and old != reference:
                self.artifacts.remove(old)

    def _finish(self, lease: Lease, output: Output, progress: _Progress) -> None:
        made = (output.data, output.suffix)
        data = self.artifacts.put(lease.job, *made, durable=made in output.results.values())
        results = {
            # Often a caller's file is the very one that the next stage reads.
            variant: data if (content, suffix) == made else self.artifacts.put(lease.job, content, suffix)
            for variant, (content, suffix) in output.results.items()
        }
        retry(lambda: self.queue.complete(lease, data, results), patience_s=_DATABASE_PATIENCE_S)
        if progress.saved:
            self.artifacts.remove(progress.saved)
        logger.info("task done job=%s stage=%s steps=%d", lease.job, lease.stage, progress.steps_done)

    def _beat(self) -> None:
        """Keep the lease and say that the worker lives, unless a step is stuck."""
        while not self.stopping.wait(self.config.lease_s / 4):
            lease = self._current
            if lease is not None and time.monotonic() - self._step_began > self.config.step_timeout_s:
                logger.critical("step stuck, worker ends itself job=%s stage=%s", lease.job, lease.stage)
                os._exit(1)
            try:
                if lease is not None:
                    self.queue.renew(lease)
                self.releases.is_alive(self.owner)
            except Exception:
                logger.exception("heart beat missed")

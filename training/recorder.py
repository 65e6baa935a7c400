"""What a run tells the world: curves and videos in MLflow, figures for Prometheus, a line or a bar on the terminal.

MLflow is spoken to in a thread of its own: neither its start nor a slow server holds a training step.
"""

import json
import logging
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from infra import storage
from pipelines.tensors import VideoFrames
from pipelines.video_io import contact_sheet, write_mp4
from training.config import TrainConfig
from training.estimate import step_flops
from training.loop import StepResult

if TYPE_CHECKING:
    from infra.tracking import Run

logger = logging.getLogger(__name__)

RECORD, CONFIG = "run.json", "config.json"

SETTLED_S = 20.0
"""A run that lasts longer has its arithmetic counted, which takes a second or more."""

Publish = Callable[[Mapping[str, float]], None]

FIGURES = (
    *("step", "loss", "learning_rate", "step_s", "data_wait_s", "samples_per_s", "workers", "slow_workers"),
    *("checkpoint_stall_s", "checkpoint_age_s", "put_aside", "worker_hours", "cost"),
    *("validation_loss", "tflops", "tflops_per_worker"),
)
"""Names of what a run publishes, beside losses and gradient norms by phase; the last three not at every step."""


class Recorder:
    """Records of one run; only the first worker has one.

    Args:
        run_uri: folder of the run; keeps the MLflow id, so that a restart goes on with the same MLflow run, and the
            resolved configuration, from which the run can be started again.
        config: of the run.
        parameters: configuration, digests.
        publish: takes the figures of a step.
    """

    def __init__(
        self, run_uri: str, config: TrainConfig, parameters: Mapping[str, Any], publish: Publish | None = None
    ) -> None:
        self._run: Run | None = None
        self._publish, self._config = publish, config
        self._step_flops: float | None = None
        self._counts_from = time.monotonic() + SETTLED_S
        self._queue = ThreadPoolExecutor(1, "recorder")
        self._queue.submit(self._open, run_uri, config, dict(parameters))
        self._bar = tqdm(total=config.steps, desc=config.name, disable=not sys.stderr.isatty())

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Record one point of each curve."""
        if time.monotonic() > self._counts_from:
            self._counts_from = math.inf
            self._queue.submit(self._count)
        if self._step_flops is not None and "step_s" in values:
            rate = self._step_flops / values["step_s"] / 1e12
            values = {**values, "tflops": rate, "tflops_per_worker": rate / values["workers"]}
        logger.info("step=%d %s", step, " ".join(f"{key}={value:.5g}" for key, value in values.items()))
        self._bar.update(step + 1 - self._bar.n)
        self._bar.set_postfix({"loss": f"{values['loss']:.4f}"} if "loss" in values else {}, refresh=False)
        if self._publish is not None:
            self._publish({**values, "step": float(step)})
        self._later(lambda run: run.metrics(values, step))

    def clips(self, step: int, clips: Sequence[VideoFrames], fps: float) -> None:
        """Store clips as a video and a sheet."""

        def store(run: "Run") -> None:
            with tempfile.TemporaryDirectory() as folder:
                sheet = Path(folder) / f"step-{step:08d}.png"
                sheet.write_bytes(contact_sheet(clips, scale=2))
                run.file(sheet, "samples")
                for number, clip in enumerate(clips):
                    if len(clip) > 1:
                        video = Path(folder) / f"step-{step:08d}-{number}.mp4"
                        write_mp4(video, clip, fps)
                        run.file(video, "samples")

        self._later(store)

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._later(lambda run: run.tags(values))

    def close(self, status: str) -> None:
        """Wait until all is recorded and end the MLflow run."""
        self._bar.close()
        self._later(lambda run: run.close(status))
        self._queue.shutdown(wait=True)

    def _later(self, call: Callable[["Run"], None]) -> None:
        def safely() -> None:
            try:
                if self._run is not None:
                    call(self._run)
            except Exception:
                logger.warning("a record could not be written", exc_info=True)

        self._queue.submit(safely)

    def _count(self) -> None:
        self._step_flops = step_flops(self._config)

    def _open(self, run_uri: str, config: TrainConfig, parameters: Mapping[str, Any]) -> None:
        try:
            text = json.dumps(parameters["config"], indent=1) + "\n"
            storage.write_atomic(storage.join(run_uri, CONFIG), text.encode())
            if config.track:
                self._run = open_run(run_uri, config.name)
                self._run.parameters(flat(parameters))
                self._run.watch_system()
        except Exception:
            logger.warning("this run is not recorded in MLflow", exc_info=True)


def open_run(run_uri: str, name: str) -> "Run":
    """Open the MLflow run of a training run: the one its folder names, or a new one that it names from now on."""
    from infra.tracking import Run  # noqa: PLC0415 (MLflow takes seconds to import; recorders do it in their thread)

    path = storage.join(run_uri, RECORD)
    run_id = json.loads(storage.read_bytes(path))["mlflow_run_id"] if storage.exists(path) else None
    run = Run("training", name, run_id=run_id)
    if run_id is None and run.id is not None:
        storage.write_atomic(path, (json.dumps({"mlflow_run_id": run.id}, indent=1) + "\n").encode())
    return run


def register(run_uri: str, name: str, folder: Path, lineage: Mapping[str, Any]) -> None:
    """Register what a run made as a new version of the model `name`, with what it was made from as the version's tags.

    MLflow being down is a warning, never an error.
    """
    try:
        run = open_run(run_uri, name)
        run.register(name, folder, alias="candidate", tags={key: str(value) for key, value in lineage.items()})
        run.close()
    except Exception:
        logger.warning("the checkpoint is not registered in MLflow", exc_info=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return result


def metrics_of(result: StepResult, config: TrainConfig, slow: list[int]) -> dict[str, float]:
    """Name the figures of a step."""
    first = next(iter(result.losses))
    return {
        "loss": result.losses[first],
        **{f"loss.{name}": loss for name, loss in result.losses.items() if name != first},
        **{f"gradient_norm.{name}": norm for name, norm in result.gradient_norm.items()},
        "learning_rate": result.learning_rate,
        "step_s": result.seconds,
        "data_wait_s": result.waited_s,
        "samples_per_s": config.batch_size / result.seconds,
        "slow_workers": float(len(slow)),
        "workers": float(len(result.worker_s)),
    }

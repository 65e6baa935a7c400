"""What a run tells the world: curves and videos in MLflow, a line or a bar on the terminal.

MLflow is spoken to in a thread of its own: neither its start nor a slow server holds a training step.
"""

import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from infra import storage, tracking
from pipelines.tensors import VideoFrames
from pipelines.video_io import contact_sheet, write_mp4
from training.config import TrainConfig
from training.loop import StepResult

logger = logging.getLogger(__name__)

RECORD = "run.json"


class Recorder:
    """Records of one run; only the first worker has one.

    Args:
        run_uri: folder of the run; keeps the MLflow id, so that a restart goes on with the same MLflow run.
        name: of the run.
        parameters: configuration, digests.
        steps: last step, for the bar.
        track: whether to record in MLflow.
    """

    def __init__(
        self, run_uri: str, name: str, parameters: Mapping[str, Any], steps: int, *, track: bool = True
    ) -> None:
        self._run: tracking.Run | None = None
        self._queue = ThreadPoolExecutor(1, "recorder")
        if track:
            self._queue.submit(self._open, run_uri, name, dict(parameters))
        self._bar = tqdm(total=steps, desc=name, disable=not sys.stderr.isatty())

    def step(self, step: int, values: Mapping[str, float]) -> None:
        """Record one point of each curve."""
        logger.info("step=%d %s", step, " ".join(f"{key}={value:.5g}" for key, value in values.items()))
        self._bar.update(step + 1 - self._bar.n)
        self._bar.set_postfix({"loss": f"{values['loss']:.4f}"} if "loss" in values else {}, refresh=False)
        self._later(lambda run: run.metrics(values, step))

    def clips(self, step: int, clips: Sequence[VideoFrames], fps: float) -> None:
        """Store clips as a video and a sheet."""

        def store(run: tracking.Run) -> None:
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

    def _later(self, call: Callable[[tracking.Run], None]) -> None:
        def safely() -> None:
            try:
                if self._run is not None:
                    call(self._run)
            except Exception:
                logger.warning("a record could not be written", exc_info=True)

        self._queue.submit(safely)

    def _open(self, run_uri: str, name: str, parameters: Mapping[str, Any]) -> None:
        path = storage.join(run_uri, RECORD)
        try:
            run_id = json.loads(storage.read_bytes(path))["mlflow_run_id"] if storage.exists(path) else None
            self._run = tracking.Run("training", name, run_id=run_id)
            if run_id is None and self._run.id is not None:
                record = {"mlflow_run_id": self._run.id, "parameters": parameters}
                storage.write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())
            self._run.parameters(flat(parameters))
        except Exception:
            logger.warning("this run is not recorded in MLflow", exc_info=True)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        result |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return result


def metrics_of(result: StepResult, config: TrainConfig, stalled_s: float, slow: list[int]) -> dict[str, float]:
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
        "checkpoint_stall_s": stalled_s,
        "slow_workers": float(len(slow)),
        "workers": float(len(result.worker_s)),
    }

"""Records of a run in MLflow: parameters, curves, videos, registered checkpoints.

MLflow being down never stops a run: every call after the first failure is dropped with one warning.
"""

import logging
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

logger = logging.getLogger(__name__)


def default_uri() -> str:
    """The tracking store of the environment (MLFLOW_TRACKING_URI), or an SQLite file in the working folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


class Run:
    """One MLflow run, opened anew or reopened by its id, so that a job has one run however often it restarts.

    Args:
        experiment: MLflow experiment; made if missing.
        name: name of a new run.
        run_id: id of the run to reopen; None starts one.
        tracking_uri: MLflow store; see `default_uri`.
    """

    def __init__(self, experiment: str, name: str, *, run_id: str | None = None, tracking_uri: str | None = None):
        self.id = run_id
        self._client: MlflowClient | None = None
        self._uri = tracking_uri or default_uri()
        self._monitor: Any = None
        self._attempt("open", lambda: self._open(experiment, name, self._uri))

    def _open(self, experiment: str, name: str, uri: str) -> None:
        # MLflow warns of its own internals at every start.
        warnings.filterwarnings("ignore", module="mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # Seven retries, MLflow's default, hold a training step for two minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        client = MlflowClient(tracking_uri=uri)
        if self.id is None:
            self.id = client.create_run(_experiment_id(client, experiment, uri), run_name=name).info.run_id
        else:
            client.update_run(self.id, status="RUNNING")
        self._client = client

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record the configuration; values of an earlier start that differ are kept and the new ones logged as tags."""

        def log() -> None:
            known = self._store().get_run(self._id()).data.params
            texts = {key: str(value)[:6000] for key, value in values.items()}
            new = [Param(key, text) for key, text in texts.items() if key not in known]
            changed = {key: text for key, text in texts.items() if known.get(key, text) != text}
            tags = [RunTag(f"restarted.{key}", text[:5000]) for key, text in changed.items()]
            # One by one they take seconds; a store takes a hundred at a time.
            for start in range(0, max(len(new), len(tags)), 100):
                part = slice(start, start + 100)
                self._store().log_batch(self._id(), params=new[part], tags=tags[part])

        self._attempt("parameters", log)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Add one point to each named curve."""

        now_ms = int(time.time() * 1000)
        points = [Metric(key, float(value), now_ms, step) for key, value in values.items()]
        self._attempt("metrics", lambda: self._store().log_batch(self._id(), metrics=points))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags, such as digests of the data and of the frozen backbone."""
        self._attempt("tags", lambda: [self._store().set_tag(self._id(), key, text) for key, text in values.items()])

    def file(self, path: Path, folder: str = "") -> None:
        """Store a file (a sample video, a sheet, a config) with the run."""
        self._attempt("file", lambda: self._store().log_artifact(self._id(), str(path), folder or None))

    def register(self, name: str, folder: Path, *, alias: str, tags: Mapping[str, str] | None = None) -> None:
        """Store a checkpoint folder with the run, register it as a new version of model `name` and give it an alias.

        Args:
            name: of the model.
            folder: with the weights.
            alias: moves to the new version.
            tags: of the version, such as digests of what it was made from.
        """

        def log() -> None:
            client = self._store()
            client.log_artifacts(self._id(), str(folder), folder.name)
            if not client.search_registered_models(filter_string=f"name = '{name}'"):
                client.create_registered_model(name)
            source = f"{client.get_run(self._id()).info.artifact_uri}/{folder.name}"
            version = client.create_model_version(name, source=source, run_id=self._id(), tags=dict(tags or {}))
            client.set_registered_model_alias(name, alias, version.version)

        self._attempt("register", log)

    def watch_system(self) -> None:
        """Add curves of processor, memory, disk, network and GPU use until the run is closed."""

        def start() -> None:
            monitor: Any = SystemMetricsMonitor
            self._monitor = monitor(self._id(), tracking_uri=self._uri, resume_logging=True)
            self._monitor.start()

        self._attempt("watch_system", start)

    def close(self, status: str = "FINISHED") -> None:
        """End the run with an MLflow status: FINISHED, FAILED or KILLED."""
        if self._monitor is not None:
            self._monitor.finish()
            self._monitor = None
        self._attempt("close", lambda: self._store().set_terminated(self._id(), status=status))

    def _store(self) -> MlflowClient:
        assert self._client is not None
        return self._client

    def _id(self) -> str:
        assert self.id is not None
        return self.id

    def _attempt(self, what: str, call: Callable[[], object]) -> None:
        if self._client is None and what != "open":
            return
        try:
            call()
        except (MlflowException, OSError, ValueError) as err:
            logger.warning("mlflow is out of reach, records of this run stop here call=%s error=%s", what, err)
            self._client = None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One metric of one run: its points (step, value) in the order of steps."""

    run: str
    points: list[tuple[int, float]]


def curves(tracking_uri: str, metric: str) -> list[Curve]:
    """Read a metric of every run of a store, oldest run first; runs without it are left out."""
    client = MlflowClient(tracking_uri=tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    found = []
    for run in client.search_runs(experiments, order_by=["attributes.start_time ASC"]):
        points = sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric))
        if points:
            found.append(Curve(run=str(run.info.run_name), points=points))
    return found


def _experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        # Beside the database, not in whatever folder the process happens to run.
        location = (Path(uri.removeprefix("sqlite:///")).absolute().parent / "mlruns" / name).as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        # Another process made it between the question and the answer.
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)

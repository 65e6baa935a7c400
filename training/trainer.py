"""Runs on Ray: elastic workers, restarts after failures, preemption notices, figures for Prometheus. Wiring only."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

import ray.train
import torch
from ray.train import FailureConfig, PreemptionInfo, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.util.metrics import Gauge

from infra import storage
from infra.cli import IncompleteError
from infra.cluster import connect
from training.leaving import on_sigterm
from training.reduction import Workers
from training.worker import STOP, Job, Outcome, run_worker


def run_on_ray(job: Job) -> Outcome:
    """Train with Ray's workers; lost workers are replaced, and the run goes on from its newest checkpoint.

    SIGTERM makes the run save itself and leave.

    Raises:
        IncompleteError: if workers were lost more often than allowed.
    """
    cluster = job.config.cluster
    workers: int | tuple[int, int] = cluster.max_workers
    if cluster.min_workers < cluster.max_workers:
        workers = (cluster.min_workers, cluster.max_workers)
    resources = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    sign = storage.join(job.run_uri, STOP)
    with connect(object_store_bytes=300 * 2**20), on_sigterm(lambda: storage.write_atomic(sign, b"")) as was_told:
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cluster.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(  # type: ignore[call-arg]
                num_workers=workers,  # type: ignore[arg-type]
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker={name: amount for name, amount in resources.items() if amount},
                elastic_resize_monitor_interval_s=cluster.resize_interval_s,
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=storage.absolute(job.run_uri),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        try:
            outcome: Outcome = trainer.fit().return_value  # type: ignore[attr-defined]
        except TrainingFailedError as err:
            reason = str(err).strip().splitlines()[-1]
            advice = "run the same command again to go on from the newest checkpoint"
            raise IncompleteError(f"workers failed more than {cluster.max_failures} times: {reason}; {advice}") from err
        finally:
            if was_told():
                storage.delete(sign)
        return outcome


def train_worker(settings: dict[str, Job]) -> Outcome:
    """Run on each worker that Ray starts."""
    job = settings["job"]
    context = ray.train.get_context()
    # DeepSpeed reads its local rank from the environment; Ray has placed this process on its device already.
    os.environ["LOCAL_RANK"] = "0"
    workers = Workers(rank=context.get_world_rank(), count=context.get_world_size(), exact=job.config.cluster.exact)
    device = get_device() if torch.cuda.is_available() else torch.device("cpu")
    return run_worker(job, workers, device, must_save=PreemptionNotice(), publish=Gauges(job.config.name))


@dataclass
class PreemptionNotice:
    """Whether a machine of the run is newly about to be taken away; asked by all workers at the same steps.

    The run saves itself and goes on: when the machine is gone, Ray starts it again on the others.
    """

    _known: PreemptionInfo | None = None

    def __call__(self) -> bool:
        """Ask; says yes once for each notice."""
        before, self._known = self._known, ray.train.get_preemption_info()
        return self._known is not None and self._known != before


@dataclass
class Gauges:
    """Shows the figures of a run on the metrics port of Ray's nodes, where Prometheus finds them."""

    run: str
    _gauges: dict[str, Gauge] = field(default_factory=dict)

    def __call__(self, values: Mapping[str, float]) -> None:
        """Set a gauge `ray_videoldm_training_NAME` for each figure."""
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(self.metric(name), f"{name} of a training run", tag_keys=("run",))
            self._gauges[name].set(value, tags={"run": self.run})

    @staticmethod
    def metric(name: str) -> str:
        """Name of a figure's gauge."""
        return f"videoldm_training_{name.replace('.', '_').replace('-', '_')}"

"""Runs on Ray: elastic workers, restarts after failures, preemption notices. Wiring only."""

import os
from pathlib import Path

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from infra.cluster import connect
from training.reduction import Workers
from training.worker import Job, Outcome, run_worker


def run_on_ray(job: Job) -> Outcome:
    """Train with Ray's workers; lost workers are replaced, and the run goes on from its newest checkpoint.

    Raises:
        ValueError: as run_worker, from any worker.
    """
    cluster = job.config.cluster
    workers: int | tuple[int, int] = cluster.max_workers
    if cluster.min_workers < cluster.max_workers:
        workers = (cluster.min_workers, cluster.max_workers)
    resources = {"CPU": cluster.cpus_per_worker, "GPU": cluster.gpus_per_worker}
    with connect(object_store_bytes=300 * 2**20):
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]
            train_loop_config={"job": job},
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if cluster.gpus_per_worker else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,  # type: ignore[arg-type]
                use_gpu=cluster.gpus_per_worker > 0,
                resources_per_worker={name: amount for name, amount in resources.items() if amount},
            ),
            run_config=RunConfig(
                name="ray",
                storage_path=_storage_path(job.run_uri),
                failure_config=FailureConfig(max_failures=cluster.max_failures),
            ),
        )
        outcome: Outcome = trainer.fit().return_value  # type: ignore[attr-defined]
        return outcome


def train_worker(settings: dict[str, Job]) -> Outcome:
    """Run on each worker that Ray starts."""
    job = settings["job"]
    context = ray.train.get_context()
    # DeepSpeed reads its local rank from the environment; Ray has placed this process on its device already.
    os.environ["LOCAL_RANK"] = "0"
    workers = Workers(rank=context.get_world_rank(), count=context.get_world_size(), exact=job.config.cluster.exact)
    return run_worker(job, workers, get_device() if torch.cuda.is_available() else torch.device("cpu"))


def _storage_path(run_uri: str) -> str:
    return run_uri if "://" in run_uri else str(Path(run_uri).absolute())

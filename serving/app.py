"""The Serve application: which replicas there are, what each may use, and how they are bound together."""

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from serving.config import PoolConfig, ServeConfig
from serving.replicas import ConductorReplica, Ingress, StageReplica
from serving.scaling import QueueDepth
from serving.stage_set import StageSet

_HEALTH_CHECK_S = 5.0
_DRAIN_S = 60.0
# Pools that some checkpoints do without: they scale even at a fixed size, so that a later checkpoint can wake them.
_OPTIONAL = ("interpolate", "upsample")


def build_app(config: ServeConfig, stage_set: StageSet, description: dict[str, Any]) -> Application:
    """Bind ingress, conductor and one deployment per worker pool.

    Args:
        config: of the service.
        stage_set: what it serves.
        description: of the first checkpoint.
    """
    runs = set(description.get("runs", [name for names in stage_set.pools.values() for name in names]))
    pools = [
        _deploy(StageReplica, pool, config.pool(pool), _scaling(config, pool, stages, runs)).bind(
            config, stage_set, pool
        )
        for pool, stages in stage_set.pools.items()
    ]
    conductor = _deploy(ConductorReplica, "conductor", config.conductor, None).bind(config, stage_set)
    ingress = _deploy(Ingress, "ingress", config.ingress, None)
    return ingress.bind(config, stage_set, conductor, *pools)


def _deploy(replica: type, name: str, pool: PoolConfig, scaling: AutoscalingConfig | None) -> Any:
    size: dict[str, Any] = {"num_replicas": pool.min_replicas} if scaling is None else {"autoscaling_config": scaling}
    wrap = serve.deployment(
        name=name,
        ray_actor_options={"num_cpus": pool.num_cpus, "num_gpus": pool.num_gpus},
        max_ongoing_requests=200,
        health_check_period_s=_HEALTH_CHECK_S,
        graceful_shutdown_timeout_s=_DRAIN_S,
        # New replicas start before old ones stop, so that an upgrade of the code drops no request.
        max_surge_percent=100,
        **size,
    )
    return wrap(replica)


def _scaling(config: ServeConfig, pool: str, stages: tuple[str, ...], runs: set[str]) -> AutoscalingConfig | None:
    size = config.pool(pool)
    initial = 0 if runs.isdisjoint(stages) else max(1, size.min_replicas)
    if initial and size.min_replicas == size.max_replicas and pool not in _OPTIONAL:
        return None
    arguments = {"database_url": config.database_url, "stages": list(stages), "lowest": size.min_replicas}
    return AutoscalingConfig(
        # The policy keeps to the configured minimum, but for a pool that no checkpoint needs.
        min_replicas=0,
        initial_replicas=initial,
        max_replicas=size.max_replicas,
        policy=AutoscalingPolicy(policy_function=QueueDepth, policy_kwargs=arguments),  # type: ignore[no-untyped-call]
        upscale_delay_s=1.0,
        downscale_delay_s=size.idle_s,
        downscale_to_zero_delay_s=size.idle_s,
    )

"""Moving to another checkpoint while the service runs: it is loaded beside the old one, or fails alone."""

import time

from serving.backend import open_backend
from serving.config import ServeConfig
from serving.releases import Release, ReleaseStore
from serving.stage_set import StageSet


def roll_out(config: ServeConfig, stage_set: StageSet, patience_s: float) -> Release:
    """Propose a checkpoint and wait for the verdict of the workers.

    Raises:
        ValueError: it cannot be loaded (the old one goes on serving), or nobody has loaded it in time.
    """
    digest, description = stage_set.describe(config.checkpoint)
    releases = open_backend(config, stage_set, durable=True).releases
    releases.propose(digest, config.checkpoint, description)
    return wait_active(releases, digest, config.checkpoint, patience_s)


def wait_active(releases: ReleaseStore, digest: str, checkpoint: str, patience_s: float) -> Release:
    """Wait until a proposed release serves.

    Raises:
        ValueError: it failed, or is not loaded in time.
    """
    give_up_at = time.monotonic() + patience_s
    while time.monotonic() < give_up_at:
        release = releases.get(digest)
        if release is not None and release.status == "active":
            return release
        if release is not None and release.status == "failed":
            raise ValueError(f"checkpoint {checkpoint!r} cannot be served: {release.error}")
        time.sleep(0.1)
    raise ValueError(f"checkpoint {checkpoint!r} was not loaded within {patience_s:g} s; see the replicas' logs")

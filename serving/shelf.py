"""The checkpoints a worker holds: what is wanted is loaded beside what is served, the rest let go."""

import logging
import threading
from typing import Any

from serving.releases import Release, ReleaseStore
from serving.stage_set import StageSet

logger = logging.getLogger(__name__)


class Shelf:
    """Loaded models of one worker, by the digest of their release. Loading runs in a thread of its own."""

    def __init__(self, stage_set: StageSet, pool: str, releases: ReleaseStore, owner: str) -> None:
        self._stage_set, self._pool, self._releases, self._owner = stage_set, pool, releases, owner
        self._stages = stage_set.pools[pool]
        self._models: dict[str, Any] = {}
        self._failed: set[str] = set()
        self._loading: threading.Thread | None = None
        self.changed = threading.Event()

    @property
    def ready(self) -> tuple[str, ...]:
        """Digests of the releases that this worker can run."""
        return tuple(self._models)

    def model(self, digest: str) -> Any:
        """Get a loaded model."""
        return self._models[digest]

    def refresh(self) -> None:
        """Compare what is held with what is wanted; start to load what is missing, drop what nobody needs."""
        wanted = {release.digest: release for release in self._releases.wanted()}
        for digest in [held for held in self._models if held not in wanted]:
            del self._models[digest]
            self._releases.forget(self._owner, digest)
        self._failed.intersection_update(d for d, release in wanted.items() if release.status == "failed")
        missing = [release for digest, release in wanted.items() if digest not in self._models]
        missing = [release for release in missing if release.digest not in self._failed]
        if missing and (self._loading is None or not self._loading.is_alive()):
            # The release that has work first: a candidate can wait.
            missing.sort(key=lambda release: release.status == "candidate")
            self._loading = threading.Thread(target=self._load, args=(missing[0],), daemon=True)
            self._loading.start()

    def _load(self, release: Release) -> None:
        self._releases.begin_load(release.digest, self._owner, self._stages)
        error = None
        try:
            self._models[release.digest] = self._stage_set.load(release.uri, self._pool)
        except Exception as err:  # whatever a checkpoint does to its loader must not end the worker
            logger.exception("release not loaded digest=%s", release.digest)
            error = f"{type(err).__name__}: {err}"
            self._failed.add(release.digest)
        self._releases.end_load(release.digest, self._owner, self._stages, error)
        self.changed.set()
        logger.info("release loaded digest=%s ok=%s", release.digest[:12], error is None)

"""The one who looks after everything that no request and no worker does: deadlines, releases, webhooks, old files."""

import logging
import threading
import time

from serving.backend import Backend
from serving.database import retry
from serving.webhooks import Courier

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0
_CLEAN_EVERY_S = 60.0


class Conductor:
    """Housekeeping in a loop. It keeps nothing in memory that matters, and two of them do no harm."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.courier = Courier(backend)
        self.stopping = threading.Event()
        self._cleaned_at = 0.0

    def run(self) -> None:
        """Look after things until `stopping` is set."""
        listener = self.backend.bell.listen(("conductor",))
        while not self.stopping.is_set():
            try:
                retry(self.look, patience_s=60.0)
            except Exception:
                logger.exception("conductor's round failed")
            listener.wait(_LOOK_EVERY_S)
        listener.close()

    def look(self) -> None:
        """Do what is due now."""
        backend = self.backend
        for job_id in backend.sweeper.end_overdue():
            logger.info("job overdue job=%s", job_id)
        backend.sweeper.drop_orphans()
        stages = {stage for pool in backend.stage_set.pools.values() for stage in pool}
        if changed := backend.releases.advance(stages):
            level = logging.ERROR if changed.error else logging.INFO
            logger.log(level, "release %s digest=%s error=%s", changed.status, changed.digest[:12], changed.error)
            backend.bell.ring("workers")
        self.courier.deliver_due()
        if time.monotonic() - self._cleaned_at > _CLEAN_EVERY_S:
            self._cleaned_at = time.monotonic()
            self._remove_old()

    def _remove_old(self) -> None:
        for job_id in self.backend.sweeper.expired(self.backend.config.retention_s):
            self.backend.jobs.delete(job_id)
            self.backend.artifacts.remove_job(job_id)
            logger.info("job expired job=%s", job_id)

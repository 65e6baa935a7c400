"""Waiting for the database to say something: short sleeps, bounded in time, in a thread of the API's pool."""

import time

from serving.backend import Backend

_STOP_WAIT_S = 30.0


def wait_until_stopped(backend: Backend, job_id: str) -> bool:
    """Wait until no worker holds a cancelled job, so that the answer means that its work has ended.

    Returns:
        False if a worker was still within its step after half a minute; it stops at the end of that step.
    """
    give_up_at = time.monotonic() + _STOP_WAIT_S
    pause_s = 0.002
    while backend.jobs.is_running(job_id):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.05)
    return True

"""Turning callers away while the queue is full: before anything of their request is read, at next to no cost."""

import contextlib
import threading
import time

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.access import caller
from serving.backend import Backend
from serving.errors import ApiError, answer
from serving.records import Bounds

# The estimate takes several queries; a second more or less of it changes no promise.
_ESTIMATE_VALID_S = 1.0


class Turnstile:
    """Spreads refused callers over the places that will come free, one after another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next_at = 0.0

    def wait_s(self, interval_s: float, longest_s: float) -> float:
        """Promise the next free place.

        Args:
            interval_s: time between two places.
            longest_s: time in which the whole queue turns over; promises go no further.
        """
        with self._lock:
            now = time.monotonic()
            self._next_at = min(max(now, self._next_at) + interval_s, now + longest_s)
            return self._next_at - now


turnstile = Turnstile()


def no_room(bounds: Bounds, interval_s: float) -> ApiError:
    """What a caller is told when the whole service is full, with a place promised.

    Args:
        bounds: of the service.
        interval_s: time between two places that come free.
    """
    wait_s = turnstile.wait_s(interval_s, interval_s * bounds.max_unfinished)
    message = f"the queue is full ({bounds.max_unfinished} jobs); try again later"
    return ApiError(429, "queue_full", message, retry_after_s=wait_s)


class EarlyRefusal:
    """ASGI layer that answers requests for a video with 429 while the queue is full.

    What may mean a job that is there already passes, and so do callers without a valid key: the routes know the answer.
    """

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        self.app, self.backend = app, backend
        self._bounds = Bounds(max_unfinished=backend.config.max_unfinished)
        self._interval_s, self._estimated_at = 0.0, -_ESTIMATE_VALID_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or pass it on."""
        refusal = await run_in_threadpool(self._refusal, scope) if _starts_a_job(scope) else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        jobs, request = self.backend.jobs, Request(scope)
        # A database that is away is the routes' to report.
        with contextlib.suppress(DBAPIError, ApiError):
            if not jobs.is_full(self._bounds):
                return None
            if self.backend.config.keys_required:
                caller(request, self.backend)
            if time.monotonic() - self._estimated_at > _ESTIMATE_VALID_S:
                self._interval_s, self._estimated_at = jobs.seconds_per_job(), time.monotonic()
            return answer(request, no_room(self._bounds, self._interval_s))
        return None


def _starts_a_job(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/videos"):
        return False
    headers = Headers(scope=scope)
    # Only the job table knows whether a request that comes again has its job already.
    is_again = "idempotency-key" in headers or headers.get("x-stainless-retry-count", "0") != "0"
    return not is_again and not scope["path"].endswith("/cancel")

"""Server-sent events of one video: progress, queue position and previews as they change, then its end."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from serving.access import OwnJob, TheBackend
from serving.artifacts import LostFileError
from serving.backend import Backend
from serving.openapi import ERRORS
from serving.videos import show

router = APIRouter(prefix="/v1/videos", responses=ERRORS)

_LOOK_EVERY_S = 0.25
# Proxies close connections on which nothing moves.
_KEEP_ALIVE_S = 15.0


@router.get("/{video_id}/events", response_class=StreamingResponse)
def events(request: Request, backend: TheBackend, job: OwnJob) -> StreamingResponse:
    """Stream `progress` events (the video object), `preview` events (a JPEG in base64) and one last `done`."""
    return StreamingResponse(_stream(request, backend, job.id), media_type="text/event-stream")


async def _stream(request: Request, backend: Backend, job_id: str) -> AsyncIterator[str]:
    last: dict[str, Any] = {}
    preview, told_at = None, time.monotonic()
    while not await request.is_disconnected():
        job = await run_in_threadpool(backend.jobs.get, job_id)
        if job is None:
            yield _event("done", {"id": job_id, "status": "deleted"})
            return
        now = await run_in_threadpool(show, backend, job)
        if job.preview and job.preview != preview:
            preview = job.preview
            if picture := await run_in_threadpool(_picture, backend, preview):
                yield _event("preview", {"id": job_id, "steps_done": job.steps_done, "jpeg": picture})
        if job.is_finished:
            yield _event("done", now)
            return
        if any(now[name] != last.get(name) for name in ("status", "steps_done", "queue_position", "segments")):
            last, told_at = now, time.monotonic()
            yield _event("progress", now)
        elif time.monotonic() - told_at > _KEEP_ALIVE_S:
            told_at = time.monotonic()
            yield ": still here\n\n"
        await asyncio.sleep(_LOOK_EVERY_S)


def _picture(backend: Backend, reference: str) -> str | None:
    try:
        return base64.b64encode(backend.artifacts.get(reference)).decode()
    except LostFileError:
        return None


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"

"""The routes of the OpenAI Videos API, and what we add to them: cancel, segments, idempotency."""

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse

from infra import storage
from serving.access import Caller, OwnJob, TheBackend, active_release
from serving.backend import Backend
from serving.body import read_body
from serving.create import Asked, create_job
from serving.errors import ApiError
from serving.openapi import CREATE_BODY, ERRORS
from serving.records import Job
from serving.releases import Release
from serving.video_format import poll_after_ms, video
from serving.waiting import wait_until_stopped

router = APIRouter(prefix="/v1/videos", responses=ERRORS)

IdempotencyKey = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
RetryCount = Annotated[int, Header(alias="x-stainless-retry-count", ge=0, le=1000)]
Active = Annotated[Release, Depends(active_release)]
MEDIA_TYPES = {".mp4": "video/mp4", ".jpg": "image/jpeg", ".webp": "image/webp"}


def show(backend: Backend, job: Job, response: Response | None = None) -> dict[str, Any]:
    """Describe a job, and tell the client when to ask again."""
    eta_s = backend.eta_s(job)
    if response is not None and not job.is_finished:
        response.headers["openai-poll-after-ms"] = str(poll_after_ms(eta_s, time.time() - job.created_at))
    return video(
        job,
        model=backend.releases.name(job.release),
        retention_s=backend.config.retention_s,
        queue_position=backend.jobs.queue_position(job) if job.status == "queued" else 0,
        eta_s=eta_s,
    )


@router.post("", openapi_extra=CREATE_BODY)
async def create(
    request: Request,
    response: Response,
    backend: TheBackend,
    tenant: Caller,
    release: Active,
    key: IdempotencyKey = None,
    retry_count: RetryCount = 0,
) -> dict[str, Any]:
    """Start a video. The same `Idempotency-Key`, or a client's own retry, finds the job that is there already."""
    body = await read_body(request)

    def work() -> dict[str, Any]:
        again = retry_count > 0
        asked = Asked(
            body=body, mode="create", idempotency_key=key, is_retry=again, request_id=request.state.request_id
        )
        return show(backend, create_job(backend, tenant, release, asked), response)

    return await run_in_threadpool(work)


@router.get("")
def list_videos(
    backend: TheBackend,
    tenant: Caller,
    after: Annotated[str | None, Query(max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List the caller's videos, newest first unless told otherwise."""
    page = backend.jobs.list(tenant.name, limit=limit + 1, after=after, ascending=order == "asc")
    data = [show(backend, job) for job in page[:limit]]
    first, last = (data[0]["id"], data[-1]["id"]) if data else (None, None)
    return {"object": "list", "data": data, "first_id": first, "last_id": last, "has_more": len(page) > limit}


@router.get("/{video_id}")
def retrieve(response: Response, backend: TheBackend, job: OwnJob) -> dict[str, Any]:
    """Look a video up; a failed one is an answer like any other."""
    return show(backend, job, response)


@router.delete("/{video_id}")
def delete(backend: TheBackend, job: OwnJob) -> dict[str, Any]:
    """Delete a video and its files; one that is being made is cancelled first."""
    backend.jobs.cancel(job.id)
    wait_until_stopped(backend, job.id)
    backend.jobs.delete(job.id)
    backend.artifacts.remove_job(job.id)
    return {"id": job.id, "object": "video.deleted", "deleted": True}


@router.post("/{video_id}/cancel")
def cancel(backend: TheBackend, job: OwnJob) -> dict[str, Any]:
    """End a video that is being made; answers when its work has stopped. A finished one stays as it is."""
    backend.jobs.cancel(job.id)
    wait_until_stopped(backend, job.id)
    return show(backend, backend.jobs.get(job.id) or job)


@router.get("/{video_id}/content", response_class=Response, responses={200: {"content": {"video/mp4": {}}}, 307: {}})
def content(
    backend: TheBackend,
    job: OwnJob,
    variant: Literal["video", "thumbnail", "spritesheet", "preview", "segment"] = "video",
    index: Annotated[int, Query(ge=0, le=10**6)] = 0,
) -> Response:
    """Fetch a file: the video, a still, a sheet of stills, the latest preview, or a finished segment."""
    name = f"segment-{index}" if variant == "segment" else variant
    reference = job.preview if variant == "preview" else job.results.get(name)
    if reference is None:
        raise ApiError(404, "content_not_ready", f"{job.status} video has no {name} (yet)", param="variant")
    url = backend.artifacts.signed_url(reference, backend.config.url_valid_s)
    if url is not None:
        return RedirectResponse(url, 307)
    path = backend.artifacts.uri(reference)
    if not storage.exists(path):
        raise ApiError(404, "content_expired", "this file is gone; make the video again", param="video_id")
    suffix = reference[reference.rindex(".") :]
    return FileResponse(path, media_type=MEDIA_TYPES.get(suffix, "application/octet-stream"))

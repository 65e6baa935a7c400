"""Routes that make a video from another one: remix, edit and extend."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from serving.access import Caller, OwnJob, TheBackend
from serving.backend import Backend
from serving.body import Body, read_body
from serving.create import Asked, create_job
from serving.errors import ApiError
from serving.openapi import EDIT_BODY, ERRORS, EXTEND_BODY, REMIX_BODY
from serving.records import Job
from serving.tenants import Tenant
from serving.videos import Active, IdempotencyKey, RetryCount, show

router = APIRouter(prefix="/v1/videos", responses=ERRORS)


@router.post("/{video_id}/remix", openapi_extra=REMIX_BODY)
async def remix(
    request: Request,
    response: Response,
    backend: TheBackend,
    tenant: Caller,
    release: Active,
    job: OwnJob,
    key: IdempotencyKey = None,
    retry_count: RetryCount = 0,
) -> dict[str, Any]:
    """Make a video again with another prompt and all else equal, its seed too."""
    change = await read_body(request)
    if set(change.fields) != {"prompt"} or change.files or change.references:
        raise ApiError(400, "invalid_value", "a remix takes `prompt` and nothing else", param="prompt")

    def work() -> dict[str, Any]:
        files = {name: backend.artifacts.get(reference) for name, reference in job.request["inputs"].items()}
        body = Body(fields={**_fields_of(job), **change.fields}, files=files, references={})
        asked = Asked(
            body=body,
            mode=job.request["mode"],
            idempotency_key=key,
            is_retry=retry_count > 0,
            request_id=request.state.request_id,
            parent=job,
        )
        return show(backend, create_job(backend, tenant, release, asked), response)

    return await run_in_threadpool(work)


@router.post("/edits", openapi_extra=EDIT_BODY)
async def edit(
    request: Request,
    response: Response,
    backend: TheBackend,
    tenant: Caller,
    release: Active,
    key: IdempotencyKey = None,
    retry_count: RetryCount = 0,
) -> dict[str, Any]:
    """Make an existing or uploaded video anew after another prompt."""
    body = await read_body(request)

    def work() -> dict[str, Any]:
        source, parent = _source(backend, tenant, body)
        asked = Asked(
            body=source,
            mode="edit",
            idempotency_key=key,
            is_retry=retry_count > 0,
            request_id=request.state.request_id,
            parent=parent,
        )
        return show(backend, create_job(backend, tenant, release, asked), response)

    return await run_in_threadpool(work)


@router.post("/extensions", openapi_extra=EXTEND_BODY)
async def extend(
    request: Request,
    response: Response,
    backend: TheBackend,
    tenant: Caller,
    release: Active,
    key: IdempotencyKey = None,
    retry_count: RetryCount = 0,
) -> dict[str, Any]:
    """Continue an existing or uploaded video by `seconds`; the answer holds the old part and the new one."""
    body = await read_body(request)

    def work() -> dict[str, Any]:
        source, parent = _source(backend, tenant, body)
        asked = Asked(
            body=source,
            mode="extend",
            idempotency_key=key,
            is_retry=retry_count > 0,
            request_id=request.state.request_id,
            parent=parent,
        )
        return show(backend, create_job(backend, tenant, release, asked), response)

    return await run_in_threadpool(work)


def _source(backend: Backend, tenant: Tenant, body: Body) -> tuple[Body, Job | None]:
    """Put the video that is worked on into the request's files, from the upload or from one of ours."""
    if "video" in body.files:
        return body, None
    video_id = body.references.get("video")
    if video_id is None:
        raise ApiError(400, "invalid_value", "give the video: upload a file, or name one by its id", param="video")
    job = backend.jobs.get(video_id, tenant.name)
    if job is None:
        raise ApiError(404, "video_not_found", f"no video {video_id[:80]!r}", param="video")
    if job.status != "completed":
        raise ApiError(
            400, "video_not_ready", f"video {job.id} is {job.status}; wait until it is completed", param="video"
        )
    data = backend.artifacts.get(job.results["video"])
    return Body(fields=body.fields, files={**body.files, "video": data}, references={}), job


def _fields_of(job: Job) -> dict[str, Any]:
    """The request that gives this job again."""
    request = job.request
    same = ("negative_prompt", "fps", "num_frames", "num_inference_steps", "guidance_scale", "seed", "scene", "stages")
    boxes = request["boxes"]
    if boxes is not None:
        boxes = [dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)) for box in boxes]
    return {
        **{name: request[name] for name in same},
        "size": f"{request['width']}x{request['height']}",
        "boxes": boxes,
        "backbone": request["backbone"],
    }

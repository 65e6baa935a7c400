"""From a request to a stored job: checked, resolved, planned, priced and admitted, in this order."""

import logging
import secrets
import uuid
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from opentelemetry import trace

from serving.backend import Backend
from serving.body import Body
from serving.config import ServeConfig
from serving.errors import ApiError
from serving.records import Bounds, ConflictError, Job, NewJob, QueueFullError
from serving.releases import Release
from serving.requests import VideoRequest, fingerprint, resolve
from serving.tenants import Tenant
from serving.traces import of_job
from serving.turnstile import no_room
from serving.uploads import check_image, check_video, num_frames_at

# A client that did not get our answer sends the same body again within its time-out.
_REPLAY_WINDOW_S = 120.0


logger = logging.getLogger(__name__)
tracer = trace.get_tracer(__name__)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as it came.

    Attributes:
        body: fields and files.
        mode: what is made: a new video, or one from the video among the files.
        idempotency_key: chosen by the caller.
        is_retry: whether the client says that it sends the request again.
        request_id: of the HTTP request, for the logs.
        parent: job that this one varies or continues.
    """

    body: Body
    mode: Literal["create", "edit", "extend"]
    idempotency_key: str | None
    is_retry: bool
    request_id: str
    parent: Job | None = None


def create_job(backend: Backend, tenant: Tenant, release: Release, asked: Asked) -> Job:
    """Store a job for a request, or find the one that an earlier copy of the request made.

    Raises:
        ApiError: anything wrong with the request, or no room for it.
    """
    config = backend.config
    request = VideoRequest.model_validate(asked.body.fields)
    _check_rights(request, tenant, config)
    resolved = resolve(request, release.description, config.limits, random_seed=secrets.randbits(48))
    resolved["mode"] = asked.mode
    modes = release.description.get("modes", ["create"])
    if asked.mode not in modes:
        message = f"the checkpoint {release.description['name']!r} cannot {asked.mode}; it can {', '.join(modes)}"
        raise ApiError(400, "mode_not_supported", message)
    files = _check_files(asked.body.files, release, config, "input_reference" if asked.mode == "create" else "video")
    if asked.mode != "create":
        _fit_length(resolved, request, num_frames_at(files["video"], resolved["fps"]))
    try:
        specs = backend.stage_set.plan({**resolved, "inputs": sorted(files)}, release.description)
    except ValueError as err:
        raise ApiError(400, "invalid_value", str(err)) from err
    cost = sum(spec.cost for spec in specs)
    if cost > config.limits.max_cost:
        message = f"this request costs {cost:g} units; the limit is {config.limits.max_cost:g}"
        raise ApiError(400, "limit_exceeded", message)
    job_id = f"video_{uuid.uuid4().hex}"
    inputs = {field: backend.artifacts.put(job_id, data, ".bin") for field, data in files.items()}
    digests = [f"{field} {reference.rsplit('/', 1)[-1]}" for field, reference in sorted(inputs.items())]
    parent = asked.parent.id if asked.parent else None
    new = NewJob(
        id=job_id,
        tenant=tenant.name,
        release=release.digest,
        request={**resolved, "inputs": inputs},
        fingerprint=fingerprint(request, asked.mode, parent or "", *digests),
        tasks=specs,
        priority=request.priority,
        idempotency_key=asked.idempotency_key,
        replay_window_s=_REPLAY_WINDOW_S if asked.is_retry else 0.0,
        parent=parent,
        deadline_s=request.deadline_s,
        callback_url=request.callback_url,
    )
    with tracer.start_as_current_span("accept", of_job(job_id), attributes={"request": asked.request_id}):
        return _store(backend, new, asked.request_id)


def _store(backend: Backend, new: NewJob, request_id: str) -> Job:
    is_kept, bounds = False, Bounds(max_unfinished=backend.config.max_unfinished)
    try:
        job, is_kept = backend.jobs.create(new, bounds)
        line = "job accepted job=%s request=%s tenant=%s cost=%.4g steps=%d is_new=%s"
        logger.info(line, job.id, request_id, new.tenant, sum(t.cost for t in new.tasks), job.num_steps, is_kept)
        return job
    except ConflictError as err:
        raise ApiError(409, "idempotency_conflict", str(err)) from err
    except QueueFullError as err:
        if err.is_everybodys:
            raise no_room(bounds, err.retry_after_s) from err
        raise ApiError(429, "queue_full", str(err), retry_after_s=err.retry_after_s) from err
    finally:
        if not is_kept and new.request["inputs"]:
            backend.artifacts.remove_job(new.id)


def _check_rights(request: VideoRequest, tenant: Tenant, config: ServeConfig) -> None:
    if request.priority > tenant.max_priority:
        message = f"priority {request.priority} is above this key's {tenant.max_priority}"
        raise ApiError(403, "priority_not_allowed", message, param="priority")
    if request.callback_url is None:
        return
    try:
        url = urlsplit(request.callback_url)
        allowed = url.scheme in ("https", "http") and url.netloc in config.callback_hosts
    except ValueError:
        allowed = False
    if not allowed:
        # Any other host could be one that only this service can reach.
        hosts = ", ".join(config.callback_hosts) or "none"
        raise ApiError(400, "callback_not_allowed", f"callback_url may go to: {hosts}", param="callback_url")


def _fit_length(resolved: dict[str, Any], request: VideoRequest, given_frames: int) -> None:
    """An extension adds to the frames it is given; an edit has as many as it is given, or fewer if asked for."""
    if resolved["mode"] == "extend":
        resolved["given_frames"] = given_frames
        return
    asked = request.num_frames is not None or request.minutes is not None or request.seconds is not None
    resolved["num_frames"] = min(resolved["num_frames"], given_frames) if asked else given_frames


def _check_files(files: dict[str, bytes], release: Release, config: ServeConfig, allowed: str) -> dict[str, bytes]:
    checks: dict[str, Any] = {"input_reference": check_image, "video": check_video}
    for field in files:
        if field != allowed:
            raise ApiError(400, "invalid_value", f"{field} does not belong here; this takes {allowed}", param=field)
        if field not in release.description.get("inputs", []):
            message = f"the checkpoint {release.description['name']!r} takes no {field}"
            raise ApiError(400, "input_not_supported", message, param=field)
    return {field: checks[field](data, field, config.limits) for field, data in files.items()}

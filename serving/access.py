"""What every route asks first: who calls, and which job is meant."""

from typing import Annotated

from fastapi import Depends, Request

from serving.backend import Backend
from serving.errors import ApiError
from serving.records import Job
from serving.releases import Release
from serving.tenants import Quota, Tenant


async def get_backend(request: Request) -> Backend:
    """Get the stores of the running application."""
    backend: Backend = request.app.state.backend
    return backend


TheBackend = Annotated[Backend, Depends(get_backend)]


def caller(request: Request, backend: TheBackend) -> Tenant:
    """Find who calls.

    Raises:
        ApiError: keys are required and this request has none that is valid.
    """
    if not backend.config.keys_required:
        # Everybody is one tenant, so that an unauthenticated header cannot create or impersonate others.
        return backend.tenants.anonymous(Quota(max_priority=9))
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    tenant = backend.tenants.find(key.strip()) if scheme.lower() == "bearer" else None
    if tenant is None:
        raise ApiError(401, "invalid_api_key", "give a valid API key as `Authorization: Bearer KEY`")
    return tenant


Caller = Annotated[Tenant, Depends(caller)]


def own_job(video_id: str, backend: TheBackend, tenant: Caller) -> Job:
    """Find one of the caller's jobs.

    Raises:
        ApiError: there is none of that id; another's job is not told from one that does not exist.
    """
    job = backend.jobs.get(video_id, tenant.name)
    if job is None:
        raise ApiError(404, "video_not_found", f"no video {video_id[:80]!r}", param="video_id")
    return job


OwnJob = Annotated[Job, Depends(own_job)]


def active_release(backend: TheBackend) -> Release:
    """Get the release that new jobs go to.

    Raises:
        ApiError: none is loaded yet.
    """
    release = backend.releases.active()
    if release is None:
        raise ApiError(503, "loading", "the checkpoint is being loaded; try again in a moment", retry_after_s=2.0)
    return release

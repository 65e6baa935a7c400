"""Routes about the service itself: health, readiness, models and figures."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from serving.access import Caller, TheBackend, active_release
from serving.errors import ApiError
from serving.metrics import exposition
from serving.releases import Release

router = APIRouter()


@router.get("/health")
def health() -> dict[str, str]:
    """Say that the API process lives."""
    return {"status": "ok"}


@router.get("/ready", responses={503: {"description": "The checkpoint is being loaded."}})
def ready(release: Annotated[Release, Depends(active_release)]) -> dict[str, str]:
    """Say that jobs can be made: a checkpoint is loaded."""
    return {"status": "ready", "release": release.digest}


@router.get("/v1/models", responses={401: {"description": "No valid API key."}})
def models(backend: TheBackend, _: Caller) -> dict[str, Any]:
    """List the served checkpoint, with its defaults and what it allows."""
    release = backend.releases.active()
    if release is None:
        return {"object": "list", "data": []}
    entry = {"id": release.description["name"], "object": "model", "created": 0, "owned_by": "videoldm"}
    return {"object": "list", "data": [{**entry, "release": release.digest, **release.description}]}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(backend: TheBackend) -> Response:
    """Figures for Prometheus."""
    if not backend.config.public_metrics:
        raise ApiError(404, "not_found", "this service does not publish its figures here")
    return Response(exposition(backend.jobs.engine), media_type="text/plain; version=0.0.4; charset=utf-8")

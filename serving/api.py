"""The HTTP API: which routes there are, who may call them, and how errors leave. Knows nothing of Ray."""

import logging
import time
import uuid
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import derived, events, system, videos
from serving.backend import Backend
from serving.body import BodyLimit
from serving.errors import ApiError, answer, from_validation
from serving.turnstile import EarlyRefusal

logger = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"


def build_api(backend: Backend) -> FastAPI:
    """Assemble the application over its stores."""
    api = FastAPI(
        title="videoldm",
        summary="Videos from text, scenes and pictures: the OpenAI Videos API, durable, cancellable and deterministic.",
        version="1",
    )
    api.state.backend = backend
    api.add_middleware(BodyLimit, max_bytes=backend.config.limits.max_upload_bytes + 2**20)
    api.add_middleware(EarlyRefusal, backend=backend)
    api.add_middleware(RequestLog)
    for kind in (ApiError, HTTPException, Exception):
        api.add_exception_handler(kind, answer)
    api.add_exception_handler(ValidationError, _refuse)
    api.add_exception_handler(RequestValidationError, _refuse)
    api.add_exception_handler(DBAPIError, _database_away)
    api.include_router(videos.router)
    api.include_router(derived.router)
    api.include_router(events.router)
    api.include_router(system.router)
    api.mount("/page", StaticFiles(directory=PAGE), name="page")
    api.get("/", include_in_schema=False)(_page)
    return api


def _page() -> FileResponse:
    return FileResponse(PAGE / "index.html")


def _refuse(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ValidationError | RequestValidationError)
    return answer(request, from_validation(error))


def _database_away(request: Request, error: Exception) -> JSONResponse:
    logger.error("database away path=%s error=%s", request.url.path, error)
    return answer(request, ApiError(503, "unavailable", "the job database does not answer", retry_after_s=1.0))


class RequestLog:
    """ASGI layer that gives each request an id and writes one line about it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if sent.isalnum() and len(sent) <= 64 else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, tagged)
        finally:
            line = "request id=%s method=%s path=%s status=%d duration_s=%.4f"
            logger.info(line, request_id, scope["method"], scope["path"], status, time.monotonic() - began)

"""Errors as the OpenAI clients expect them: an envelope with message, type, code and param, and the fitting status."""

import math

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that is answered with an error.

    Args:
        status: HTTP status.
        code: short name for programs.
        message: what was wrong, with its value, and what to do.
        param: field of the request that was wrong.
        retry_after_s: when to try again; without it, trying again does not help.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_s = retry_after_s


def envelope(status: int, code: str, message: str, param: str | None = None) -> dict[str, object]:
    """Build the body of an error."""
    kind = TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "code": code, "param": param}}


def answer(_: Request, error: Exception) -> JSONResponse:
    """Turn an error into a response."""
    if isinstance(error, ApiError):
        body = envelope(error.status, error.code, error.message, error.param)
        return JSONResponse(body, error.status, headers=_retry_headers(error))
    if isinstance(error, HTTPException):
        body = envelope(error.status_code, "http_error", str(error.detail))
        return JSONResponse(body, error.status_code, headers=error.headers)
    body = envelope(500, "internal_error", "the service met a defect; the request id names it in the logs")
    return JSONResponse(body, 500)


def from_validation(error: ValidationError | RequestValidationError) -> ApiError:
    """Name the first field that a request has wrong."""
    first = error.errors()[0]
    param = ".".join(str(part) for part in first["loc"]) or None
    return ApiError(400, "invalid_value", f"{param or 'body'}: {first['msg']}", param=param)


def _retry_headers(error: ApiError) -> dict[str, str]:
    if error.retry_after_s is None:
        # Clients try a 409 again by themselves, which would never help here.
        return {"x-should-retry": "false"} if error.status == 409 else {}
    wait_s = max(error.retry_after_s, 0.05)
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(1000 * wait_s))}

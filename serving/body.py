"""Reading a request's body: multipart or JSON, bounded before it is read."""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError

FILE_FIELDS = ("input_reference", "video")
_FORM_TYPES = ("multipart/form-data", "application/x-www-form-urlencoded")
_DATA_URL = re.compile(r"^data:[a-z0-9.+/-]*;base64,", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Body:
    """Fields of a request, its uploaded files by field, and videos of ours it refers to by field."""

    fields: dict[str, Any]
    files: dict[str, bytes]
    references: dict[str, str]


class BodyLimit:
    """ASGI layer that ends a request whose body is longer than `max_bytes`, whatever its headers say."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the body as it arrives."""
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise ApiError(413, "body_too_large", f"the body is longer than {self.max_bytes} bytes; send less")
            return message

        await self.app(scope, counted, send)


async def read_body(request: Request) -> Body:
    """Read the fields and files of a create call.

    Raises:
        ApiError: neither multipart nor JSON, damaged, or a file given as a URL.
    """
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind in _FORM_TYPES:
        return await _read_form(request)
    if kind == "application/json":
        return _from_json(await _read_json(request))
    raise ApiError(
        415, "unsupported_media_type", f"content type {kind[:80]!r}; send multipart/form-data or application/json"
    )


async def _read_form(request: Request) -> Body:
    fields: dict[str, Any] = {}
    lists: dict[str, list[str]] = {}
    files: dict[str, bytes] = {}
    try:
        # The file's size is bounded by the whole body's; the other parts are text of a request.
        async with request.form(max_files=2, max_fields=64, max_part_size=2**20) as form:
            for name, value in form.multi_items():
                # Clients send a list as one part for each entry: stages[]=prediction, stages[]=interpolation.
                if name.endswith("[]") and isinstance(value, str):
                    lists.setdefault(name.removesuffix("[]"), []).append(value)
                    continue
                if name in fields or name in files:
                    raise ApiError(400, "invalid_value", f"{name[:80]} is given twice; give it once", param=name[:80])
                if isinstance(value, UploadFile):
                    files[name] = await value.read()
                else:
                    fields[name] = value
    except (HTTPException, AssertionError, UnicodeDecodeError) as err:
        detail = err.detail if isinstance(err, HTTPException) else err
        raise ApiError(400, "invalid_body", f"the form cannot be read: {detail}") from err
    for name in files:
        if name not in FILE_FIELDS:
            raise ApiError(400, "invalid_value", f"{name[:80]} takes no file", param=name[:80])
    # Clients send nested objects as bracketed parts: video[id]=..., input_reference[image_url]=...
    nested = {name: {key: fields.pop(f"{name}[{key}]")} for name, key in _NESTED if f"{name}[{key}]" in fields}
    for name in lists:
        if name in fields:
            raise ApiError(400, "invalid_value", f"{name[:80]} is given twice; give it once", param=name[:80])
    taken = _from_json({**fields, **nested, **lists})
    return Body(fields=taken.fields, files={**files, **taken.files}, references=taken.references)


_NESTED = (("video", "id"), ("input_reference", "image_url"))


async def _read_json(request: Request) -> dict[str, Any]:
    try:
        value = json.loads(await request.body())
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ApiError(400, "invalid_json", f"the body is not JSON: {err}") from err
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", f"the body is a JSON {type(value).__name__}; send an object")
    return value


def _from_json(fields: dict[str, Any]) -> Body:
    fields = dict(fields)
    files: dict[str, bytes] = {}
    references: dict[str, str] = {}
    for name in FILE_FIELDS:
        if name not in fields:
            continue
        value = fields.pop(name)
        if isinstance(value, dict) and isinstance(value.get("id"), str) and name == "video":
            references[name] = value["id"]
        elif isinstance(value, dict) and isinstance(value.get("image_url"), str):
            files[name] = _from_data_url(name, value["image_url"])
        elif isinstance(value, str):
            files[name] = _from_data_url(name, value)
        else:
            raise ApiError(400, "invalid_value", f"{name}: upload a file or give a data: URL", param=name)
    return Body(fields=fields, files=files, references=references)


def _from_data_url(name: str, url: str) -> bytes:
    match = _DATA_URL.match(url)
    if match is None:
        # Fetching what a caller names would let them reach hosts that only this service can reach.
        raise ApiError(
            400, "invalid_value", f"{name}: only data:...;base64, URLs are read; upload the file", param=name
        )
    try:
        return base64.b64decode(url[match.end() :], validate=True)
    except (binascii.Error, ValueError) as err:
        raise ApiError(400, "invalid_value", f"{name}: the data URL is not base64", param=name) from err

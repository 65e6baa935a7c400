"""What the OpenAPI document says of bodies that are read by hand, and of errors."""

from typing import Any

from serving.requests import VideoRequest

_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _ERROR_SCHEMA}}}


ERRORS: dict[int | str, dict[str, Any]] = {
    400: _error("A value that is not allowed; `param` names the field."),
    401: _error("No valid API key."),
    403: _error("The key does not allow this."),
    404: _error("No such video, model or file."),
    409: _error("The idempotency key belongs to another request."),
    413: _error("The body is too long."),
    415: _error("The body is neither multipart/form-data nor JSON."),
    429: _error("No room; `Retry-After` says when there will be."),
    503: _error("Not ready yet; `Retry-After` says when to try again."),
}


def _body(properties: dict[str, Any], required: list[str], files: dict[str, Any]) -> dict[str, Any]:
    as_json = {"type": "object", "additionalProperties": False, "required": required, "properties": properties}
    as_form = {**as_json, "properties": {**properties, **files}}
    kinds = {"application/json": {"schema": as_json}, "multipart/form-data": {"schema": as_form}}
    return {"requestBody": {"required": True, "content": kinds}}


def _inline(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace references to definitions by what they name: fragments have no place of their own for them."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return walk(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {name: walk(value) for name, value in node.items()}
        return [walk(value) for value in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = walk(schema)
    return inlined


_FIELDS = _inline(VideoRequest.model_json_schema())["properties"]
_FILE = {"type": "string", "format": "binary"}
_VIDEO_ID = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
_IMAGE_URL = {"type": "object", "required": ["image_url"], "properties": {"image_url": {"type": "string"}}}

CREATE_BODY = _body({**_FIELDS, "input_reference": _IMAGE_URL}, ["prompt"], {"input_reference": _FILE})
EDIT_BODY = _body({**_FIELDS, "video": _VIDEO_ID}, ["prompt", "video"], {"video": _FILE})
EXTEND_BODY = _body({**_FIELDS, "video": _VIDEO_ID}, ["prompt", "video"], {"video": _FILE})
REMIX_BODY = _body({"prompt": _FIELDS["prompt"]}, ["prompt"], {})

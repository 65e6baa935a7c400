"""Frozen dataclasses to JSON and back, strictly: a config that does not fit is refused, never bent."""

import dataclasses
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_args, get_origin

from pydantic import TypeAdapter, ValidationError

Config = TypeVar("Config")


def to_json(config: Any) -> dict[str, Any]:
    """Turn a dataclass, with the dataclasses in it, into values that `json.dumps` takes."""
    values: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return values


def from_json(config_class: type[Config], values: dict[str, Any], *, where: str) -> Config:
    """Build a dataclass from JSON values.

    Args:
        config_class: the dataclass; its own checks run.
        values: what `json.loads` gave.
        where: the file, for the error.

    Raises:
        ValueError: naming the file, the field, its value and what is allowed.
    """
    _refuse_unknown(config_class, values, where)
    try:
        return TypeAdapter(config_class).validate_python(values)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or config_class.__name__
        value = "" if first["type"] in ("missing", "value_error") else f" (found {first['input']!r})"
        raise ValueError(f"{where}: {field}: {first['msg']}{value}") from err


def _refuse_unknown(config_class: Any, values: Any, where: str) -> None:
    if not isinstance(values, dict):
        return
    if not dataclasses.is_dataclass(config_class):
        # Optional and annotated dataclasses, and mappings to dataclasses.
        inner = [kind for kind in get_args(config_class) if dataclasses.is_dataclass(kind)]
        is_mapping = get_origin(config_class) in (Mapping, dict)
        for value in values.values() if is_mapping else [values]:
            for kind in inner[:1]:
                _refuse_unknown(kind, value, where)
        return
    known = {field.name: field.type for field in dataclasses.fields(config_class)}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"{where}: unknown field {key!r}; {hint}")
        _refuse_unknown(known[key], value, where)

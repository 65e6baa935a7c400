"""JSON that knows its own digest: any changed bit is found when it is read."""

import hashlib
import json
from typing import Any

SEAL = "sha256"


def seal(values: dict[str, Any]) -> bytes:
    """Write values as canonical JSON with the digest of the rest in it."""
    return _text({**values, SEAL: hashlib.sha256(_text(values)).hexdigest()})


def unseal(content: bytes, name: str) -> dict[str, Any]:
    """Read sealed JSON back.

    Raises:
        ValueError: if anything in it has changed.
    """
    try:
        values: dict[str, Any] = json.loads(content)
        seal_found = values.pop(SEAL)
    except (ValueError, KeyError, AttributeError, TypeError) as err:
        raise ValueError(f"{name} is damaged: {err}") from err
    if content != _text({**values, SEAL: seal_found}) or seal_found != hashlib.sha256(_text(values)).hexdigest():
        raise ValueError(f"{name} is damaged: its content does not fit its digest")
    return values


def _text(values: dict[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, indent=1) + "\n").encode()

"""Values that came out of a sandbox: taken as what they should be, or refused with `ProtocolError`."""

from __future__ import annotations

import json
import math
from typing import Any

from workspace.errors import ProtocolError


def text(value: object) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ProtocolError(f"the guest sent {value!r:.40} where text belongs")
    return value


def number(value: object, low: int = -(1 << 63), high: int = (1 << 64) - 1) -> int:
    """A whole number between `low` and `high`."""
    if type(value) is not int or not low <= value <= high:
        raise ProtocolError(f"the guest sent {value!r:.40} where a number between {low} and {high} belongs")
    return value


def seconds(value: object) -> float:
    """A time or a duration."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ProtocolError(f"the guest sent {value!r:.40} where a time belongs")
    return float(value)


def items(value: object) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ProtocolError(f"the guest sent {value!r:.40} where a list belongs")
    return value


def fields(value: object) -> dict[str, Any]:
    """An object with text for keys, as JSON has it."""
    if not isinstance(value, dict):
        raise ProtocolError(f"the guest sent {value!r:.40} where an object belongs")
    return value


def load(payload: bytes) -> Any:
    """The JSON value in a payload."""
    try:
        return json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the guest sent malformed JSON: {error!s:.200}") from None

"""JSON for control payloads without importing :mod:`json`, which costs the guest 4 ms of start-up.

The C scanner and encoder behind :mod:`json` are used directly (CPython 3.8 to 3.14 have the same ones); where an
interpreter lacks them, :mod:`json` itself serves.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable


class BadJSON(Exception):
    """The payload is not one JSON object."""


def _compact() -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    import _json

    class Context:
        strict = True
        object_hook = None
        object_pairs_hook = None
        array_hook = None
        parse_float = float
        parse_int = int
        parse_constant = float
        memo = {}  # type: ignore[var-annotated] # noqa: RUF012

    def refuse(value: object) -> Any:
        raise TypeError("%r cannot be sent" % (value,))

    encoder = _json.make_encoder(None, refuse, _json.encode_basestring_ascii, None, ":", ",", False, False, True)
    scanner = _json.make_scanner(Context())  # type: ignore[arg-type]

    def dumps(value: Any) -> str:
        return "".join(encoder(value, 0))

    def loads(text: str) -> Any:
        value, end = scanner(text, 0)
        if end != len(text):
            raise ValueError("data after the value")
        return value

    if loads(dumps({"a": [1, "\udcff", 1.5, None, True]})) != {"a": [1, "\udcff", 1.5, None, True]}:
        raise ImportError("this interpreter's _json does not round-trip")
    return dumps, loads


def _standard() -> tuple[Callable[[Any], str], Callable[[str], Any]]:
    import json

    return (lambda value: json.dumps(value, separators=(",", ":"))), json.loads


try:
    _dumps, _loads = _compact()
except (ImportError, AttributeError, TypeError):
    _dumps, _loads = _standard()


def encode(value: Any) -> bytes:
    """`value` as compact ASCII JSON; names that are not UTF-8 travel as lone surrogates."""
    return _dumps(value).encode("ascii")


def decode(payload: bytes) -> dict[str, Any]:
    """The JSON object in `payload`; raises `BadJSON`."""
    try:
        value = _loads(payload.decode("utf-8"))
    except (ValueError, StopIteration, RecursionError) as error:
        raise BadJSON(str(error)) from None
    if not isinstance(value, dict):
        raise BadJSON("not an object")
    return value

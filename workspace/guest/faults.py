"""Faults that travel to the host as ERROR frames."""

from __future__ import annotations

import errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Fault(Exception):
    """A request that cannot be done: `code` is an errno name or one of our own words, `details` are JSON values."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


def text(name: str | bytes | None) -> str | None:
    """A file name as it travels: bytes that are not UTF-8 become lone surrogates (PEP 383)."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "surrogateescape")
    return name


def describe(error: BaseException) -> dict[str, Any]:
    """The payload of the ERROR frame for `error`."""
    if isinstance(error, Fault):
        return dict(error.details, code=error.code, message=error.message)
    if isinstance(error, OSError) and error.errno:
        code = errno.errorcode.get(error.errno, "EIO")
        return {"code": code, "message": error.strerror or code, "path": text(error.filename)}
    return {"code": "guest_fault", "message": "%s: %s" % (type(error).__name__, error)}

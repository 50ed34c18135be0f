"""What is told about files: entries, matches, changes."""

from __future__ import annotations

import json
import posixpath
from typing import Any, Literal, NamedTuple

from workspace.errors import ProtocolError

FileType = Literal["file", "directory", "symlink", "fifo", "socket", "device"]
_TYPES = frozenset({"file", "directory", "symlink", "fifo", "socket", "device"})


class FileInfo(NamedTuple):
    """One entry. Names that are not UTF-8 hold lone surrogates (PEP 383), as in Python's own `os.listdir`."""

    path: str
    """Absolute, in the workspace."""
    type: FileType
    mode: int
    """Permission bits."""
    size: int
    mtime_ns: int
    uid: int
    gid: int
    version: str
    """Changes whenever the content may have changed; for `edit(expected_version=…)`."""
    target: str | None
    """Where a symlink points."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)


class Match(NamedTuple):
    """A line that `grep` found."""

    path: str
    line_number: int
    column: int
    line: str


class FileEvent(NamedTuple):
    """A change that `watch` saw. `overflow`: the kernel dropped events, look again at everything."""

    kind: Literal["created", "modified", "removed", "moved", "metadata", "overflow"]
    path: str
    is_directory: bool
    source: str | None
    """Where a moved entry came from."""


def absolute(path: str, home: str = "/home/user") -> str:
    """`path` as the workspace understands it: absolute, `~` expanded, without `.` (`..` is left to the kernel)."""
    if path == "~" or path.startswith("~/"):
        path = home + path[1:]
    if not path.startswith("/"):
        path = "/workspace/" + path
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/" + "/".join(parts)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ProtocolError(f"the guest sent {value!r:.40} where text belongs")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ProtocolError(f"the guest sent {value!r:.40} where a number belongs")
    return value


def info(row: object, path: str) -> FileInfo:
    """The entry at `path` that a row stands for; raises `ProtocolError` for a malformed row."""
    if not isinstance(row, list) or len(row) != 9 or row[1] not in _TYPES:
        raise ProtocolError(f"the guest sent a malformed entry: {row!r:.80}")
    _, kind, mode, size, mtime, uid, gid, version, target = row
    for value in (mode, size, mtime, uid, gid):
        if type(value) is not int:
            _number(value)
    return FileInfo(path, kind, mode, size, mtime, uid, gid, _text(version), None if target is None else _text(target))


def rows(line: bytes, base: str) -> list[FileInfo]:
    """The entries in one line of a listing below `base`."""
    prefix = base.rstrip("/") + "/"
    return [info(row, prefix + _text(row[0])) for row in load_list(line)]


def load_list(line: bytes) -> list[Any]:
    """One line of JSON from the guest that has to be a list."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the guest sent malformed JSON: {error}") from None
    if not isinstance(value, list):
        raise ProtocolError("the guest sent JSON that is not a list")
    return value


def match(line: bytes, base: str) -> Match:
    """One line of a search below `base`."""
    values = load_list(line)
    if len(values) != 4:
        raise ProtocolError("the guest sent a malformed match")
    path, number, column, text = values
    return Match(posixpath.join(base, _text(path)), _number(number), _number(column), _text(text))


_KINDS = frozenset({"created", "modified", "removed", "moved", "metadata", "overflow"})


def event(values: object, base: str) -> FileEvent:
    """One change below `base`."""
    if not isinstance(values, list) or len(values) != 4 or values[0] not in _KINDS:
        raise ProtocolError(f"the guest sent a malformed event: {values!r:.80}")
    kind, path, is_directory, source = values
    where = posixpath.join(base, _text(path)).rstrip("/")
    return FileEvent(kind, where, bool(is_directory), None if source is None else posixpath.join(base, _text(source)))

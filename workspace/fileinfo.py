"""What is told about files: entries, matches, changes."""

from __future__ import annotations

import posixpath
from typing import Literal, NamedTuple

from workspace.errors import ProtocolError
from workspace.untrusted import items, load, number, text

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


def info(row: object, path: str) -> FileInfo:
    """The entry at `path` that a row stands for; raises `ProtocolError` for a malformed row."""
    if not isinstance(row, list) or len(row) != 9 or text(row[1]) not in _TYPES:
        raise ProtocolError(f"the guest sent a malformed entry: {row!r:.80}")
    _, kind, mode, size, mtime, uid, gid, version, target = row
    for value in (mode, size, mtime, uid, gid):
        number(value)
    return FileInfo(path, kind, mode, size, mtime, uid, gid, text(version), None if target is None else text(target))


def rows(line: bytes, base: str) -> list[FileInfo]:
    """The entries in one line of a listing below `base`."""
    prefix = base.rstrip("/") + "/"
    return [info(row, prefix + text(items(row)[0] if row else None)) for row in items(load(line))]


def match(line: bytes, base: str) -> Match:
    """One line of a search below `base`."""
    values = items(load(line))
    if len(values) != 4:
        raise ProtocolError("the guest sent a malformed match")
    path, line_number, column, found = values
    return Match(posixpath.join(base, text(path)), number(line_number), number(column), text(found))


_KINDS = frozenset({"created", "modified", "removed", "moved", "metadata", "overflow"})


def event(values: object, base: str) -> FileEvent:
    """One change below `base`."""
    if not isinstance(values, list) or len(values) != 4 or text(values[0]) not in _KINDS:
        raise ProtocolError(f"the guest sent a malformed event: {values!r:.80}")
    kind, path, is_directory, source = values
    where = posixpath.join(base, text(path)).rstrip("/")
    return FileEvent(kind, where, bool(is_directory), None if source is None else posixpath.join(base, text(source)))

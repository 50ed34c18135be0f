"""Whole directories: list, walk, glob, copy, remove, and their transfer as one stream.

Links are reported, never followed. Every request is a task that gives way after each bounded step.
"""

from __future__ import annotations

import errno
import os
import stat

from . import codec
from .faults import Fault
from .files import READ_CHUNK, TEMPORARY, TEMPORARY_LENGTH, Replacement, make_folder, open_regular, row, write_all
from .loop import Pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, AsyncIterator, Callable, Iterator

    from .channel import Stream
    from .paths import Paths

BATCH = 128


def scan(path: str) -> Iterator[tuple[str, str, os.stat_result]]:
    """The entries of one directory: name, path, lstat. What vanishes meanwhile is left out, and what we are writing."""
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.startswith(TEMPORARY) and len(entry.name) == TEMPORARY_LENGTH:
                continue
            try:
                yield entry.name, entry.path, entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue


def _entries(folder: str, force: bool) -> list[tuple[str, str, os.stat_result]]:
    try:
        return sorted(scan(folder))
    except PermissionError:
        if not force:
            raise
        os.chmod(folder, 0o700)
        return sorted(scan(folder))


async def walk(
    root: str, depth: int | None, hidden: bool = True, force: bool = False, unread: list[str] | None = None
) -> AsyncIterator[tuple[str, str, os.stat_result]]:
    """Everything below `root`, parents first, as (path relative to root, path, lstat).

    A directory below that cannot be read is left out and named in `unread`, or with `force` made readable.
    """
    waiting = [("", root, 0)]
    seen = 0
    while waiting:
        prefix, folder, level = waiting.pop()
        try:
            entries = _entries(folder, force)
        except (PermissionError, FileNotFoundError, NotADirectoryError):
            if not level:
                raise
            if unread is not None:
                unread.append(prefix.rstrip("/"))
            continue
        below = []
        for name, path, info in entries:
            if not hidden and name.startswith("."):
                continue
            yield prefix + name, path, info
            seen += 1
            if not seen % BATCH:
                await Pause()
            if stat.S_ISDIR(info.st_mode) and (depth is None or level + 1 < depth):
                below.append((prefix + name + "/", path, level + 1))
        waiting.extend(reversed(below))


class Rows:
    """Collects rows and sends them as lines of JSON, a batch a line."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._rows: list[list[Any]] = []

    async def add(self, name: str, path: str, info: os.stat_result) -> None:
        self._rows.append(row(name, path, info))
        if len(self._rows) >= BATCH:
            await self.flush()

    async def flush(self) -> None:
        if self._rows:
            rows, self._rows = self._rows, []
            await self._stream.write(codec.encode(rows) + b"\n")


def _forced(remove: Callable[[str], None], path: str) -> None:
    """Removes; where the directory around it is not writable, it is made so first."""
    try:
        remove(path)
    except PermissionError:
        os.chmod(os.path.dirname(path), 0o700)
        remove(path)


class Trees:
    """The requests `tree.*`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    async def list(self, stream: Stream, request: dict[str, Any]) -> None:
        """Rows of a directory down to `depth` levels (None: all)."""
        root = self._paths.real(request["path"])
        rows = Rows(stream)
        if request.get("depth") == 1:
            for index, (name, path, info) in enumerate(scan(root)):
                await rows.add(name, path, info)
                if not index % BATCH:
                    await Pause()
        else:
            async for name, path, info in walk(root, request.get("depth")):
                await rows.add(name, path, info)
        await rows.flush()

    async def glob(self, stream: Stream, request: dict[str, Any]) -> None:
        """Rows whose path below `path` matches `pattern`; names that start with a dot only if the pattern has one."""
        from . import patterns

        root = self._paths.real(request["path"])
        pattern = request["pattern"]
        matches = patterns.compile_glob(pattern).match
        hidden = pattern.startswith(".") or "/." in pattern
        depth = None if "**" in pattern else pattern.count("/") + 1
        rows = Rows(stream)
        async for name, path, info in walk(root, depth, hidden):
            if matches(name):
                await rows.add(name, path, info)
        await rows.flush()

    async def remove(self, stream: Stream, request: dict[str, Any]) -> None:
        path = self._paths.real(request["path"])
        if (path.rstrip("/") or "/") in self._paths.roots:
            raise Fault("EBUSY", "the root of a workspace cannot be removed", path=request["path"])
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            if request.get("missing_ok"):
                return
            raise
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(path)
        elif request.get("recursive"):
            await self._remove_tree(path)
        else:
            os.rmdir(path)

    async def _remove_tree(self, path: str) -> None:
        """Removes step by step, so that a large tree delays nobody; links are not followed, modes do not keep it from it."""
        directories = [path]
        async for _, entry, info in walk(path, None, force=True):
            if stat.S_ISDIR(info.st_mode):
                directories.append(entry)
            else:
                _forced(os.unlink, entry)
        for directory in reversed(directories):
            _forced(os.rmdir, directory)

    async def copy(self, stream: Stream, request: dict[str, Any]) -> None:
        """Copies a file or a directory with modes, times and links; an existing target file is replaced."""
        source, target = self._paths.real(request["path"]), self._paths.real(request["target"])
        info = os.stat(source) if request.get("follow", True) else os.lstat(source)
        if not request.get("overwrite", True) and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        make_folder(os.path.dirname(target.rstrip("/")))
        if not stat.S_ISDIR(info.st_mode):
            await self._copy_one(source, target, info)
            return
        if (os.path.realpath(target) + "/").startswith(os.path.realpath(source) + "/"):
            raise Fault("EINVAL", "a directory cannot be copied into itself", path=request["target"])
        make_folder(target)
        directories = [(target, info)]
        async for name, path, entry in walk(source, None):
            if stat.S_ISDIR(entry.st_mode):
                make_folder(target + "/" + name)
                directories.append((target + "/" + name, entry))
            else:
                await self._copy_one(path, target + "/" + name, entry)
        for path, entry in reversed(directories):
            os.chmod(path, stat.S_IMODE(entry.st_mode))
            os.utime(path, ns=(entry.st_mtime_ns, entry.st_mtime_ns))

    async def _copy_one(self, source: str, target: str, info: os.stat_result) -> None:
        if stat.S_ISLNK(info.st_mode):
            if os.path.lexists(target):
                os.unlink(target)
            os.symlink(os.readlink(source), target)
        elif stat.S_ISREG(info.st_mode):
            await self._copy_content(source, target, info)
        else:
            raise Fault("not_regular", "FIFOs, sockets and devices are not copied", path=source)

    async def _copy_content(self, source: str, target: str, info: os.stat_result) -> None:
        reader = open_regular(source, os.O_RDONLY)
        try:
            new = Replacement(target, stat.S_IMODE(info.st_mode))
            try:
                while True:
                    data = os.read(reader, READ_CHUNK * 8)
                    if not data:
                        break
                    write_all(new.fd, data)
                    await Pause()
                os.utime(new.fd, ns=(info.st_mtime_ns, info.st_mtime_ns))
            except BaseException:
                new.abandon()
                raise
            new.commit()
        finally:
            os.close(reader)

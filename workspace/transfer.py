"""Whole trees between this machine and a workspace. The workspace's side is untrusted: names are checked, links never followed."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import json
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from workspace import untrusted
from workspace.content import to_bytes
from workspace.errors import FileMissing, InvalidArgument, NoSpace, ProtocolError, WorkspaceError, host_error
from workspace.link import Progress, Stream, parse

LENGTH = struct.Struct("!I")
MAX_HEADER = 64 * 1024
CHUNK = 256 * 1024
BATCH = 512 * 1024
MAX_FILES = 5_000_000


def _record(header: dict[str, Any]) -> bytes:
    body = json.dumps(header, separators=(",", ":")).encode("ascii")
    return LENGTH.pack(len(body)) + body


async def send_files(stream: Stream, files: Mapping[str, str | bytes]) -> None:
    """Sends many small files as records, many to a frame."""
    batch = bytearray()
    for path, content in files.items():
        data = to_bytes(content, f"the content of {path!r}")
        batch += _record({"p": path, "t": "file", "s": len(data)})
        batch += data
        if len(batch) >= BATCH:
            await stream.send(bytes(batch))
            batch.clear()
    await stream.send(bytes(batch), end=True)


class HostTree:
    """A file or a directory of this machine that is sent."""

    def __init__(self, host_path: str | PathLike[str], exclude: tuple[str, ...]) -> None:
        self.root = Path(host_path)
        self._exclude = exclude
        if not self.root.exists():
            raise FileMissing(2, "there is nothing to upload", str(self.root))
        self.is_directory = self.root.is_dir()

    def entries(self) -> Iterator[tuple[str, Path, os.stat_result]]:
        """(relative path, path, lstat), parents first."""
        if not self.is_directory:
            yield "", self.root, self.root.stat()
            return
        waiting = [("", self.root)]
        while waiting:
            prefix, folder = waiting.pop()
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                relative = prefix + entry.name
                if self._left_out(entry.name, relative):
                    continue
                info = entry.stat(follow_symlinks=False)
                yield relative, Path(entry.path), info
                if stat.S_ISDIR(info.st_mode):
                    waiting.append((relative + "/", Path(entry.path)))

    def _left_out(self, name: str, relative: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(relative, pattern) for pattern in self._exclude)

    def size(self) -> int:
        """Bytes of all regular files."""
        return sum(info.st_size for _, _, info in self.entries() if stat.S_ISREG(info.st_mode))


async def send_tree(stream: Stream, source: HostTree, progress: Progress | None) -> None:
    """Sends `source` as records; FIFOs, sockets and devices are left out."""
    total = await asyncio.to_thread(source.size) if progress is not None else None
    done = 0
    batch = bytearray()
    for relative, path, info in source.entries():
        header: dict[str, Any] = {"p": relative, "m": stat.S_IMODE(info.st_mode), "n": info.st_mtime_ns}
        if stat.S_ISDIR(info.st_mode):
            batch += _record({**header, "t": "directory", "m": header["m"] | 0o700})
        elif stat.S_ISLNK(info.st_mode):
            batch += _record({**header, "t": "symlink", "l": os.readlink(path)})
        elif stat.S_ISREG(info.st_mode):
            done += await _send_file(stream, header, path, batch)
            if progress is not None:
                progress(done, total)
        if len(batch) >= BATCH:
            await stream.send(bytes(batch))
            batch.clear()
    await stream.send(bytes(batch), end=True)


async def _send_file(stream: Stream, header: dict[str, Any], path: Path, batch: bytearray) -> int:
    with open(path, "rb", buffering=0) as file:
        size = left = os.fstat(file.fileno()).st_size
        batch += _record({**header, "t": "file", "s": size})
        while left:
            data = file.read(min(left, CHUNK))
            if not data:
                raise InvalidArgument(f"{str(path)!r} became shorter while it was uploaded")
            left -= len(data)
            batch += data
            if len(batch) >= BATCH:
                await stream.send(bytes(batch))
                batch.clear()
    return size


@dataclass(frozen=True)
class Downloaded:
    """What came of a download."""

    files: int
    bytes: int
    skipped: tuple[str, ...] = ()
    """Entries that were left out: links that lead out of the tree, FIFOs, sockets, devices, unreadable files."""
    changed: tuple[str, ...] = ()
    """Files that became shorter while they were read; filled up with zeros."""

    def told(self, reply: dict[str, Any]) -> Downloaded:
        """With what the guest adds."""
        skipped, changed = (tuple(untrusted.text(name) for name in untrusted.items(reply.get(key))) for key in ("skipped", "changed"))
        return replace(self, skipped=(*self.skipped, *skipped), changed=changed)


class _Records:
    """Takes records out of a stream of DATA."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._data = b""

    async def take(self, size: int) -> bytes:
        while len(self._data) < size:
            try:
                self._data += (await self._stream.__anext__())[1]
            except StopAsyncIteration:
                break
        taken, self._data = self._data[:size], self._data[size:]
        return taken

    async def header(self) -> dict[str, Any] | None:
        raw = await self.take(LENGTH.size)
        if not raw:
            return None
        length = LENGTH.unpack(raw)[0] if len(raw) == LENGTH.size else MAX_HEADER + 1
        if length > MAX_HEADER:
            raise ProtocolError("the guest sent a malformed record")
        return parse(await self.take(length))

    async def some(self, size: int) -> bytes:
        if not self._data:
            try:
                self._data = (await self._stream.__anext__())[1]
            except StopAsyncIteration:
                await self._stream.result()
                raise ProtocolError("the guest ended a transfer inside a file") from None
        taken, self._data = self._data[:size], self._data[size:]
        return taken


def _parts(path: object) -> list[str]:
    """The parts of a relative path from the guest; refuses what could lead elsewhere."""
    if not isinstance(path, str) or "\0" in path:
        raise ProtocolError(f"the guest sent {path!r:.80} as a path")
    parts = path.split("/") if path else []
    if any(part in ("", ".", "..") for part in parts):
        raise ProtocolError(f"the guest sent the path {path!r:.80}, which leaves the tree")
    return parts


def _stays_inside(parts: list[str], target: str) -> bool:
    """Whether a link at `parts` with this target points into the tree, by its text alone."""
    steps = [step for step in target.split("/") if step not in ("", ".")]
    up = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    # `..` after a name may mean anything, because the name may be a link; before one it climbs real directories.
    return bool(target) and not target.startswith("/") and ".." not in steps[up:] and up < len(parts)


class _Destination:
    """A directory of this machine; every step below it is taken by descriptor, without following links."""

    def __init__(self, root: int, target: Target) -> None:
        self.target = target
        self._root = root

    def folder(self, parts: list[str]) -> int:
        """A descriptor of the directory, which is made where it is missing. The caller closes it."""
        current = os.dup(self._root)
        try:
            for part in parts:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o755, dir_fd=current)
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
                os.close(current)
                current = below
        except BaseException:
            os.close(current)
            raise
        return current

    def link(self, parts: list[str], target: str) -> None:
        folder = self.folder(parts[:-1])
        temporary = _temporary()
        try:
            os.symlink(target, temporary, dir_fd=folder)
            os.rename(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def dress(self, parts: list[str], mode: int, mtime_ns: int) -> None:
        folder = self.folder(parts)
        try:
            os.fchmod(folder, mode & 0o777)
            os.utime(folder, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(folder)

    async def file(self, parts: list[str], header: dict[str, Any], records: _Records) -> None:
        self.target.expect(_whole(header.get("s")))
        folder = self.folder(parts[:-1])
        temporary = _temporary()
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
            try:
                await self._fill(fd, header, records)
                os.rename(temporary, parts[-1], src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(temporary, dir_fd=folder)
                raise
            finally:
                os.close(fd)
        finally:
            os.close(folder)
        self.target.tell()

    async def _fill(self, fd: int, header: dict[str, Any], records: _Records) -> None:
        left = _whole(header.get("s"))
        while left:
            data = await records.some(left)
            left -= len(data)
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        os.fchmod(fd, _whole(header.get("m")) & 0o777)
        mtime = _time(header.get("n"))
        os.utime(fd, ns=(mtime, mtime))


def _temporary() -> str:
    return f".ws-{secrets.token_hex(8)}"


def _time(value: object) -> int:
    return untrusted.number(value, -(1 << 62), 1 << 62)


def _whole(value: object) -> int:
    return untrusted.number(value, 0, 1 << 62)


@dataclass
class Target:
    """Where a download goes and how much it may bring."""

    host_path: str | PathLike[str]
    name: str
    """The file's name, where `host_path` is a directory."""
    limit: int
    progress: Progress | None = None
    files: int = 0
    bytes: int = 0

    def expect(self, size: int) -> None:
        """Counts a file; raises `NoSpace` where it is too much."""
        self.bytes += size
        self.files += 1
        if self.bytes > self.limit or self.files > MAX_FILES:
            raise NoSpace(
                errno.EFBIG,
                f"the download is larger than {self.limit} bytes or {MAX_FILES} files; give a larger max_bytes if that is meant",
                str(self.host_path),
            )

    def tell(self) -> None:
        if self.progress is not None:
            self.progress(self.bytes, None)


async def receive_tree(stream: Stream, target: Target) -> Downloaded:
    """Unpacks the records that come on `stream`: a directory into the target, a file to or into it."""
    try:
        return await _receive(stream, target)
    except OSError as error:
        if isinstance(error, WorkspaceError):
            raise
        raise host_error(error, str(target.host_path)) from error


async def _receive(stream: Stream, target: Target) -> Downloaded:
    records = _Records(stream)
    path = Path(target.host_path)
    header = await records.header()
    if header is None:
        await stream.result()  # raises what the guest says, before anything is made
        path.mkdir(parents=True, exist_ok=True)
        return Downloaded(0, 0)
    if header.get("p") == "" and header.get("t") == "file":
        return await _receive_file(records, header, path / target.name if path.is_dir() else path, target)
    path.mkdir(parents=True, exist_ok=True)
    root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await _receive_all(records, header, _Destination(root, target))
    finally:
        os.close(root)


async def _receive_file(records: _Records, header: dict[str, Any], path: Path, target: Target) -> Downloaded:
    path.parent.mkdir(parents=True, exist_ok=True)
    root = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        await _Destination(root, target).file([path.name], header, records)
    finally:
        os.close(root)
    return Downloaded(1, target.bytes)


async def _receive_all(records: _Records, first: dict[str, Any], destination: _Destination) -> Downloaded:
    header: dict[str, Any] | None = first
    skipped: list[str] = []
    directories: list[tuple[list[str], int, int]] = []
    while header is not None:
        parts, kind = _parts(header.get("p")), header.get("t")
        if kind == "directory":
            os.close(destination.folder(parts))
            directories.append((parts, _whole(header.get("m")), _time(header.get("n"))))
        elif kind == "symlink" and parts and _stays_inside(parts, str(header.get("l"))):
            destination.link(parts, str(header.get("l")))
        elif kind == "symlink":
            skipped.append("/".join(parts))
        elif kind == "file" and parts:
            await destination.file(parts, header, records)
        else:
            raise ProtocolError(f"the guest sent a record of type {kind!r:.40}")
        header = await records.header()
    for parts, mode, mtime in reversed(directories):
        destination.dress(parts, mode | 0o700, mtime)
    return Downloaded(destination.target.files, destination.target.bytes, tuple(skipped))

"""Files of a workspace. Every operation is done by the guest, inside; nothing here opens a path of the workspace."""

from __future__ import annotations

import builtins
import errno
import posixpath
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from operator import itemgetter
from os import PathLike
from typing import IO, Any

from workspace import fileinfo, transfer, untrusted
from workspace.content import encode, to_bytes
from workspace.errors import FileError, FileMissing, InvalidArgument, PathNotDirectory, WorkspaceGone
from workspace.fileinfo import FileEvent, FileInfo, Match
from workspace.link import Progress, Stream
from workspace.session import Session

Content = str | bytes | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes] | IO[bytes]
COPY_BYTES = 256 * 1024


async def send_content(stream: Stream, content: Content, progress: Progress | None = None) -> None:
    """Sends a file's content, however it is given, piece by piece, then its end."""
    if isinstance(content, (str, bytes, bytearray, memoryview)):
        data = to_bytes(content, "content")
        if progress is None:
            await stream.send(data, end=True)
            return
        content = _slices(memoryview(data))
    done = 0
    async for part in _parts(content):
        if not await stream.send(to_bytes(part, "content")):
            return
        done += len(part)
        if progress is not None:
            progress(done, None)
    await stream.send(b"", end=True)


def _slices(view: memoryview) -> Iterable[bytes]:
    for at in range(0, len(view), COPY_BYTES):
        yield bytes(view[at : at + COPY_BYTES])


async def _parts(content: Iterable[bytes] | AsyncIterable[bytes] | IO[bytes]) -> AsyncIterator[bytes]:
    if isinstance(content, AsyncIterable):
        async for part in content:
            yield part
    elif hasattr(content, "read"):
        while part := content.read(COPY_BYTES):
            yield part
    else:
        for part in content:
            yield part


async def lines(stream: Stream) -> AsyncIterator[bytes]:
    """DATA cut at newlines."""
    tail = b""
    async for _, data in stream:
        *whole, tail = (tail + data).split(b"\n")
        for line in whole:
            yield line


class AsyncWatch:
    """Changes below a directory, from the moment `async with` is entered. Iterate for events; leaving it ends it."""

    def __init__(self, session: Session, path: str, base: str, recursive: bool) -> None:
        self._base = base
        self._session = session
        self._context = session.stream("watch.start", path, recursive=recursive)
        self._stream: Stream | None = None

    async def __aenter__(self) -> AsyncWatch:
        stream = await self._context.__aenter__()
        try:
            await stream.event()
        except BaseException as error:
            await self._context.__aexit__(type(error), error, error.__traceback__)
            raise
        self._stream = stream
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._context.__aexit__(None, None, None)
        self._stream = None

    async def __aiter__(self) -> AsyncIterator[FileEvent]:
        if self._stream is None:
            raise InvalidArgument("a watch is used with `async with` before it is iterated over")
        async for line in lines(self._stream):
            for values in untrusted.items(untrusted.load(line)):
                yield fileinfo.event(values, self._base)
        try:
            await self._stream.result()
        except WorkspaceGone as error:
            raise await self._session.explain(error) from error


class AsyncFiles:
    """`ws.files`. A path is absolute or relative to /workspace; `~` is /home/user.

    Errors are `FileError`s, each also the builtin one expects: `FileNotFoundError`, `IsADirectoryError`, ….
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def _where(self, path: str | PathLike[str]) -> str:
        text = path if isinstance(path, str) else str(path)
        if "\0" in text or not text:
            raise InvalidArgument(f"path {text[:200]!r} is empty or holds a NUL character")
        encode(text, "the path")
        return text

    def _base(self, path: str) -> str:
        return fileinfo.absolute(path, str(self._session.hello.get("home", "/home/user")))

    def _info(self, reply: dict[str, Any], path: str) -> FileInfo:
        return fileinfo.info(reply.get("row"), self._base(path))

    async def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of a file, from `offset` on, at most `length`."""
        return b"".join([part async for part in self.read_stream(path, offset, length)])

    async def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        """A whole file as text; line ends stay as they are."""
        return (await self.read(path)).decode(encoding, errors)

    async def read_stream(self, path: str, offset: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """The bytes of a file piece by piece, in flat memory."""
        where = self._where(path)
        if offset < 0 or (length is not None and length < 0):
            raise InvalidArgument(f"offset={offset!r} and length={length!r} cannot be negative")
        async with self._session.stream("file.read", where, offset=offset, length=length) as stream:
            async for _, data in stream:
                yield data
            await stream.result()

    async def write(
        self, path: str, content: Content, *, mode: int | None = None, exclusive: bool = False, progress: Progress | None = None
    ) -> FileInfo:
        """Writes a whole file in one step: readers see the old content or the new. Directories are made as needed.

        An existing file keeps its mode, owner and extended attributes; a symlink is followed. `mode` sets the mode.
        `exclusive` refuses an existing file. `content` may be a stream: bytes in pieces, or an open binary file.
        """
        where = self._where(path)
        async with self._session.stream("file.write", where, mode=mode, exclusive=exclusive) as stream:
            await send_content(stream, content, progress)
            return self._info(await stream.result(), where)

    async def write_many(self, files: Mapping[str, str | bytes]) -> int:
        """Writes many files in one go, each in one step; how many. The fast way for small files."""
        async with self._session.stream("transfer.write", "/workspace", absolute=True) as stream:
            await transfer.send_files(stream, {self._where(path): content for path, content in files.items()})
            return untrusted.number((await stream.result()).get("count"), 0)

    async def append(self, path: str, content: Content) -> FileInfo:
        """Adds to the end of a file, which is made where it is missing."""
        where = self._where(path)
        async with self._session.stream("file.append", where) as stream:
            await send_content(stream, content)
            return self._info(await stream.result(), where)

    async def patch(self, path: str, offset: int, content: Content, truncate: int | None = None) -> FileInfo:
        """Overwrites bytes from `offset` on, in place; `truncate` cuts or extends the file to that size first."""
        where = self._where(path)
        async with self._session.stream("file.patch", where, offset=offset, truncate=truncate) as stream:
            await send_content(stream, content)
            return self._info(await stream.result(), where)

    async def edit(
        self, path: str, old: str | bytes, new: str | bytes, *, expected_version: str | None = None, count: int | None = 1
    ) -> FileInfo:
        """Replaces `old` by `new`; every other byte stays, whatever the encoding and the line ends.

        `old` has to occur `count` times (None: any number, at least once), else `EditMismatch`. With
        `expected_version` (`stat(path).version` of when it was read) a file that changed since is refused with
        `FileChanged`. Nothing is written on an error.
        """
        where = self._where(path)
        before, after = bytes(to_bytes(old, "old")), bytes(to_bytes(new, "new"))
        if not before:
            raise InvalidArgument("old is empty; use write or append")
        request = {"old_length": len(before), "expected_version": expected_version, "count": count}
        async with self._session.stream("file.edit", where, **request) as stream:
            await stream.send(before + after, end=True)
            return self._info(await stream.result(), where)

    async def list(self, path: str = ".", depth: int | None = 1) -> builtins.list[FileInfo]:
        """The entries of a directory, sorted by path; `depth` levels down (None: all). Links are not followed."""
        return sorted([entry async for entry in self._tree("tree.list", path, depth=depth)], key=itemgetter(0))

    async def walk(self, path: str = ".", depth: int | None = None) -> AsyncIterator[FileInfo]:
        """Everything below a directory, as it is found, parents before children."""
        async for entry in self._tree("tree.list", path, depth=depth):
            yield entry

    async def glob(self, pattern: str, path: str = ".") -> builtins.list[FileInfo]:
        """Entries below `path` that match: `*` and `?` within a name, `**` across directories, `[a-z]`, `{a,b}`."""
        if not pattern or pattern.startswith("/"):
            raise InvalidArgument(f"pattern {pattern!r} has to be relative to path")
        return sorted([entry async for entry in self._tree("tree.glob", path, pattern=pattern)], key=itemgetter(0))

    async def _tree(self, method: str, path: str, **params: Any) -> AsyncIterator[FileInfo]:
        where = self._where(path)
        if params.get("depth") is not None and params["depth"] < 1:
            raise InvalidArgument(f"depth={params['depth']!r} has to be at least 1, or None for all")
        base = self._base(where)
        async with self._session.stream(method, where, **params) as stream:
            async for line in lines(stream):
                for entry in fileinfo.rows(line, base):
                    yield entry
            await stream.result()

    async def grep(
        self,
        pattern: str,
        path: str = ".",
        *,
        glob: str | None = None,
        fixed: bool = False,
        ignore_case: bool = False,
        max_matches: int | None = 1000,
    ) -> builtins.list[Match]:
        """Lines that match a regular expression (Python's `re`), or hold a `fixed` text. Binary files are left out."""
        where = self._where(path)
        if max_matches is not None and max_matches < 1:
            raise InvalidArgument(f"max_matches={max_matches!r} has to be at least 1, or None for all")
        base = self._base(where)
        request = {"pattern": pattern, "glob": glob, "fixed": fixed, "ignore_case": ignore_case, "max_matches": max_matches}
        async with self._session.stream("guest.grep", where, **request) as stream:
            found = [fileinfo.match(line, base) async for line in lines(stream)]
            await stream.result()
        if found and (await self.stat(where)).type == "file":
            return [entry._replace(path=base) for entry in found]
        return found

    async def stat(self, path: str, follow_symlinks: bool = True) -> FileInfo:
        where = self._where(path)
        return self._info(await self._session.call("file.stat", where, follow=follow_symlinks), where)

    async def exists(self, path: str) -> bool:
        """Whether there is something at `path`; a dangling symlink is nothing."""
        try:
            await self.stat(path)
        except (FileMissing, PathNotDirectory):
            return False
        except FileError as error:
            if error.errno != errno.ELOOP:
                raise
            return False
        return True

    async def mkdir(self, path: str, *, parents: bool = True, exist_ok: bool = True) -> FileInfo:
        where = self._where(path)
        return self._info(await self._session.call("file.mkdir", where, parents=parents, exist_ok=exist_ok), where)

    async def move(self, path: str, target: str, *, overwrite: bool = True) -> FileInfo:
        """Renames a file or directory; parents of `target` are made."""
        request = {"target": self._where(target), "overwrite": overwrite}
        try:
            return self._info(await self._session.call("file.move", self._where(path), **request), target)
        except FileError as error:
            if error.errno != errno.EXDEV:
                raise
        moved = await self.copy(path, target, overwrite=overwrite)
        await self.remove(path, recursive=True)
        return moved

    async def copy(self, path: str, target: str, *, overwrite: bool = True) -> FileInfo:
        """Copies a file or a whole directory with modes, times and links."""
        async with self._session.stream("tree.copy", self._where(path), target=self._where(target), overwrite=overwrite) as stream:
            await stream.result()
        return await self.stat(target, follow_symlinks=False)

    async def remove(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        """Removes a file, a link itself, an empty directory, or with `recursive` a whole one."""
        async with self._session.stream("tree.remove", self._where(path), recursive=recursive, missing_ok=missing_ok) as stream:
            await stream.result()

    async def chmod(self, path: str, mode: int) -> FileInfo:
        where = self._where(path)
        if not 0 <= mode <= 0o7777:
            raise InvalidArgument(f"mode={mode!r} is not between 0 and 0o7777")
        return self._info(await self._session.call("file.chmod", where, mode=mode), where)

    async def symlink(self, path: str, target: str) -> FileInfo:
        """Makes `path` a symbolic link to `target`."""
        where = self._where(path)
        return self._info(await self._session.call("file.symlink", where, target=self._where(target)), where)

    async def upload(
        self, host_path: str | PathLike[str], path: str = ".", *, exclude: Iterable[str] = (), progress: Progress | None = None
    ) -> int:
        """Copies a file or a directory of this machine into the workspace, in flat memory; how many entries.

        A directory's contents go into the directory `path`; a file goes to `path`, or into it where that is an
        existing directory or ends in `/`. `exclude` are glob patterns, matched against names and relative paths.
        """
        where = self._where(path)
        source = transfer.HostTree(host_path, tuple(exclude))
        if not source.is_directory and (where.endswith("/") or where == "." or await self._is_directory(where)):
            where = posixpath.join(where, source.root.name)
        async with self._session.stream("transfer.write", where) as stream:
            await transfer.send_tree(stream, source, progress)
            return untrusted.number((await stream.result()).get("count"), 0)

    async def _is_directory(self, path: str) -> bool:
        try:
            return (await self.stat(path)).type == "directory"
        except (FileMissing, PathNotDirectory):
            return False

    async def download(
        self, path: str, host_path: str | PathLike[str], *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> transfer.Downloaded:
        """Copies a file or a directory out, in flat memory. Existing files are replaced, others stay.

        Nothing is written outside `host_path`, whatever the workspace holds: links that lead out of the tree are
        left out and named in the answer's `skipped`, together with FIFOs, sockets and devices. More than
        `max_bytes` (default: the workspace's disk limit; sparse files count in full) is refused with `NoSpace`.
        """
        where = self._where(path)
        async with self._session.stream("transfer.read", where) as stream:
            limit = max_bytes if max_bytes is not None else self._session.sandbox.spec.resources.disk_bytes
            target = transfer.Target(host_path, posixpath.basename(self._base(where)), limit, progress)
            received = await transfer.receive_tree(stream, target)
            return received.told(await stream.result())

    def watch(self, path: str = ".", *, recursive: bool = True) -> AsyncWatch:
        """Changes below a directory: `async with ws.files.watch() as changes: async for change in changes: …`."""
        where = self._where(path)
        return AsyncWatch(self._session, where, self._base(where), recursive)

    @asynccontextmanager
    async def writer(self, path: str, *, mode: int | None = None, exclusive: bool = False) -> AsyncIterator[Callable[[bytes], Any]]:
        """An async function that takes a new file's bytes; the file appears when the block ends without an error."""
        async with self._session.stream("file.write", self._where(path), mode=mode, exclusive=exclusive) as stream:
            yield stream.send
            await stream.send(b"", end=True)
            await stream.result()

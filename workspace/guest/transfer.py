"""A tree as one stream of records, in both directions: for uploads, downloads and many small files at once.

A record is a length (u32), a JSON header of that length and, for files, the content::

    {"p": path, "t": "file" | "directory" | "symlink", "m": mode, "s": size, "n": mtime_ns, "l": link target}
"""

from __future__ import annotations

import os
import stat
import struct

from . import codec
from .faults import Fault
from .files import READ_CHUNK, Replacement, make_folder, open_regular, write_all
from .loop import Pause
from .trees import walk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Stream
    from .paths import Paths

LENGTH = struct.Struct("!I")
MAX_HEADER = 64 * 1024


def pack_record(header: dict[str, Any]) -> bytes:
    """The bytes that precede a record's content."""
    body = codec.encode(header)
    return LENGTH.pack(len(body)) + body


class Reader:
    """Takes exact numbers of bytes out of a stream's DATA."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._data = b""
        self._at = 0

    async def take(self, size: int) -> bytes:
        """Exactly `size` bytes; fewer only where the stream ends."""
        while len(self._data) - self._at < size:
            more = await self._stream.read()
            if not more:
                break
            self._data = self._data[self._at :] + more
            self._at = 0
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    async def take_some(self, size: int) -> bytes:
        """At least one byte and at most `size`."""
        if self._at == len(self._data):
            self._data, self._at = await self._stream.read(), 0
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    async def header(self) -> dict[str, Any] | None:
        """The next record's header, None at the end."""
        raw = await self.take(LENGTH.size)
        if not raw:
            return None
        length = LENGTH.unpack(raw)[0] if len(raw) == LENGTH.size else MAX_HEADER + 1
        if length > MAX_HEADER:
            raise Fault("EPROTO", "a malformed record")
        return codec.decode(await self.take(length))


def _below(root: str, path: str) -> str:
    return os.path.join(root, path) if path else root


class Transfer:
    """The requests `transfer.*`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    async def write(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Unpacks the records that come as DATA, their paths relative to `path`."""
        root = self._paths.real(request["path"])
        reader = Reader(stream)
        directories: list[tuple[str, dict[str, Any]]] = []
        count = 0
        while True:
            header = await reader.header()
            if header is None:
                break
            path = self._paths.real(header["p"]) if request.get("absolute") else _below(root, header["p"])
            await self._unpack(reader, path, header, directories)
            count += 1
        for path, header in reversed(directories):
            os.chmod(path, header["m"])
            os.utime(path, ns=(header["n"], header["n"]))
        return {"count": count}

    async def _unpack(self, reader: Reader, path: str, header: dict[str, Any], directories: list[Any]) -> None:
        kind = header["t"]
        if kind == "directory":
            make_folder(path)
            if header.get("m") is not None:
                directories.append((path, header))
        elif kind == "symlink":
            make_folder(os.path.dirname(path))
            if os.path.islink(path) or os.path.isfile(path):
                os.unlink(path)
            os.symlink(header["l"], path)
        else:
            await self._unpack_file(reader, path, header)

    async def _unpack_file(self, reader: Reader, path: str, header: dict[str, Any]) -> None:
        new = Replacement(path, header.get("m"))
        left = header["s"]
        try:
            while left:
                data = await reader.take_some(left)
                if not data:
                    raise Fault("EPROTO", "the stream ended inside a file", path=header["p"])
                write_all(new.fd, data)
                left -= len(data)
            if header.get("n") is not None:
                os.utime(new.fd, ns=(header["n"], header["n"]))
        except BaseException:
            new.abandon()
            raise
        new.commit()

    async def read(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Sends `path` as records; the answer names what was left out (neither file, directory
        nor link, or unreadable) and what shrank while it was read (filled up with zeros)."""
        root = self._paths.real(request["path"])
        info = os.stat(root)
        report: dict[str, Any] = {"skipped": [], "changed": []}
        if not stat.S_ISDIR(info.st_mode):
            os.close(open_regular(root, os.O_RDONLY))  # a FIFO, a device, an unreadable file
            await self._pack(stream, "", root, info, report)
            return report
        async for name, path, entry in walk(root, None, unread=report["skipped"]):
            await self._pack(stream, name, path, entry, report)
        return report

    async def _pack(self, stream: Stream, name: str, path: str, info: os.stat_result, report: dict[str, Any]) -> None:
        header: dict[str, Any] = {"p": name, "m": stat.S_IMODE(info.st_mode), "n": info.st_mtime_ns}
        if stat.S_ISDIR(info.st_mode):
            await stream.write(pack_record(dict(header, t="directory")))
        elif stat.S_ISLNK(info.st_mode):
            await stream.write(pack_record(dict(header, t="symlink", l=os.readlink(path))))
        elif stat.S_ISREG(info.st_mode):
            await self._pack_file(stream, dict(header, t="file"), path, report)
        else:
            report["skipped"].append(name)

    async def _pack_file(self, stream: Stream, header: dict[str, Any], path: str, report: dict[str, Any]) -> None:
        """Sends as many bytes as the header says, whatever happens to the file meanwhile."""
        try:
            fd = open_regular(path, os.O_RDONLY)
        except (OSError, Fault):
            report["skipped"].append(header["p"])
            return
        try:
            left = header["s"] = os.fstat(fd).st_size
            await stream.write(pack_record(header))
            while left:
                data = os.read(fd, min(left, READ_CHUNK))
                if not data:  # it shrank; the header has promised more
                    data = b"\0" * min(left, READ_CHUNK)
                    if header["p"] not in report["changed"]:
                        report["changed"].append(header["p"])
                await stream.write(data)
                left -= len(data)
                await Pause()
        finally:
            os.close(fd)

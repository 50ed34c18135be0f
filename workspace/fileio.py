"""Files of a workspace as Python file objects."""

from __future__ import annotations

import io
import sys
from typing import IO, TYPE_CHECKING, Any

from workspace.errors import InvalidArgument

if TYPE_CHECKING:
    from workspace.sync import Files

BUFFER = 256 * 1024
MODES = frozenset({"r", "w", "x", "a", "r+"})


class _Reader(io.RawIOBase):
    """Random reads."""

    def __init__(self, files: Files, path: str) -> None:
        info = files.stat(path)
        if info.type != "file":
            files.read(path, 0, 0)  # raises what the guest says of it
        self._files, self._path, self._at = files, path, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence)
        if start is None:
            start = self._files.stat(self._path).size
        if start + offset < 0:
            raise InvalidArgument(f"seek to {start + offset} is before the start of {self._path!r}")
        self._at = start + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        data = self._files.read(self._path, self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Updater(_Reader):
    """Reads and overwrites in place."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._files.patch(self._path, self._at, bytes(data))
        self._at += size
        return size

    def truncate(self, size: int | None = None) -> int:
        size = self._at if size is None else size
        self._files.patch(self._path, 0, b"", truncate=size)
        return size


class _Writer(io.RawIOBase):
    """A new file that appears when it is closed; nothing appears where the block ends with an error."""

    def __init__(self, files: Files, path: str, exclusive: bool) -> None:
        if exclusive and files.exists(path):
            files.write(path, b"", exclusive=True)  # raises FileExistsError
        self._context = files.writer(path, exclusive=exclusive)
        self._send = self._context.__enter__()
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        self._send(bytes(data))
        size = memoryview(data).nbytes
        self._at += size
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            if not sys.is_finalizing():
                self._context.__exit__(None, None, None)

    def abandon(self, error: BaseException) -> None:
        """Ends without a file."""
        super().close()
        try:
            self._context.__exit__(type(error), error, error.__traceback__)
        except type(error):
            return


class _Appender(io.RawIOBase):
    def __init__(self, files: Files, path: str) -> None:
        files.append(path, b"")
        self._files, self._path = files, path

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._files.append(self._path, bytes(data))
        return memoryview(data).nbytes


class _BufferedWriter(io.BufferedWriter):
    """Forgets everything where its `with` block ends with an error."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        raw = self.raw
        if error is not None and isinstance(raw, _Writer):
            raw.abandon(error)
            return
        super().__exit__(kind, error, trace)


class _TextWriter(io.TextIOWrapper):
    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if error is not None and isinstance(self.buffer, _BufferedWriter):
            self.buffer.__exit__(kind, error, trace)
            return
        super().__exit__(kind, error, trace)


def open_file(files: Files, path: str, mode: str, *, encoding: str | None, errors: str | None, newline: str | None) -> IO[Any]:
    """What `Files.open` returns."""
    kind = mode.replace("b", "").replace("t", "")
    if kind not in MODES or ("b" in mode and ("t" in mode or encoding is not None)):
        raise InvalidArgument(f"mode {mode!r} is not one of r, w, x, a, r+, each with b or as text")
    binary: IO[Any]
    if kind == "r":
        binary = io.BufferedReader(_Reader(files, path), BUFFER)
    elif kind == "r+":
        binary = io.BufferedRandom(_Updater(files, path), BUFFER)
    elif kind == "a":
        binary = io.BufferedWriter(_Appender(files, path), BUFFER)
    else:
        binary = _BufferedWriter(_Writer(files, path, kind == "x"), BUFFER)
    if "b" in mode:
        return binary
    return _TextWriter(binary, encoding or "utf-8", errors, newline)

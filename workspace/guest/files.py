"""Single files and directories: stat, read, write, edit, make, move, remove."""

from __future__ import annotations

import errno
import os
import stat
from binascii import hexlify

from .faults import Fault
from .loop import Pause

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Stream
    from .paths import Paths

READ_CHUNK = 128 * 1024
TEMPORARY = ".ws-new-"
TEMPORARY_LENGTH = len(TEMPORARY) + 16
"""Files of this name and length are ours, on their way into place; listings and watches do not show them."""
MAX_EDIT = 64 * 1024 * 1024
_TYPES = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def version(info: os.stat_result) -> str:
    """Changes whenever the file's content may have changed."""
    return "%x-%x-%x-%x" % (info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def row(name: str, path: str, info: os.stat_result) -> list[Any]:
    """One entry as it travels: name, type, mode, size, mtime_ns, uid, gid, version, link target."""
    kind = _TYPES.get(stat.S_IFMT(info.st_mode), "device")
    target = None
    if kind == "symlink":
        try:
            target = os.readlink(path)
        except OSError:
            target = ""
    return [name, kind, info.st_mode & 0o7777, info.st_size, info.st_mtime_ns, info.st_uid, info.st_gid, version(info), target]


def open_regular(path: str, flags: int) -> int:
    """Opens a regular file and nothing else; never blocks on a FIFO or a device."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return fd
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise Fault("not_regular", "not a regular file but a %s" % _TYPES.get(stat.S_IFMT(mode), "device"), path=path)


def make_folder(path: str) -> None:
    """`path` and its parents; what is there and no directory is `NotADirectoryError`."""
    try:
        os.makedirs(path, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path) from None


def write_all(fd: int, data: bytes) -> None:
    written = os.write(fd, data)
    while written < len(data):
        data = data[written:]
        written = os.write(fd, data)


class Replacement:
    """A file's new content, written beside it and put in its place in one step; mode, owner and xattrs are kept.

    A symlink is followed. Where the directory admits no new file, the old one is overwritten in place.
    """

    def __init__(self, path: str, mode: int | None, exclusive: bool = False) -> None:
        self._target = path
        self._exclusive = exclusive
        self._temporary: str | None = None
        old = self._examine()
        if exclusive and old is not None:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        keep = stat.S_IMODE(old.st_mode) if old is not None else 0o644
        self._mode = mode if old is None else keep if mode is None else mode
        self.fd = self._open(keep, old)
        try:
            if old is not None:
                self._dress(old)
        except OSError:
            self.abandon()
            raise

    def _examine(self) -> os.stat_result | None:
        try:
            old = os.lstat(self._target)
            if stat.S_ISLNK(old.st_mode):
                self._target = os.path.realpath(self._target)
                old = os.lstat(self._target)
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(old.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self._target)
        if not stat.S_ISREG(old.st_mode):
            raise Fault("not_regular", "not a regular file", path=self._target)
        if not os.access(self._target, os.W_OK, effective_ids=True):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), self._target)
        return old

    def _open(self, mode: int, old: os.stat_result | None) -> int:
        folder = os.path.dirname(self._target)
        self._temporary = "%s/%s%s" % (folder, TEMPORARY, hexlify(os.urandom(8)).decode())
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            return os.open(self._temporary, flags, mode)
        except FileNotFoundError:
            make_folder(folder)
            return os.open(self._temporary, flags, mode)
        except PermissionError:
            self._temporary = None
            if old is None:
                raise
            return open_regular(self._target, os.O_WRONLY | os.O_TRUNC)

    def _dress(self, old: os.stat_result) -> None:
        if self._temporary is None:
            return
        self._keep_owner(old)
        for name in os.listxattr(self._target):
            try:
                os.setxattr(self.fd, name, os.getxattr(self._target, name))
            except PermissionError:
                continue  # an attribute that only the system sets

    def _keep_owner(self, old: os.stat_result) -> None:
        now = os.fstat(self.fd)
        if (now.st_uid, now.st_gid) != (old.st_uid, old.st_gid):
            try:
                os.fchown(self.fd, old.st_uid, old.st_gid)
            except PermissionError:
                pass  # only root gives files away

    def commit(self) -> dict[str, Any]:
        """Puts the new content in place; the answer is the file's new row."""
        try:
            if self._mode is not None:
                os.fchmod(self.fd, self._mode)  # last: a write clears the setuid bits (write(2))
            if self._temporary is not None:
                self._put_in_place(self._temporary)
            info = os.fstat(self.fd)
        except OSError:
            self.abandon()
            raise
        os.close(self.fd)
        return {"row": row(os.path.basename(self._target), self._target, info)}

    def _put_in_place(self, temporary: str) -> None:
        if self._exclusive:
            os.link(temporary, self._target)  # fails where there is something by now
            os.unlink(temporary)
        else:
            os.rename(temporary, self._target)
        self._temporary = None

    def abandon(self) -> None:
        os.close(self.fd)
        if self._temporary is not None:
            os.unlink(self._temporary)


class Files:
    """The requests `file.*` that concern one entry."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def stat(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """One entry; a symlink itself unless `follow`."""
        path = self._paths.real(request["path"])
        info = os.stat(path) if request.get("follow") else os.lstat(path)
        return {"row": row(os.path.basename(path.rstrip("/")), path, info)}

    async def read(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """DATA from `offset` on, `length` bytes or to the end of file."""
        path = self._paths.real(request["path"])
        fd = open_regular(path, os.O_RDONLY)
        try:
            info = os.fstat(fd)
            offset, left = request.get("offset", 0), request.get("length")
            if offset:
                os.lseek(fd, offset, os.SEEK_SET)
            while left is None or left > 0:
                data = os.read(fd, READ_CHUNK if left is None else min(READ_CHUNK, left))
                if not data:
                    break
                if left is not None:
                    left -= len(data)
                if len(data) <= stream.room:
                    stream.send(data)
                else:
                    await stream.write(data)
                if len(data) < READ_CHUNK:
                    continue
                await Pause()
        finally:
            os.close(fd)
        return {"row": row(os.path.basename(path), path, info)}

    async def write(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Replaces or creates a file with the DATA that comes until END; nothing changes before END."""
        path = self._paths.real(request["path"])
        new = Replacement(path, request.get("mode"), request.get("exclusive", False))
        try:
            while True:
                data = await stream.read()
                if not data:
                    break
                write_all(new.fd, data)
        except BaseException:
            new.abandon()
            raise
        return new.commit()

    async def append(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Adds DATA to the end of a file, which is created where it is missing."""
        path = self._paths.real(request["path"])
        if os.path.islink(path):
            path = os.path.realpath(path)
        try:
            fd = open_regular(path, os.O_WRONLY | os.O_APPEND)
        except FileNotFoundError:
            make_folder(os.path.dirname(path))
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            while True:
                data = await stream.read()
                if not data:
                    return {"row": row(os.path.basename(path), path, os.fstat(fd))}
                write_all(fd, data)
        finally:
            os.close(fd)

    async def patch(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Writes DATA at `offset` without replacing the file; `truncate` cuts it to a size first. For open()."""
        path = self._paths.real(request["path"])
        fd = open_regular(path, os.O_WRONLY)
        try:
            if request.get("truncate") is not None:
                os.ftruncate(fd, request["truncate"])
            offset = request.get("offset", 0)
            while True:
                data = await stream.read()
                if not data:
                    return {"row": row(os.path.basename(path), path, os.fstat(fd))}
                while data:
                    written = os.pwrite(fd, data, offset)
                    offset += written
                    data = data[written:]
        finally:
            os.close(fd)

    async def edit(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Replaces bytes in a file: DATA is the old bytes followed by the new ones, `old_length` says where they part."""
        path = self._paths.real(request["path"])
        body = b""
        while True:
            data = await stream.read()
            if not data:
                break
            body += data
        old, new = body[: request["old_length"]], body[request["old_length"] :]
        content, before = self._read_for_edit(path, request.get("expected_version"))
        count = content.count(old)
        expected = request.get("count")
        if not count or (expected is not None and count != expected):
            raise Fault("edit_count", "the text to replace occurs %d times" % count, path=request["path"], found=count)
        replacement = Replacement(path, None)
        try:
            write_all(replacement.fd, content.replace(old, new))
            if version(os.stat(path)) != before:
                raise Fault("changed", "the file was changed while it was edited", path=request["path"])
        except BaseException:
            replacement.abandon()
            raise
        return dict(replacement.commit(), count=count)

    def _read_for_edit(self, path: str, expected: str | None) -> tuple[bytes, str]:
        fd = open_regular(path, os.O_RDONLY)
        try:
            info = os.fstat(fd)
            if expected is not None and version(info) != expected:
                raise Fault("changed", "the file was changed since it was read", path=path, version=version(info))
            if info.st_size > MAX_EDIT:
                raise Fault("EFBIG", "a file of %d bytes is over the limit of %d for edit" % (info.st_size, MAX_EDIT), path=path)
            parts: list[bytes] = []
            while True:
                data = os.read(fd, 1 << 20)
                if not data:
                    return b"".join(parts), version(info)
                parts.append(data)
        finally:
            os.close(fd)

    def mkdir(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        path = self._paths.real(request["path"])
        if request.get("parents", True):
            os.makedirs(path, exist_ok=request.get("exist_ok", True))
        else:
            os.mkdir(path)
        return {"row": row(os.path.basename(path.rstrip("/")), path, os.lstat(path))}

    def move(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Renames; across file systems it fails with EXDEV, and the host copies and removes."""
        source, target = self._paths.real(request["path"]), self._paths.real(request["target"])
        os.lstat(source)
        if not request.get("overwrite", True) and os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        make_folder(os.path.dirname(target.rstrip("/")) or "/")
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise Fault("EXDEV", "source and target lie on different file systems", path=request["path"]) from None
        return {"row": row(os.path.basename(target), target, os.lstat(target))}

    def chmod(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        path = self._paths.real(request["path"])
        os.chmod(path, request["mode"])
        return {"row": row(os.path.basename(path.rstrip("/")), path, os.stat(path))}

    def symlink(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        path = self._paths.real(request["path"])
        os.symlink(request["target"], path)
        return {"row": row(os.path.basename(path), path, os.lstat(path))}

"""Changes below a directory as events, by inotify(7); moves within the tree are told as moves."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct

from . import codec
from .channel import LATER
from .faults import Fault
from .files import TEMPORARY, TEMPORARY_LENGTH
from .loop import READ
from .sealing import _libc
from .trees import scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Stream
    from .loop import Loop, Timer
    from .paths import Paths

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE = 0x2, 0x4, 0x8
IN_MOVED_FROM, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400
IN_Q_OVERFLOW, IN_IGNORED, IN_ONLYDIR, IN_DONT_FOLLOW, IN_ISDIR = 0x4000, 0x8000, 0x1000000, 0x2000000, 0x40000000
IN_NONBLOCK, IN_CLOEXEC = 0o4000, 0o2000000
MASK = IN_MODIFY | IN_ATTRIB | IN_MOVED_FROM | IN_MOVED_TO | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_ONLYDIR
EVENT = struct.Struct("iIII")
MOVE_WAIT_S = 0.05
"""How long the second half of a move may be away before it is told as a removal."""
MAX_WAITING = 512 * 1024


class Watch:
    """One watched directory and its stream of events."""

    def __init__(self, loop: Loop, stream: Stream, root: str, recursive: bool) -> None:
        self._loop = loop
        self._stream = stream
        self._root = root
        self._recursive = recursive
        self._folders: dict[int, str] = {}
        self._moves: dict[int, tuple[str, bool]] = {}
        self._arriving: set[int] = set()
        self._timer: Timer | None = None
        self._waiting: list[list[Any]] = []
        self._overflow = False
        self._fd = _libc.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            self._add("", root)
        except OSError:
            os.close(self._fd)
            raise
        loop.watch(self._fd, READ, self._on_events)
        stream.passive = True
        stream.on_cancel = self._stop
        stream.on_room = self._send

    def _add(self, relative: str, path: str) -> None:
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), MASK | (IN_DONT_FOLLOW if relative else 0))
        if number < 0:
            code = ctypes.get_errno()
            if relative and code in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return
            if code == errno.ENOSPC:
                raise Fault("ENOSPC", "the kernel's limit of inotify watches is reached", path=path)
            raise OSError(code, os.strerror(code), path)
        self._folders[number] = relative
        if self._recursive:
            for name, below, info in self._entries(path):
                if stat.S_ISDIR(info.st_mode):
                    self._add(relative + name + "/", below)

    def _entries(self, path: str) -> list[tuple[str, str, os.stat_result]]:
        try:
            return sorted(scan(path))
        except OSError:
            return []

    def _on_events(self, events: int) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, mask, cookie, length = EVENT.unpack_from(data, at)
            at += EVENT.size + length
            name = data[at - length : at].rstrip(b"\0")
            self._on_event(number, mask, cookie, os.fsdecode(name))
        self._send()

    def _on_event(self, number: int, mask: int, cookie: int, name: str) -> None:
        if mask & IN_Q_OVERFLOW:
            self._tell("overflow", "", False)
            return
        folder = self._folders.get(number)
        if folder is None:
            return
        if name.startswith(TEMPORARY) and len(name) == TEMPORARY_LENGTH:
            self._on_temporary(mask, cookie)
            return
        path, is_directory = folder + name, bool(mask & IN_ISDIR)
        if mask & IN_IGNORED:
            del self._folders[number]
        elif mask & IN_MOVED_FROM:
            self._moves[cookie] = (path, is_directory)
            self._timer = self._timer or self._loop.after(MOVE_WAIT_S, self._give_up_moves)
        elif mask & IN_MOVED_TO:
            self._moved_to(path, cookie, is_directory)
        elif mask & IN_CREATE:
            self._created(path, is_directory)
        elif mask & IN_DELETE:
            self._tell("removed", path, is_directory)
        elif mask & IN_MODIFY:
            self._tell("modified", path, is_directory)
        elif mask & IN_ATTRIB and name:
            self._tell("metadata", path, is_directory)
        elif mask & IN_DELETE_SELF and not folder:
            self._tell("removed", "", True)

    def _on_temporary(self, mask: int, cookie: int) -> None:
        """Our own writes: only their arrival is told, as the file's creation or change."""
        if mask & IN_MOVED_FROM:
            self._arriving.add(cookie)

    def _moved_to(self, path: str, cookie: int, is_directory: bool) -> None:
        if cookie in self._arriving:
            self._arriving.remove(cookie)
            self._tell("modified", path, False)
            return
        source = self._moves.pop(cookie, None)
        if source is None:
            self._created(path, is_directory)
            return
        if is_directory:
            old = source[0] + "/"
            for number, folder in self._folders.items():
                if folder.startswith(old):
                    self._folders[number] = path + "/" + folder[len(old) :]
        self._tell("moved", path, is_directory, source[0])

    def _created(self, path: str, is_directory: bool) -> None:
        self._tell("created", path, is_directory)
        if is_directory and self._recursive:
            self._add(path + "/", self._root + "/" + path)
            for name, _, info in self._entries(self._root + "/" + path):
                # Made before our watch was: inotify does not tell of them.
                self._created(path + "/" + name, stat.S_ISDIR(info.st_mode))

    def _give_up_moves(self) -> None:
        self._timer = None
        moves, self._moves = self._moves, {}
        for path, is_directory in moves.values():
            self._tell("removed", path, is_directory)
        self._send()

    def _tell(self, kind: str, path: str, is_directory: bool, source: str | None = None) -> None:
        event = [kind, path, is_directory, source]
        if self._waiting and self._waiting[-1] == event:
            return
        if len(self._waiting) > MAX_WAITING // 64:
            self._overflow = True
            return
        self._waiting.append(event)

    def _send(self) -> None:
        while self._waiting:
            batch = codec.encode(self._waiting[:64]) + b"\n"
            if self._stream.room < len(batch):
                return
            del self._waiting[:64]
            self._stream.send(batch)
        if self._overflow:
            self._overflow = False
            self._tell("overflow", "", False)
            self._send()

    def _stop(self, link_lost: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._loop.unwatch(self._fd)
        os.close(self._fd)
        self._stream.reply({})


class Watches:
    """The request `watch.start`."""

    def __init__(self, loop: Loop, paths: Paths) -> None:
        self._loop = loop
        self._paths = paths

    def start(self, stream: Stream, request: dict[str, Any]) -> object:
        """Sends an event `watching`, then lines of [kind, path, is_directory, moved from], until it is cancelled."""
        root = self._paths.real(request["path"])
        if not stat.S_ISDIR(os.stat(root).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), root)
        Watch(self._loop, stream, root.rstrip("/") or "/", request.get("recursive", True))
        stream.event({"event": "watching"})
        return LATER

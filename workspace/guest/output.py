"""What a command prints: read from its pipes, kept a little for replay, sent to whoever listens."""

from __future__ import annotations

import array
import fcntl
import os
from collections import deque

from . import wire
from .loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .channel import Stream
    from .loop import Loop

REPLAY_BYTES = 128 * 1024
"""How much recent output is kept for a host that connects to a running command."""
READ_CHUNK = 192 * 1024
"""A frame of this size fits into the kernel's buffer of a unix socket (net.core.wmem_max) in one write."""
FIONREAD, F_SETPIPE_SZ = 0x541B, 1031
BIG_PIPE = 512 * 1024


class Output:
    """Both output streams of one command.

    With listeners, the slowest one sets the pace (the command blocks on a full pipe and nothing is lost). Without,
    output is read and only the last `REPLAY_BYTES` are kept.
    """

    def __init__(self, loop: Loop) -> None:
        self.total = 0
        self._loop = loop
        self._pipes: dict[int, int] = {}
        self._listeners: list[Stream] = []
        self._recent: deque[tuple[int, bytes]] = deque()
        self._recent_bytes = 0
        self._paused: set[int] = set()
        self._left: dict[int, int] | None = None
        self._drained: Callable[[], None] | None = None

    def add_pipe(self, fd: int, flags: int) -> None:
        os.set_blocking(fd, False)
        self._pipes[fd] = flags
        self._loop.watch(fd, READ, lambda events: self._pump(fd))

    def listen(self, stream: Stream, replay: bool) -> None:
        """Sends what is printed from now on to `stream`; with `replay`, what is kept first."""
        if replay:
            for flags, data in self._recent:
                stream.send(data, flags)
        self._listeners.append(stream)
        stream.on_room = self._resume

    def forget(self, stream: Stream) -> None:
        if stream in self._listeners:
            self._listeners.remove(stream)
            stream.on_room = None
            self._resume()

    def drain(self, drained: Callable[[], None]) -> None:
        """Calls `drained` when all that is in the pipes by now has been sent.

        A background process may hold the pipes open and go on printing: what comes later is not waited for.
        """
        self._left = {}
        self._drained = drained
        for fd in self._pipes:
            waiting = array.array("i", [0])
            fcntl.ioctl(fd, FIONREAD, waiting, True)
            self._left[fd] = waiting[0]
        for fd in list(self._pipes):
            self._pump(fd)
        self._check_drained()

    def close(self) -> None:
        for fd in list(self._pipes):
            self._close_pipe(fd)

    def _pump(self, fd: int) -> None:
        room = min((stream.room for stream in self._listeners), default=wire.CHUNK)
        if room <= 0:
            self._paused.add(fd)
            self._loop.unwatch(fd)
            return
        try:
            data = os.read(fd, min(room, READ_CHUNK))
        except BlockingIOError:
            data = None
        if data == b"":
            self._close_pipe(fd)
        elif data:
            self._pass_on(fd, data)
        self._count(fd, data)

    def _pass_on(self, fd: int, data: bytes) -> None:
        flags = self._pipes[fd]
        if len(data) == 65536 and self.total < BIG_PIPE:
            self._widen(fd)
        self.total += len(data)
        self._recent.append((flags, data))
        self._recent_bytes += len(data)
        while self._recent_bytes - len(self._recent[0][1]) >= REPLAY_BYTES:
            self._recent_bytes -= len(self._recent.popleft()[1])
        for stream in self._listeners:
            stream.send(data, flags)

    def _widen(self, fd: int) -> None:
        try:
            fcntl.fcntl(fd, F_SETPIPE_SZ, BIG_PIPE)
        except OSError:
            pass  # the user's share of pipe memory is used up; a small pipe serves as well

    def _count(self, fd: int, data: bytes | None) -> None:
        if self._left is None or fd not in self._left:
            return
        self._left[fd] -= len(data or b"")
        if not data or self._left[fd] <= 0:
            del self._left[fd]
            self._check_drained()

    def _check_drained(self) -> None:
        if self._drained is not None and not self._left:
            drained, self._drained = self._drained, None
            self._left = None
            drained()

    def _resume(self) -> None:
        paused, self._paused = self._paused, set()
        for fd in paused:
            if fd in self._pipes:
                self._loop.watch(fd, READ, lambda events, fd=fd: self._pump(fd))  # type: ignore[misc]

    def _close_pipe(self, fd: int) -> None:
        del self._pipes[fd]
        self._paused.discard(fd)
        self._loop.unwatch(fd)
        os.close(fd)


class Input:
    """The standard input of one command: what hosts send is written as fast as the command reads it."""

    def __init__(self, loop: Loop, fd: int) -> None:
        os.set_blocking(fd, False)
        self._loop = loop
        self._fd = fd
        self._waiting: deque[tuple[Stream, bytes, int]] = deque()
        self._closing = False

    def write(self, stream: Stream, data: bytes, end: bool) -> None:
        self._closing = self._closing or end
        if self._fd < 0:
            stream.grant(wire.cost(len(data)))
            return
        if data:
            self._waiting.append((stream, data, wire.cost(len(data))))
        self._flush(0)

    def _flush(self, events: int) -> None:
        while self._waiting:
            stream, data, cost = self._waiting[0]
            try:
                written = os.write(self._fd, data)
            except BlockingIOError:
                self._loop.watch(self._fd, WRITE, self._flush)
                return
            except OSError:  # nobody reads any more
                self.close()
                return
            if written < len(data):
                self._waiting[0] = (stream, data[written:], cost)
            else:
                self._waiting.popleft()
                stream.grant(cost)
        self._loop.unwatch(self._fd)
        if self._closing:
            self.close()

    def close(self) -> None:
        if self._fd < 0:
            return
        self._loop.unwatch(self._fd)
        os.close(self._fd)
        self._fd = -1
        for stream, _, cost in self._waiting:
            stream.grant(cost)
        self._waiting.clear()

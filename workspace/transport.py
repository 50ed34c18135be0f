"""How a link's bytes travel. A transport hands over whole frames and takes buffers; it knows nothing of their meaning."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from workspace.guest.wire import Decoder

HIGH_WATER = 1024 * 1024
MAX_BUFFERS = 256
Frames = Callable[[], list[tuple[int, int, int, bytes]]]


def connect_in(folder: Path) -> socket.socket:
    """A non-blocking connection to the guest that listens at `folder`/sock; raises `OSError`.

    By descriptor, because the path may be longer than a socket address admits (unix(7): 107 bytes).
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{fd}/sock")
        finally:
            os.close(fd)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock


class Transport(Protocol):
    """One duplex byte stream."""

    def write(self, parts: Sequence[bytes | memoryview]) -> None: ...

    async def drained(self) -> None: ...

    def close(self) -> None: ...


class SocketTransport:
    """A connected, non-blocking stream socket, read and written straight from the event loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._decoder = Decoder()
        self._waiting: deque[bytes | memoryview] = deque()
        self._size = 0
        self._room: asyncio.Event = asyncio.Event()
        self._room.set()
        self._closed = False
        self._receive: Callable[[Frames], None]
        self._lost: Callable[[], None]

    def start(self, receive: Callable[[Frames], None], lost: Callable[[], None]) -> None:
        """From now on `receive(frames)` is called for what comes in, and `lost()` once at its end."""
        self._receive, self._lost = receive, lost
        self._loop.add_reader(self._sock, self._on_readable)

    def _on_readable(self) -> None:
        try:
            count = self._sock.recv_into(self._decoder.space())
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            count = 0
        if not count:
            self._lost()
        else:
            self._receive(lambda: self._decoder.take(count))

    def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Sends at once what the kernel takes and the rest when it takes more."""
        if self._closed:
            return
        idle = not self._waiting
        self._waiting.extend(parts)
        self._size += sum(map(len, parts))
        if idle:
            self._send()
            if self._waiting:
                self._loop.add_writer(self._sock, self._on_writable)
        if self._size > HIGH_WATER:
            self._room.clear()

    def _send(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting[index] for index in range(min(len(self._waiting), MAX_BUFFERS))]
                self._forget(self._sock.sendmsg(batch))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._waiting.clear()
            self._size = 0  # the reading side tells of the end

    def _forget(self, sent: int) -> None:
        self._size -= sent
        while sent:
            part = self._waiting.popleft()
            if sent < len(part):
                self._waiting.appendleft(memoryview(part)[sent:])
                return
            sent -= len(part)

    def _on_writable(self) -> None:
        self._send()
        if not self._waiting:
            self._loop.remove_writer(self._sock)
        if self._size <= HIGH_WATER:
            self._room.set()

    async def drained(self) -> None:
        """Waits while more than `HIGH_WATER` bytes are queued."""
        if not self._room.is_set():
            await self._room.wait()

    def close(self) -> None:
        """Gives what is queued one last try and closes."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._send()
        self._sock.close()
        self._room.set()

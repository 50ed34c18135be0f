"""The engine's hijacked stream as a plain socket: its frames of standard output are unpacked on the way."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import Any

HEADER = struct.Struct(">BxxxI")
STDOUT = 1


def demultiplex(stream: Any) -> socket.socket:
    """A non-blocking socket whose bytes go to and come from the process behind `stream`.

    The engine wraps output in frames (stream type, length; Docker API, "attach"). Two threads carry the bytes; they
    end with either side.
    """
    raw: socket.socket = getattr(stream, "_sock", stream)
    raw.settimeout(None)
    ours, theirs = socket.socketpair()
    threading.Thread(target=_outward, args=(theirs, raw), name="workspace-relay", daemon=True).start()
    threading.Thread(target=_inward, args=(stream, raw, theirs), name="workspace-relay", daemon=True).start()
    ours.setblocking(False)
    return ours


def _outward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(262144):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


def _inward(stream: Any, source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while head := _exactly(source, HEADER.size):
            kind, length = HEADER.unpack(head)
            data = _exactly(source, length)
            if kind == STDOUT:
                target.sendall(data)
    target.close()
    stream.close()
    source.close()  # the SDK's wrapper leaves it open


def _exactly(source: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        part = source.recv(min(count, 262144))
        if not part:
            return b""
        parts.append(part)
        count -= len(part)
    return b"".join(parts)

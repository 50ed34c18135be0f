"""Work that may take long without a pause, in a forked child: its lines go to the stream, a cancel kills it."""

from __future__ import annotations

import os

from . import codec, sealing
from .faults import Fault, describe
from .herd import kill
from .loop import READ, Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable

    from .channel import Stream
    from .herd import Herd
    from .loop import Loop


def _child(work: Callable[[Callable[[bytes], None]], None], out: int, identity: Any) -> None:
    from .shepherd import _become, _leave_guest_behind

    status = 1
    try:
        os.set_blocking(out, True)
        _leave_guest_behind(out)
        if identity is not None:
            _become(*identity)
        sealing.make_undumpable()
        try:
            work(lambda data: _write(out, data))
        except Exception as error:  # noqa: BLE001 (told to the host)
            _write(out, b"!" + codec.encode(describe(error)) + b"\n")
        status = 0
    finally:
        os._exit(status)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


async def run(loop: Loop, herd: Herd, stream: Stream, user: str, work: Callable[[Callable[[bytes], None]], None]) -> None:
    """Runs `work(write)` in a child and sends what it writes; raises the fault that it ends with.

    `write` takes whole lines; a line that starts with `!` is a fault.
    """
    reader, writer = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(reader)
        os.close(writer)
        raise
    if pid == 0:
        _child(work, writer, herd.identity(user))
    os.close(writer)
    herd.adopt(pid)
    os.set_blocking(reader, False)
    readable = Signal(loop)
    try:
        await _forward(loop, stream, reader, readable)
    finally:
        loop.unwatch(reader)
        os.close(reader)
        kill(pid)


async def _forward(loop: Loop, stream: Stream, reader: int, readable: Signal) -> None:
    tail = b""
    loop.watch(reader, READ, lambda events: readable.fire())
    while True:
        await readable
        try:
            data = os.read(reader, 65536)
        except BlockingIOError:
            continue
        if not data:
            break
        lines, newline, tail = (tail + data).rpartition(b"\n")
        if not newline:
            continue
        fault = lines.rpartition(b"\n")[2]
        if fault.startswith(b"!"):
            details = codec.decode(fault[1:])
            raise Fault(details.pop("code"), details.pop("message"), **details)
        loop.unwatch(reader)
        await stream.write(lines + b"\n")
        loop.watch(reader, READ, lambda events: readable.fire())

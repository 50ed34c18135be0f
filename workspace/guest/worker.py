"""Work that may take long without a pause, in a forked child: its lines go to the stream, a cancel kills it."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from . import codec, sealing
from .faults import Fault, describe
from .loop import READ, Signal
from .processes import kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable

    from .channel import Stream
    from .loop import Loop


def _child(work: Callable[[Callable[[bytes], None]], None], out: int) -> None:
    status = 1
    try:
        _leave_guest_behind(out)
        os.set_blocking(out, True)
        sealing.make_undumpable()
        try:
            work(lambda data: _write(out, data))
        except Exception as error:  # noqa: BLE001 (told to the host)
            _write(out, b"!" + codec.encode(describe(error)) + b"\n")
        status = 0
    finally:
        os._exit(status)


def _leave_guest_behind(keep: int) -> None:
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of listdir itself


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


async def run(loop: Loop, stream: Stream, work: Callable[[Callable[[bytes], None]], None]) -> None:
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
        _child(work, writer)
    os.close(writer)
    os.set_blocking(reader, False)
    try:
        await _forward(loop, stream, reader, Signal(loop))
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
            return
        lines, newline, tail = (tail + data).rpartition(b"\n")
        if not newline:
            continue
        before, _, last = lines.rpartition(b"\n")
        fault = codec.decode(last[1:]) if last.startswith(b"!") else None
        loop.unwatch(reader)
        if before or not fault:
            await stream.write((before if fault else lines) + b"\n")
        if fault:
            raise Fault(fault.pop("code"), fault.pop("message"), **fault)
        loop.watch(reader, READ, lambda events: readable.fire())

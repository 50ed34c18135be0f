"""The guest's end of one link: frames in and out, streams, credit. Several links may be served at once."""

from __future__ import annotations

import os
from collections import deque

from . import codec, wire
from .faults import Fault, describe
from .loop import READ, WRITE, Cancelled, Signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Coroutine

    from .loop import Loop, Task

BACKLOG = 1024 * 1024
"""Bytes waiting to be written to a link beyond which its streams are told to wait."""
MAX_STREAMS = 4096
LATER = object()
"""What a handler returns when it will reply by itself."""


class Stream:
    """One request of the host and everything that belongs to it."""

    __slots__ = ("allowance", "channel", "credit", "ended", "id", "inbox", "on_cancel", "on_data", "on_room", "passive", "readable", "task")

    def __init__(self, channel: Channel, stream_id: int) -> None:
        self.id = stream_id
        self.channel = channel
        self.credit = wire.WINDOW
        self.allowance = wire.WINDOW
        self.inbox: deque[bytes] = deque()
        self.ended = False
        self.readable: Signal | None = None
        self.on_data: Callable[[bytes, bool], None] | None = None
        self.on_cancel: Callable[[bool], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.passive = False
        self.task: Task | None = None

    @property
    def room(self) -> int:
        """How many bytes of DATA may be sent now."""
        return 0 if self.channel.backlog > BACKLOG else max(0, self.credit - wire.FRAME_COST)

    def send(self, data: bytes, flags: int = 0) -> None:
        """Sends DATA that fits into `room`."""
        self.credit -= wire.cost(len(data))
        self.channel.send(wire.DATA, self.id, data, flags)

    async def write(self, data: bytes) -> None:
        """Sends DATA of any length, waiting for room; for tasks."""
        view = memoryview(data)
        while view:
            while not self.room:
                await self._wait_for_room()
            size = min(len(view), self.room, wire.CHUNK)
            self.send(bytes(view[:size]))
            view = view[size:]

    async def _wait_for_room(self) -> None:
        signal = Signal(self.channel.loop)
        self.on_room = signal.fire
        try:
            await signal
        finally:
            self.on_room = None

    async def read(self) -> bytes:
        """The next bytes that the host sent, empty after its END; for tasks."""
        while not self.inbox:
            if self.ended:
                return b""
            if self.readable is None:
                self.readable = Signal(self.channel.loop)
            await self.readable
        data = self.inbox.popleft()
        self.grant(wire.cost(len(data)))
        return data

    def grant(self, amount: int) -> None:
        """Gives the host `amount` of credit back."""
        if amount and not self.ended:
            self.allowance += amount
            self.channel.send(wire.CREDIT, self.id, wire.CREDIT_PAYLOAD.pack(amount))

    def event(self, value: dict[str, Any]) -> None:
        self.channel.send(wire.EVENT, self.id, codec.encode(value))

    def reply(self, value: dict[str, Any]) -> None:
        """Ends the stream with a result."""
        if self.channel.forget(self):
            self.channel.send(wire.REPLY, self.id, codec.encode(value))

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error."""
        if self.channel.forget(self):
            self.channel.send(wire.ERROR, self.id, codec.encode(describe(error)))

    def receive(self, data: bytes, end: bool) -> None:
        self.allowance -= wire.cost(len(data))
        if self.allowance < 0 or self.ended:
            raise wire.WireError("more data on stream %d than was allowed" % self.id)
        self.ended = end
        if self.on_data is not None:
            self.on_data(data, end)
            return
        if data:
            self.inbox.append(data)
        if self.readable is not None:
            self.readable.fire()

    def cancel(self, link_lost: bool) -> None:
        if self.on_cancel is not None:
            self.on_cancel(link_lost)
        elif self.task is not None:
            self.channel.loop.cancel(self.task)


class Channel:
    """One connected host. A host that breaks the protocol loses its link; the sandbox goes on."""

    def __init__(self, loop: Loop, fd: int, serve: Callable[[Stream, dict[str, Any]], Any], closed: Callable[[Channel], None]) -> None:
        self.loop = loop
        self.backlog = 0
        self.streams: dict[int, Stream] = {}
        self._fd = fd
        self._serve = serve
        self._closed = closed
        self._decoder = wire.Decoder()
        self._out: deque[bytes | memoryview] = deque()
        self._blocked = False
        self._admitted = False
        self.on_greeting: Callable[[dict[str, Any]], None] | None = None
        loop.watch(fd, READ, self._on_ready)

    def send(self, kind: int, stream: int, payload: bytes, flags: int = 0) -> None:
        if self._fd < 0:
            return
        self._out.append(wire.pack_header(kind, stream, len(payload), flags))
        if payload:
            self._out.append(payload)
        self.backlog += wire.HEADER.size + len(payload)
        if not self._blocked:
            self.loop.flush_soon(self)

    def flush(self) -> None:
        """Writes what waits, as much as the link takes."""
        try:
            while self._out:
                self._write_some()
        except BlockingIOError:
            if not self._blocked:
                self._blocked = True
                self.loop.watch(self._fd, READ | WRITE, self._on_ready)
        except OSError:
            self.close()

    def _write_some(self) -> None:
        out = self._out
        batch = [out[i] for i in range(min(len(out), 64))]
        written = os.writev(self._fd, batch)
        was_full = self.backlog > BACKLOG
        self.backlog -= written
        for part in batch:
            out.popleft()
            if written < len(part):
                out.appendleft(memoryview(part)[written:])
                break
            written -= len(part)
            if not written:
                break
        if was_full and self.backlog <= BACKLOG:
            for stream in list(self.streams.values()):
                if stream.on_room is not None:
                    stream.on_room()

    def _on_ready(self, events: int) -> None:
        if self._blocked and events & WRITE:
            self._blocked = False
            self.loop.watch(self._fd, READ, self._on_ready)
            self.flush()
        if self._fd >= 0 and events & READ:
            self._receive()

    def _receive(self) -> None:
        try:
            count = os.readv(self._fd, [self._decoder.space()])
        except BlockingIOError:
            return
        except OSError:
            count = 0
        if not count:
            self.close()
            return
        try:
            for kind, stream, flags, payload in self._decoder.take(count):
                self._dispatch(kind, stream, flags, payload)
        except (wire.WireError, codec.BadJSON) as error:
            self.goodbye("protocol", str(error))

    def _dispatch(self, kind: int, stream_id: int, flags: int, payload: bytes) -> None:
        if not self._admitted:
            self._greeting(kind, payload)
            return
        if kind == wire.OPEN:
            self._open(stream_id, codec.decode(payload))
            return
        if kind == wire.PING:
            self.send(wire.PONG, 0, payload)
            return
        if kind not in (wire.DATA, wire.CREDIT, wire.CANCEL):
            raise wire.WireError("a host does not send frames of kind %d" % kind)
        stream = self.streams.get(stream_id)
        if stream is None:
            return  # it crossed our reply on the way
        if kind == wire.DATA:
            stream.receive(payload, bool(flags & wire.END))
        elif kind == wire.CREDIT:
            stream.credit += wire.unpack_credit(payload)
            if stream.on_room is not None:
                stream.on_room()
        else:
            stream.cancel(False)

    def admit(self, hello: bytes) -> None:
        """From now on requests are served."""
        self._admitted = True
        self.send(wire.HELLO, 0, hello)

    def _greeting(self, kind: int, payload: bytes) -> None:
        if kind != wire.HELLO or self.on_greeting is None:
            raise wire.WireError("a host has to greet first")
        on_greeting, self.on_greeting = self.on_greeting, None
        on_greeting(codec.decode(payload))

    def _open(self, stream_id: int, request: dict[str, Any]) -> None:
        if stream_id in self.streams or stream_id == 0:
            raise wire.WireError("stream %d cannot be opened" % stream_id)
        stream = self.streams[stream_id] = Stream(self, stream_id)
        try:
            if len(self.streams) > MAX_STREAMS:
                raise Fault("EAGAIN", "more than %d requests at once on one link" % MAX_STREAMS)
            result = self._serve(stream, request)
        except Exception as error:  # noqa: BLE001 (whatever a request raises is the host's to know)
            stream.fail(error)
            return
        if hasattr(result, "cr_frame"):
            self._run(stream, result)
        elif result is not LATER:
            stream.reply(result or {})

    def _run(self, stream: Stream, coroutine: Coroutine[Any, Any, dict[str, Any] | None]) -> None:
        async def answer() -> None:
            stream.reply((await coroutine) or {})

        def done(error: BaseException | None) -> None:
            if isinstance(error, Cancelled):
                stream.fail(Fault("ECANCELED", "cancelled"))
            elif error is not None:
                stream.fail(error)

        stream.task = self.loop.spawn(answer(), done)

    def forget(self, stream: Stream) -> bool:
        """Takes the stream off the link; False where it was off already."""
        return self.streams.pop(stream.id, None) is not None

    def goodbye(self, reason: str, message: str) -> None:
        """Tells the host why and closes the link."""
        self.send(wire.GOODBYE, 0, codec.encode({"reason": reason, "message": message}))
        self.flush()
        self.close()

    def close(self) -> None:
        if self._fd < 0:
            return
        self.loop.unwatch(self._fd)
        os.close(self._fd)
        self._fd = -1
        self._out.clear()
        self.backlog = 0
        for stream in list(self.streams.values()):
            stream.cancel(True)
        self.streams.clear()
        self._closed(self)

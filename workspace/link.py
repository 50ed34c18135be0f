"""The host's end of a link: requests, streams, flow control.

The guest is untrusted. Every frame is checked: its size, its stream, its credit. What breaks the protocol closes the
link with `ProtocolError`; memory stays bounded by the window of each open stream.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

from workspace import untrusted
from workspace.errors import ProtocolError, ResourceExhausted, WorkspaceError, WorkspaceGone, from_guest, printable
from workspace.guest import wire
from workspace.transport import SocketTransport, Transport

REASONS = frozenset({"closed", "expired", "owner_gone", "protocol"})
"""What a guest may say about its end; anything else counts as killed."""
HELLO_TIMEOUT_S = 20.0
QUIET_S = 10.0
"""With requests open and nothing heard for so long, the guest is pinged; twice that and it counts as stalled."""
MAX_EVENTS = 16
MAX_EVENT_BYTES = 64 * 1024
MAX_STREAMS = 4000


class Stream:
    """One request on its way. `async for` gives (flags, bytes) of DATA; `result()` the reply."""

    def __init__(self, link: Link, stream_id: int, path: str | None) -> None:
        self.id = stream_id
        self._events: deque[bytes] = deque()
        self._link = link
        self._path = path
        self._credit = wire.WINDOW
        self._allowance = wire.WINDOW
        self._owed = 0
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._reply: dict[str, Any] | None = None
        self._error: BaseException | None = None
        self._ended = False

    @property
    def done(self) -> bool:
        """Whether the reply or an error has come."""
        return self._ended

    async def send(self, data: bytes | bytearray | memoryview, end: bool = False) -> bool:
        """Sends DATA of any length as the guest takes it. False when the guest has ended the stream meanwhile."""
        view = memoryview(data)
        while view and not self._ended:
            if self._credit <= wire.FRAME_COST:
                await self._wait_for_room()
                continue
            part = view[: min(self._credit - wire.FRAME_COST, wire.CHUNK)]
            self._credit -= wire.cost(len(part))
            view = view[len(part) :]
            self._link.write(wire.DATA, self.id, part, wire.END if end and not len(view) else 0)
            await self._link.drained()
        if end and not len(data) and not self._ended:
            self._link.write(wire.DATA, self.id, b"", wire.END)
        return not self._ended

    async def _wait_for_room(self) -> None:
        self._link.flush()
        self._room = asyncio.get_running_loop().create_future()
        try:
            await self._room
        finally:
            self._room = None

    def __aiter__(self) -> AsyncIterator[tuple[int, bytes]]:
        return self

    async def __anext__(self) -> tuple[int, bytes]:
        while not self._chunks:
            if self._ended:
                raise StopAsyncIteration
            await self._wait()
        flags, data = self._chunks.popleft()
        self._consumed(len(data))
        return flags, data

    async def event(self) -> dict[str, Any]:
        """The next event; raises what ended the stream where there is none. DATA stays for later."""
        while not self._events:
            if self._ended:
                raise self._error or ProtocolError("the guest ended a stream without the event it owes")
            await self._wait()
        return parse(self._events.popleft())

    async def result(self) -> dict[str, Any]:
        """The reply; raises what the guest or the link reports. DATA that nobody iterates over is dropped."""
        while not self._ended:
            await self._wait()
            while self._chunks:
                self._consumed(len(self._chunks.popleft()[1]))
        if self._error is not None:
            raise self._error
        assert self._reply is not None
        return self._reply

    async def _wait(self) -> None:
        self._link.flush()
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _consumed(self, amount: int) -> None:
        self._owed += wire.cost(amount)
        if self._owed >= wire.WINDOW // 4 and not self._ended:
            self._allowance += self._owed
            self._link.write(wire.CREDIT, self.id, wire.CREDIT_PAYLOAD.pack(self._owed))
            self._owed = 0

    def cancel(self) -> None:
        """Asks the guest to stop; the stream ends when it has."""
        if not self._ended:
            self._link.write(wire.CANCEL, self.id, b"")

    def receive(self, flags: int, data: bytes) -> None:
        self._allowance -= wire.cost(len(data))
        if self._allowance < 0:
            raise ProtocolError(f"the guest sent more than its credit on stream {self.id}")
        if data:
            self._chunks.append((flags, data))
        self._notify()

    def receive_event(self, payload: bytes) -> None:
        if len(self._events) >= MAX_EVENTS or len(payload) > MAX_EVENT_BYTES:
            raise ProtocolError(f"the guest flooded stream {self.id} with events")
        self._events.append(payload)
        self._notify()

    def receive_credit(self, amount: int) -> None:
        self._credit += amount
        if self._credit > 1 << 40:
            raise ProtocolError("the guest gave absurd credit")
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def finish(self, reply: dict[str, Any] | None, error: BaseException | None) -> None:
        self._reply, self._error, self._ended = reply, error, True
        self._notify()
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def error(self, payload: bytes) -> WorkspaceError:
        """What an ERROR payload stands for."""
        return from_guest(parse(payload), self._path)

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


def parse(payload: bytes) -> dict[str, Any]:
    """The JSON object in a control payload from the guest; raises `ProtocolError`."""
    return untrusted.fields(untrusted.load(payload))


class Link:
    """One connection to a guest. Use `Link.open`."""

    def __init__(self, transport: Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self.hello: dict[str, Any] = {}
        self.closed: asyncio.Future[WorkspaceGone] = self._loop.create_future()
        self._transport = transport
        self._streams: dict[int, Stream] = {}
        self._next_id = 1
        self._hello_come: asyncio.Future[None] = self._loop.create_future()
        self._out: list[bytes | memoryview] = []
        self._heard = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._goodbye: WorkspaceGone | None = None

    @classmethod
    async def open(cls, sock: socket.socket, greeting: dict[str, Any] | None = None) -> Link:
        """Takes over a connected socket, greets where the guest wants that, and waits for its hello."""
        transport = SocketTransport(sock)
        link = cls(transport)
        transport.start(link._receive, link._lost)
        if greeting is not None:
            link.write(wire.HELLO, 0, json.dumps(greeting).encode())
        try:
            await asyncio.wait_for(asyncio.shield(link._hello_come), HELLO_TIMEOUT_S)
        except BaseException as error:
            link.abort(WorkspaceGone("the guest did not say hello", "unresponsive"))
            if isinstance(error, asyncio.TimeoutError):
                raise WorkspaceGone(f"the guest did not say hello within {HELLO_TIMEOUT_S:g} s", "unresponsive") from None
            raise
        return link

    def request(self, method: str, path: str | None = None, **params: Any) -> Stream:
        """Starts a request; raises `WorkspaceGone` where the link is closed. `path` is told in errors."""
        if self.closed.done():
            raise self.gone()
        if len(self._streams) >= MAX_STREAMS:
            raise ResourceExhausted(f"more than {MAX_STREAMS} requests at once on one workspace handle")
        stream = Stream(self, self._next_id, path)
        self._next_id = self._next_id % 0x7FFFFFFF + 1
        if path is not None:
            params["path"] = path
        params["method"] = method
        body = json.dumps(params, separators=(",", ":")).encode("ascii")
        self._check_size(body)
        self._streams[stream.id] = stream
        self.write(wire.OPEN, stream.id, body)
        self._watch()
        return stream

    async def call(self, method: str, path: str | None = None, **params: Any) -> dict[str, Any]:
        """A request without DATA: sends it, awaits the reply."""
        stream = self.request(method, path, **params)
        try:
            return await stream.result()
        except asyncio.CancelledError:
            stream.cancel()
            raise

    @staticmethod
    def _check_size(body: bytes) -> None:
        if len(body) > wire.MAX_PAYLOAD:
            raise ResourceExhausted(
                7, f"a request of {len(body)} bytes is over the limit of {wire.MAX_PAYLOAD}; pass large data by stdin or a file"
            )

    def gone(self) -> WorkspaceGone:
        """A fresh copy of why the link is closed."""
        error = self.closed.result()
        return ProtocolError(str(error)) if isinstance(error, ProtocolError) else WorkspaceGone(str(error), error.reason)

    def write(self, kind: int, stream: int, payload: bytes | memoryview, flags: int = 0) -> None:
        """Queues a frame; all frames of one turn of the event loop leave in one write."""
        if self.closed.done():
            return
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(wire.pack_header(kind, stream, len(payload), flags))
        if payload:
            self._out.append(payload)

    def flush(self) -> None:
        """Writes what was queued, now: whoever is about to wait calls it."""
        if self._out:
            out, self._out = self._out, []
            self._transport.write(out)

    async def drained(self) -> None:
        """Waits while more is queued than should be."""
        self.flush()
        await self._transport.drained()

    def abort(self, error: WorkspaceGone) -> None:
        """Closes the link; every open request ends with `error`."""
        if not self.closed.done():
            self.closed.set_result(error)
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self._transport.close()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.finish(None, self.gone())
        if not self._hello_come.done():
            self._hello_come.set_exception(error)
            self._hello_come.exception()

    async def close(self) -> None:
        """Closes the link in order: what was written is sent first."""
        self.flush()
        self.abort(WorkspaceGone("the link was closed", "closed"))

    def _receive(self, frames: Callable[[], list[tuple[int, int, int, bytes]]]) -> None:
        self._heard = self._loop.time()
        try:
            for kind, stream, flags, payload in frames():
                self._dispatch(kind, stream, flags, payload)
        except wire.WireError as error:
            self.abort(ProtocolError(str(error)))
        except ProtocolError as error:
            self.abort(error)

    def _lost(self) -> None:
        self.abort(self._goodbye or WorkspaceGone("the sandbox ended", "killed"))

    def _dispatch(self, kind: int, stream_id: int, flags: int, payload: bytes) -> None:
        if stream_id == 0:
            self._dispatch_link(kind, payload)
            return
        stream = self._streams.get(stream_id)
        if stream is None:
            raise ProtocolError(f"the guest used stream {stream_id}, which is not open")
        if kind == wire.DATA:
            stream.receive(flags, payload)
        elif kind == wire.REPLY:
            reply = parse(payload)
            del self._streams[stream_id]
            stream.finish(reply, None)
        elif kind == wire.ERROR:
            error = stream.error(payload)
            del self._streams[stream_id]
            stream.finish(None, error)
        elif kind == wire.EVENT:
            stream.receive_event(payload)
        elif kind == wire.CREDIT:
            stream.receive_credit(wire.unpack_credit(payload))
        else:
            raise ProtocolError(f"the guest sent a frame of kind {kind} on a stream")

    def _dispatch_link(self, kind: int, payload: bytes) -> None:
        if kind == wire.HELLO and not self._hello_come.done():
            self.hello = parse(payload)
            if self.hello.get("version") != wire.VERSION:
                raise ProtocolError(f"the guest speaks version {self.hello.get('version')!r:.40}, we speak {wire.VERSION}")
            self._hello_come.set_result(None)
        elif kind == wire.GOODBYE:
            details = parse(payload)
            reason = details.get("reason")
            message = printable(str(details.get("message"))[:500])
            self._goodbye = WorkspaceGone(
                f"the sandbox ended: {message}", reason if isinstance(reason, str) and reason in REASONS else "killed"
            )
        elif kind != wire.PONG:
            raise ProtocolError(f"the guest sent a frame of kind {kind} to the link")

    # A guest that stalls

    def _watch(self) -> None:
        if self._watchdog is None:
            self._heard = self._loop.time()
            self._watchdog = self._loop.call_later(QUIET_S, self._check)

    def _check(self) -> None:
        self._watchdog = None
        quiet = self._loop.time() - self._heard
        if not self._streams or self.closed.done() or self._hello_come.done() is False:
            return
        if quiet >= 2 * QUIET_S + 1:
            self.abort(WorkspaceGone(f"the guest has not answered for {quiet:.0f} s", "unresponsive"))
            return
        if quiet >= QUIET_S:
            self.write(wire.PING, 0, b"")
        self._watchdog = self._loop.call_later(QUIET_S, self._check)


Progress = Callable[[int, "int | None"], None]
"""Called with the bytes done so far and, where it is known, their total."""

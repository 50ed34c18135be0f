"""A command's standard input: text, bytes or a source of bytes, sent as fast as the command reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable

from workspace.content import to_bytes
from workspace.errors import InvalidArgument
from workspace.link import Stream

Stdin = str | bytes | Iterable[bytes] | AsyncIterable[bytes] | None


def check_stdin(stdin: object) -> None:
    """Raises `InvalidArgument` for what cannot be standard input."""
    if stdin is not None and not isinstance(stdin, (str, bytes, bytearray, Iterable, AsyncIterable)):
        raise InvalidArgument(f"stdin is {type(stdin).__name__}; it has to be text, bytes or an iterable of bytes")


async def feed(stream: Stream, stdin: Stdin) -> None:
    """Sends standard input, however it is given, and its end."""
    if isinstance(stdin, (str, bytes, bytearray)):
        await stream.send(as_bytes(stdin), end=True)
        return
    if isinstance(stdin, AsyncIterable):
        async for part in stdin:
            if not await stream.send(_piece(part)):
                return
    elif stdin is not None:
        for part in stdin:
            if not await stream.send(_piece(part)):
                return
    await stream.send(b"", end=True)


def as_bytes(data: object) -> bytes | bytearray | memoryview:
    return to_bytes(data, "standard input")


def _piece(data: object) -> bytes | bytearray | memoryview:
    if isinstance(data, str):
        raise InvalidArgument(f"the pieces of standard input have to be bytes, not text ({data!r:.60})")
    return as_bytes(data)


class Feeding:
    """Standard input on its way; a source that fails ends the command, and its error is the caller's."""

    def __init__(self, stream: Stream, stdin: Stdin) -> None:
        self._stream = stream
        self._task = asyncio.ensure_future(feed(stream, stdin)) if stdin is not None else None
        if self._task is not None:
            self._task.add_done_callback(self._on_done)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._stream.cancel()

    def check(self) -> None:
        """Raises what the source raised."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

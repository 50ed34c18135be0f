"""One event loop in a background thread, for callers that block."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
INTERRUPT_GRACE_S = 15.0
"""How long a call that Ctrl-C interrupts may take to stop what it has started inside."""


class Portal:
    """Runs coroutines on the loop and gives their results back to the calling thread."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="workspace-loop", daemon=True)
        self._thread.start()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result. Interrupted by Ctrl-C, it is cancelled and that is waited for."""
        if threading.current_thread() is self._thread:
            coroutine.close()
            raise RuntimeError("a blocking Workspace method was called on its own event loop; use AsyncWorkspace there")
        if sys.is_finalizing():
            coroutine.close()
            raise RuntimeError("the interpreter is shutting down")
        job: _Job[T] = _Job(coroutine)
        self._loop.call_soon_threadsafe(job.start)
        try:
            job.done.wait()
        except BaseException:
            self._loop.call_soon_threadsafe(job.cancel)
            job.done.wait(INTERRUPT_GRACE_S)
            raise
        return job.result()

    def iterate(self, iterable: AsyncIterable[T]) -> Iterator[T]:
        """An async iterable, item by item; left early, it is closed."""
        iterator = iterable.__aiter__()
        try:
            while True:
                try:
                    yield self.call(_next(iterator))
                except StopAsyncIteration:
                    return
        finally:
            if isinstance(iterator, AsyncGenerator):
                self.call(_close(iterator))


class _Job(Generic[T]):
    """One call on its way."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self.done = threading.Event()
        self._coroutine = coroutine
        self._task: asyncio.Task[T] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._coroutine)
        self._task.add_done_callback(lambda task: self.done.set())

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def result(self) -> T:
        assert self._task is not None
        return self._task.result()


async def _next(iterator: AsyncIterator[T]) -> T:
    return await iterator.__anext__()


async def _close(generator: AsyncGenerator[Any, None]) -> None:
    await generator.aclose()


_portal: Portal | None = None
_guard = threading.Lock()


def portal() -> Portal:
    """This process's portal; a new one after a fork."""
    global _portal
    with _guard:
        if _portal is None or _portal.pid != os.getpid():
            _portal = Portal()
        return _portal


def off_loop(callback: Callable[[T], Any] | None) -> Callable[[T], Coroutine[Any, Any, None]] | None:
    """A callback that runs in a worker thread, so that it may block and may use the workspace."""
    if callback is None:
        return None

    async def call(value: T) -> None:
        await aside(callback, value)

    return call


async def aside(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a caller's function in a thread of its own.

    Not in asyncio's pool: what it calls may need a thread there, and a read that never ends must not hold up the end
    of the program.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Any] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is None:
            outcome.set_result(result)
        else:
            outcome.set_exception(error)

    def work() -> None:
        result, error = None, None
        try:
            result = function(*arguments)
        except BaseException as raised:  # noqa: BLE001 (the awaiting side raises it)
            error = raised
        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="workspace-caller", daemon=True).start()
    return await outcome


def pieces(content: Any) -> Any:
    """A blocking iterable or open file as an async iterable, read in worker threads; anything else as it is."""
    if hasattr(content, "read"):
        return _read(content)
    if isinstance(content, Iterable) and not isinstance(content, (str, bytes, bytearray, memoryview)):
        return _iterate(content)
    return content


async def _read(file: Any) -> AsyncIterator[bytes]:
    while part := await aside(file.read, 1 << 20):
        yield part


async def _iterate(iterable: Iterable[bytes]) -> AsyncIterator[bytes]:
    iterator, end = iter(iterable), object()
    while (part := await aside(next, iterator, end)) is not end:
        yield part

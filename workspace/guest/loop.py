"""The event loop of the guest: descriptors, timers and cooperative tasks on one epoll."""

from __future__ import annotations

import errno
import heapq
import select
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Coroutine, Generator

READ = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
WRITE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class Cancelled(BaseException):
    """Thrown into a task whose request was cancelled or whose link is gone."""


class Timer:
    """A call at a later time; `cancel()` takes it back."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None] | None) -> None:
        self.when = when
        self.callback = callback

    def __lt__(self, other: Timer) -> bool:
        return self.when < other.when

    def cancel(self) -> None:
        self.callback = None


class Signal:
    """Something a task can wait for: `await signal` returns after the next `fire()`."""

    __slots__ = ("_loop", "_waiting")

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: list[Task] = []

    def fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for task in waiting:
            self._loop.resume(task)

    def __await__(self) -> Generator[Signal, None, None]:
        yield self


class Pause:
    """`await Pause()` lets everything else have a turn."""

    def __await__(self) -> Generator[None, None, None]:
        yield None


class Task:
    """A coroutine that the loop drives; `done(error)` is told how it ended (None, or what it raised)."""

    __slots__ = ("coroutine", "done", "finished", "waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None], done: Callable[[BaseException | None], None]) -> None:
        self.coroutine = coroutine
        self.done = done
        self.waits_for: Signal | None = None
        self.finished = False


class Loop:
    """Runs until `stop()`. Sleeps without waking up while there is nothing to do."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._ready: deque[Task] = deque()
        self._flush: dict[Any, None] = {}
        self._running = True

    def watch(self, fd: int, events: int, handler: Callable[[int], None]) -> None:
        """Calls `handler(events)` when `fd` is ready; replaces what was asked for `fd` before."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def unwatch(self, fd: int) -> None:
        """Forgets `fd`; harmless where it is not watched. Call it before closing the descriptor."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def flush_soon(self, channel: Any) -> None:
        """Calls `channel.flush()` once at the end of this turn, so that small frames share one write."""
        self._flush[channel] = None

    def spawn(self, coroutine: Coroutine[Any, Any, None], done: Callable[[BaseException | None], None]) -> Task:
        """Starts a task; its first step runs now."""
        task = Task(coroutine, done)
        self._step(task, None)
        return task

    def resume(self, task: Task) -> None:
        task.waits_for = None
        if not task.finished:
            self._ready.append(task)

    def cancel(self, task: Task) -> None:
        """Throws `Cancelled` into the task, now."""
        if task.finished:
            return
        if task.waits_for is not None and task in task.waits_for._waiting:
            task.waits_for._waiting.remove(task)
        self._step(task, Cancelled())

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        while self._running:
            self._turn()
            while self._flush:
                self._flush.popitem()[0].flush()

    def _turn(self) -> None:
        for fd, events in self._poll():
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
        self._fire_timers()
        for _ in range(len(self._ready)):
            task = self._ready.popleft()
            if not task.finished:
                self._step(task, None)

    def _poll(self) -> list[tuple[int, int]]:
        timeout = -1.0
        if self._ready:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0].when - time.monotonic())
        try:
            return self._epoll.poll(timeout)
        except OSError as error:
            if error.errno != errno.EINTR:
                raise
            return []

    def _fire_timers(self) -> None:
        while self._timers and (self._timers[0].callback is None or self._timers[0].when <= time.monotonic()):
            callback = heapq.heappop(self._timers).callback
            if callback is not None:
                callback()

    def _step(self, task: Task, thrown: BaseException | None) -> None:
        try:
            waits_for = task.coroutine.send(None) if thrown is None else task.coroutine.throw(thrown)
        except StopIteration:
            self._end(task, None)
        except (Exception, Cancelled) as error:  # noqa: BLE001 (told to `done`)
            self._end(task, error)
        else:
            task.waits_for = waits_for
            if waits_for is None:
                self._ready.append(task)
            else:
                waits_for._waiting.append(task)

    def _end(self, task: Task, error: BaseException | None) -> None:
        task.finished = True
        task.done(error)

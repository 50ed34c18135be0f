"""Commands in a workspace: run one, start one in the background, take one up again."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal as signals
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workspace import untrusted
from workspace.content import encode
from workspace.errors import CommandFailed, CommandNotFound, CommandTimeout, InvalidArgument, OutOfMemory, WorkspaceError, printable
from workspace.link import Stream
from workspace.output import MAX_OUTPUT_BYTES, Capture, CommandResult, OutputChunk, TextSplitter
from workspace.session import CANCEL_GRACE_S, Session, stop
from workspace.spec import check_env
from workspace.stdin import Feeding, Stdin, as_bytes, check_stdin

OnText = Callable[[str], Awaitable[None] | None] | None
OnOutput = Callable[[OutputChunk], Awaitable[None] | None] | None


class _Default:
    """The type of `DEFAULT`."""

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = _Default()
"""`timeout_s=DEFAULT` is the spec's `timeout_s`; `None` is no limit."""
Timeout = float | None | _Default

HANDLE_KEEPS_BYTES = 256 * 1024
KILLED = 137


@dataclass(frozen=True)
class CommandInfo:
    """A command that runs, or has ended and left processes behind."""

    pid: int
    argv: tuple[str, ...]
    cwd: str
    user: str
    background: bool
    """Whether it was started with `start`."""
    started_at: float
    ended: bool
    """The command itself has ended; `pids` are what it left running."""
    pids: tuple[int, ...]


def to_argv(command: str | Sequence[str], shell: str) -> list[str]:
    """A string is for the shell, a sequence is executed as it is. Raises `InvalidArgument`."""
    if isinstance(command, str):
        argv = [shell, "-c", command]
        if not command.strip():
            raise InvalidArgument(f"command {command!r} is empty")
    else:
        argv = list(command)
        if isinstance(command, bytes) or not argv or not all(isinstance(word, str) for word in argv) or not argv[0]:
            raise InvalidArgument(f"command {command!r} is neither a string nor a non-empty list of strings with a program first")
    for word in argv:
        encode(word, "the command")
        if "\0" in word:
            raise InvalidArgument(f"the argument {word[:80]!r} holds a NUL character, which no process can be given")
    return argv


def check_timeout(timeout_s: float | None) -> float | None:
    """Raises `InvalidArgument` unless it is None or a positive number."""
    if timeout_s is not None and not 0 < timeout_s < 1e9:
        raise InvalidArgument(f"timeout_s={timeout_s!r} is not a positive number of seconds; None means no limit")
    return timeout_s


def _checked_env(env: Mapping[str, str] | None) -> dict[str, str]:
    try:
        return check_env(dict(env or {}))
    except ValueError as error:
        raise InvalidArgument(f"env: {error}") from None


class _Listener:
    """Passes output on to `on_output`, `on_stdout` and `on_stderr`."""

    def __init__(self, on_output: OnOutput, on_stdout: OnText, on_stderr: OnText) -> None:
        self._on_output = on_output
        self._callbacks = {"stdout": on_stdout, "stderr": on_stderr}
        self._splitter = TextSplitter() if on_output or on_stdout or on_stderr else None

    async def feed(self, flags: int, data: bytes) -> None:
        if self._splitter is not None:
            await self._tell(self._splitter.feed(flags, data))

    async def finish(self) -> None:
        for chunk in self._splitter.rest() if self._splitter is not None else ():
            await self._tell(chunk)

    async def _tell(self, chunk: OutputChunk) -> None:
        callback = self._callbacks[chunk.stream]
        if callback is not None and chunk.text:
            await _settle(callback(chunk.text))
        if self._on_output is not None:
            await _settle(self._on_output(chunk))


async def _settle(outcome: object) -> None:
    if inspect.isawaitable(outcome):
        await outcome


class AsyncCommandHandle:
    """A command in the background. Iterate over it for its output; it does not block when nobody does.

    Without a reader the last 256 KiB of output are kept; while you iterate nothing is lost and you set the pace.
    """

    def __init__(self, session: Session, stream: Stream, pid: int, max_output_bytes: int, stdin_open: bool) -> None:
        self.pid = pid
        self._session = session
        self._stream = stream
        self._stdin_open = stdin_open
        self._capture = Capture(max_output_bytes)
        self._splitter = TextSplitter()
        self._queue: deque[OutputChunk] = deque()
        self._queued = 0
        self._readers = 0
        self._changed = asyncio.Condition()
        self._reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._pump = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        try:
            async for flags, data in self._stream:
                self._capture.feed(flags, data)
                await self._enqueue(self._splitter.feed(flags, data))
            for chunk in self._splitter.rest():
                await self._enqueue(chunk)
            async with self._session.use():
                self._reply.set_result(await self._stream.result())
        except (WorkspaceError, asyncio.CancelledError) as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            said = InvalidArgument(f"this handle of command {self.pid} was disconnected; connect to it again") if cancelled else error
            self._reply.set_exception(said)
            self._reply.exception()
            if cancelled:
                raise
        finally:
            async with self._changed:
                self._changed.notify_all()

    async def _enqueue(self, chunk: OutputChunk) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._readers or self._queued < HANDLE_KEEPS_BYTES)
            self._queue.append(chunk)
            self._queued += len(chunk.data)
            while not self._readers and self._queued > HANDLE_KEEPS_BYTES:
                self._queued -= len(self._queue.popleft().data)
            self._changed.notify_all()

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        """Output from what is kept on, until the command ends."""
        self._readers += 1
        try:
            while True:
                async with self._changed:
                    await self._changed.wait_for(lambda: self._queue or self._reply.done())
                    if not self._queue:
                        return
                    chunk = self._queue.popleft()
                    self._queued -= len(chunk.data)
                    self._changed.notify_all()
                yield chunk
        finally:
            self._readers -= 1
            async with self._changed:
                self._changed.notify_all()

    @property
    def running(self) -> bool:
        """Whether the command has not ended yet."""
        return not self._reply.done()

    async def send_stdin(self, data: str | bytes) -> None:
        """Writes to standard input, waiting while the command does not read. Needs `start(stdin=True)`."""
        if not self._stdin_open:
            raise InvalidArgument(f"command {self.pid} has no standard input; start it with stdin=True")
        async with self._session.use():
            if not await self._stream.send(as_bytes(data)):
                raise CommandNotFound(f"command {self.pid} has ended and reads no more")

    async def close_stdin(self) -> None:
        """End of file on standard input."""
        if self._stdin_open:
            self._stdin_open = False
            async with self._session.use():
                await self._stream.send(b"", end=True)

    async def signal(self, number: int) -> None:
        """Sends a signal to the command's process group."""
        await self._session.call("command.signal", pid=self.pid, signal=int(number))

    async def kill(self) -> bool:
        """Kills the command and everything it started; False if it had ended."""
        reply = await self._session.call("command.kill", pid=self.pid)
        return bool(reply.get("killed"))

    async def wait(self, check: bool = False) -> CommandResult:
        """The result, when the command has ended."""
        reply = await asyncio.shield(self._reply)
        if "detached" in reply:
            raise InvalidArgument(f"this handle of command {self.pid} was disconnected; connect to it again")
        return finish(self._session, self._capture, reply, f"command {self.pid}", check)

    async def disconnect(self) -> None:
        """Listens no more; the command goes on."""
        if not self._stream.done:
            await stop(self._stream)
        self._pump.cancel()
        await asyncio.gather(self._pump, return_exceptions=True)


def finish(session: Session, capture: Capture, reply: dict[str, Any], command: str | Sequence[str], check: bool) -> CommandResult:
    """The result that a reply stands for, or the error that it amounts to."""
    given = reply.get("signal")
    number = None if given is None else untrusted.number(given, 1, 255)
    pid, exit_code = untrusted.number(reply.get("pid"), 0), untrusted.number(reply.get("exit_code"), 0, 511)
    result = capture.result(exit_code, number, untrusted.seconds(reply.get("duration_s")), pid)
    if result.exit_code == 0 and reply.get("reason") is None:
        return result
    what = _shown(command)
    if reply.get("reason") == "timeout":
        raise CommandTimeout(f"{what} was killed with all it had started: its time limit was over after {result.duration_s:.1f} s", result)
    if result.exit_code == KILLED and reply.get("reason") is None:
        seen = reply.get("memory_kills")
        kills = session.sandbox.memory_kills() if seen is None else untrusted.number(seen, 0)
        if kills > session.memory_kills:
            session.memory_kills = kills
            limit = session.sandbox.spec.resources.memory_bytes
            raise OutOfMemory(f"{what} was killed: the workspace reached its memory limit of {limit} bytes", result)
    if check and result.exit_code:
        tail = printable(result.stderr.strip()[-500:])
        raise CommandFailed(f"{what} ended with exit code {result.exit_code}" + (f": {tail}" if tail else ""), result)
    return result


class AsyncCommands:
    """`ws.commands`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def _request(self, command: str | Sequence[str], timeout_s: Timeout, env: Mapping[str, str] | None, **rest: Any) -> dict[str, Any]:
        spec = self._session.sandbox.spec
        limit = spec.timeout_s if isinstance(timeout_s, _Default) else check_timeout(timeout_s)
        argv = to_argv(command, str(self._session.hello.get("shell", "/bin/sh")))
        if rest.pop("max_output_bytes") < 0:
            raise InvalidArgument("max_output_bytes cannot be negative")
        return {"argv": argv, "env": _checked_env(env), "timeout_s": limit, **rest}

    async def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: Timeout = DEFAULT,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: Stdin = None,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
        on_output: OnOutput = None,
        check: bool = False,
        merge: bool = False,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> CommandResult:
        """Runs a command and returns when it has ended.

        A string is run by bash (sh where there is none), a list is executed directly. Without `stdin` it reads end
        of file at once. `cwd` is a path in the workspace (default /workspace). `merge` puts stderr into stdout.
        `on_stdout` and `on_stderr` get text as it comes, `on_output` every `OutputChunk` with its exact bytes.
        A command that leaves processes behind does not hold the call up; they live on until the workspace closes.

        Raises `CommandTimeout` after `timeout_s` (default: the spec's; None: no limit), when all that it started has
        been killed; `OutOfMemory`; with `check`, `CommandFailed` for a non-zero exit. Cancelling kills it.
        """
        check_stdin(stdin)
        about = {"cwd": cwd, "user": user, "merge": merge, "max_output_bytes": max_output_bytes}
        request = self._request(command, timeout_s, env, stdin=stdin is not None, **about)
        capture, listener = Capture(max_output_bytes), _Listener(on_output, on_stdout, on_stderr)
        async with self._session.stream("command.run", **request) as stream:
            feeding = Feeding(stream, stdin)
            try:
                async for flags, data in stream:
                    capture.feed(flags, data)
                    await listener.feed(flags, data)
                await listener.finish()
                reply = await stream.result()
                feeding.check()
            finally:
                await feeding.stop()
        return finish(self._session, capture, reply, command, check)

    async def start(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: Timeout = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
        merge: bool = False,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> AsyncCommandHandle:
        """Starts a command in the background and returns when it runs. It lives until it ends or the workspace closes."""
        about = {"cwd": cwd, "user": user, "merge": merge, "max_output_bytes": max_output_bytes}
        request = self._request(command, timeout_s, env, stdin=stdin, background=True, **about)
        return await self._listen("command.run", request, max_output_bytes, stdin)

    async def connect(self, pid: int, max_output_bytes: int = MAX_OUTPUT_BYTES) -> AsyncCommandHandle:
        """Takes up a running command again, recent output first; one that ended up to 30 s ago too."""
        return await self._listen("command.connect", {"pid": pid}, max_output_bytes, True)

    async def _listen(self, method: str, request: dict[str, Any], limit: int, stdin: bool) -> AsyncCommandHandle:
        async with self._session.use() as link:
            stream = link.request(method, **request)
            try:
                pid = untrusted.number((await stream.event()).get("pid"), 0)
            except asyncio.CancelledError:
                await asyncio.shield(self._abandon(stream, kill="background" in request))
                raise
        return AsyncCommandHandle(self._session, stream, pid, limit, stdin)

    async def _abandon(self, stream: Stream, kill: bool) -> None:
        """A start that is cancelled: a command that runs by now is killed, nobody has a handle of it."""
        with contextlib.suppress(WorkspaceError, TimeoutError):
            event = await asyncio.wait_for(stream.event(), CANCEL_GRACE_S)
            if kill:
                await self._session.call("command.kill", pid=event.get("pid"))
        stream.cancel()

    async def list(self) -> list[CommandInfo]:
        """Commands that run or have left processes behind, from every handle of this workspace."""
        reply = await self._session.call("command.list")
        return [_info(untrusted.fields(entry)) for entry in untrusted.items(reply.get("commands"))]

    async def kill(self, pid: int) -> bool:
        """Kills a command with all it started, or one process that a command left behind. False if there is none."""
        reply = await self._session.call("command.kill", pid=pid)
        return bool(reply.get("killed"))

    async def signal(self, pid: int, number: int = signals.SIGTERM) -> None:
        """Sends a signal to a command's process group, or to one process below a command."""
        await self._session.call("command.signal", pid=pid, signal=int(number))


def _shown(command: str | Sequence[str]) -> str:
    text = command if isinstance(command, str) else " ".join(command)
    return f"command `{printable(text[:200])}`"


def _info(entry: dict[str, Any]) -> CommandInfo:
    return CommandInfo(
        pid=untrusted.number(entry.get("pid"), 0),
        argv=tuple(untrusted.text(word) for word in untrusted.items(entry.get("argv"))),
        cwd=untrusted.text(entry.get("cwd")),
        user=untrusted.text(entry.get("user")),
        background=bool(entry.get("background")),
        started_at=untrusted.seconds(entry.get("started_at")),
        ended=bool(entry.get("ended")),
        pids=tuple(untrusted.number(pid, 0) for pid in untrusted.items(entry.get("pids"))),
    )

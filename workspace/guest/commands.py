"""Commands: started, listened to, signalled, killed with everything they started."""

from __future__ import annotations

import errno
import os
import time

from . import wire
from .channel import LATER
from .faults import Fault
from .metrics import memory_kills
from .output import Input, Output
from .processes import AT_CWD, AT_PROGRAM, CannotStart, kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Stream
    from .loop import Loop, Timer
    from .paths import Paths
    from .processes import Processes

LINGER_S = 30.0
"""How long an ended command that was started in the background can still be connected to."""
MAX_ENDED = 256
MAX_COMMANDS = 1024
SWEEP_AFTER = 64
"""How many ended commands may be remembered before it is looked which have left processes behind."""


class Command:
    """One command and all its descendants, which share its tag."""

    def __init__(self, owner: Commands, stream: Stream, request: dict[str, Any]) -> None:
        self.pid = 0
        self.tag = 0
        self.request = request
        self.output = Output(owner.loop)
        self.input: Input | None = None
        self.status: int | None = None
        self.reason: str | None = None
        self.started_at = time.time()
        self._owner = owner
        self._begun = time.monotonic()
        self._duration = 0.0
        self._killing = False
        self._answered = False
        self._timer: Timer | None = None
        self._listeners: list[Stream] = []
        self.attach(stream, replay=False)

    @property
    def background(self) -> bool:
        return bool(self.request.get("background"))

    @property
    def over(self) -> bool:
        """The command has ended and its result is told; processes of its may be left."""
        return self._answered and not self._killing

    def attach(self, stream: Stream, replay: bool) -> None:
        self._listeners.append(stream)
        stream.passive = self.background
        stream.on_data = lambda data, end: self._on_input(stream, data, end)
        stream.on_cancel = lambda link_lost: self._on_cancel(stream, link_lost)
        self.output.listen(stream, replay)

    def launch(self, fds: list[int]) -> None:
        """Starts it; raises `CannotStart`."""
        self.pid, self.tag = self._owner.processes.start(self.request, fds, self)
        timeout = self.request.get("timeout_s")
        if timeout is not None:
            self._timer = self._owner.loop.after(timeout, lambda: self.kill("timeout"))
        if self.background:
            for stream in self._listeners:
                stream.event({"event": "started", "pid": self.pid})

    def kill(self, reason: str) -> None:
        """Kills the whole tree; `reason` is told with the result."""
        if self.status is None:
            self.reason = self.reason or reason
        if not self._killing:
            self._killing = True
            self._owner.processes.kill_tag(self.tag, self._on_killed)

    def on_exited(self, status: int) -> None:
        self.status = status
        self._duration = time.monotonic() - self._begun
        if self._timer is not None:
            self._timer.cancel()
        if not self._killing:
            self.output.drain(self.answer)

    def _on_killed(self) -> None:
        self._killing = False
        if self._answered:
            self.close()
        else:
            self.output.drain(self.answer)

    def answer(self) -> None:
        """Tells the result to all who listen."""
        self._answered = True
        for stream in self._listeners:
            self.output.forget(stream)
            stream.reply(self.result())
        self._listeners.clear()
        self._owner.on_over(self)

    def fail_as_a_shell_does(self, number: int) -> None:
        """Exit codes 127 and 126 with a message, as POSIX has it for a command not found and not executable."""
        missing = number in (errno.ENOENT, errno.ENOTDIR)
        what = "command not found" if missing else os.strerror(number)
        message = ("%s: %s\n" % (self.request["argv"][0], what)).encode("utf-8", "surrogateescape")
        for stream in self._listeners:
            stream.send(message, wire.STDERR)
        self.status = (127 if missing else 126) << 8
        self.answer()

    def result(self) -> dict[str, Any]:
        status = self.status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return {
            "pid": self.pid,
            "exit_code": 128 + number if number else os.WEXITSTATUS(status),
            "signal": number,
            "duration_s": self._duration,
            "reason": self.reason,
            "memory_kills": memory_kills() if number == 9 or self._looks_killed() else None,
        }

    def _looks_killed(self) -> bool:
        """A shell reports a child that was killed as 137."""
        return os.WIFEXITED(self.status or 0) and os.WEXITSTATUS(self.status or 0) == 137

    def describe(self, pids: list[int]) -> dict[str, Any]:
        shown = ("argv", "cwd", "user")
        details = {key: self.request.get(key) for key in shown}
        ended = self.status is not None
        details.update(pid=self.pid, pids=pids, started_at=self.started_at, ended=ended, background=self.background)
        return details

    def _on_input(self, stream: Stream, data: bytes, end: bool) -> None:
        if self.input is not None:
            self.input.write(stream, data, end)
        else:
            stream.grant(wire.cost(len(data)))

    def _on_cancel(self, stream: Stream, link_lost: bool) -> None:
        """A background command outlives its listeners; any other dies with the one who asked for it."""
        foreground = not self.background and len(self._listeners) == 1
        self.output.forget(stream)
        if link_lost or not foreground or self.status is not None:
            self._listeners.remove(stream)
            stream.reply({"detached": True})
        if foreground:
            self.kill("cancelled")

    def close(self) -> None:
        self.output.close()
        if self.input is not None:
            self.input.close()


class Commands:
    """The requests `command.*`."""

    def __init__(self, loop: Loop, processes: Processes, paths: Paths, config: dict[str, Any]) -> None:
        self.loop = loop
        self.processes = processes
        self._paths = paths
        self._config = config
        self._by_tag: dict[int, Command] = {}
        self._running = 0
        self._sweep_due = False
        self._ended: dict[int, Command] = {}

    def run(self, stream: Stream, request: dict[str, Any]) -> object:
        """Runs a command; the reply comes when it has ended and its output has been sent."""
        if self._running >= MAX_COMMANDS:
            raise Fault("EAGAIN", "more than %d commands at once" % MAX_COMMANDS)
        self._complete(request)
        command = Command(self, stream, request)
        theirs: list[int] = []
        ours: list[int] = []
        try:
            self._open_stdio(request, theirs, ours)
            command.launch(theirs)
        except CannotStart as failure:
            _close_all(ours)
            if failure.step == AT_PROGRAM and not command.background:
                self._running += 1
                command.fail_as_a_shell_does(failure.number)
                return LATER
            raise _cannot_start(failure, request) from None
        except OSError:
            _close_all(ours)
            raise
        finally:
            _close_all(theirs)
        self._running += 1
        self._by_tag[command.tag] = command
        if request.get("stdin"):
            command.input = Input(self.loop, ours.pop(0))
        for fd, flags in zip(ours, (0, wire.STDERR)):  # noqa: B905 (3.8)
            command.output.add_pipe(fd, flags)
        return LATER

    def _complete(self, request: dict[str, Any]) -> None:
        """Fills in the user, the directory and the environment that every command starts from."""
        user = request["user"] = request.get("user") or self._config["user"]
        if user not in self._config["users"]:
            known = ", ".join(sorted(self._config["users"]))
            raise Fault("EINVAL", "there is no user %r here; there are: %s" % (user, known))
        request["cwd"] = cwd = self._paths.real(request.get("cwd") or "/workspace")
        env = dict(self._config["env"], USER=user, LOGNAME=user, PWD=cwd)
        if user != self._config["user"]:
            env["HOME"] = "/" + user
        env.update(request.get("env") or {})
        request["env"] = env

    def _open_stdio(self, request: dict[str, Any], theirs: list[int], ours: list[int]) -> None:
        if request.get("stdin"):
            reader, writer = os.pipe()
            theirs.append(reader)
            ours.append(writer)
        else:
            theirs.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(1 if request.get("merge") else 2):
            reader, writer = os.pipe()
            theirs.append(writer)
            ours.append(reader)
        if request.get("merge"):
            theirs.append(os.dup(theirs[-1]))

    def on_over(self, command: Command) -> None:
        """A command's result is told. What it left behind is looked for now and then, not after every command."""
        self._running -= 1
        if command.background:
            self._ended[command.pid] = command
            while len(self._ended) > MAX_ENDED:
                del self._ended[next(iter(self._ended))]
            self.loop.after(LINGER_S, lambda: self._ended.pop(command.pid, None))  # type: ignore[arg-type]
        if len(self._by_tag) - self._running > SWEEP_AFTER and not self._sweep_due:
            self._sweep_due = True
            self.loop.after(0, self._sweep_now)

    def _sweep_now(self) -> None:
        self._sweep()

    def _sweep(self) -> dict[int, list[int]]:
        """Forgets commands that are over and have left nothing; tag → pids of the others."""
        self._sweep_due = False
        self.processes.reap()
        tagged = self.processes.tagged()
        for tag in [tag for tag, command in self._by_tag.items() if command.over and tag not in tagged]:
            self._by_tag.pop(tag).close()
        return tagged

    def list(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Every command that runs or has left processes behind."""
        tagged = self._sweep()
        return {"commands": [command.describe(tagged.get(tag, [])) for tag, command in self._by_tag.items()]}

    def connect(self, stream: Stream, request: dict[str, Any]) -> object:
        """Listens to a running command; recent output first."""
        pid = request["pid"]
        command = next((one for one in self._by_tag.values() if one.pid == pid and not one.over), None) or self._ended.get(pid)
        if command is None:
            raise Fault("ESRCH", "no command with pid %d" % pid, pid=pid)
        command.attach(stream, replay=True)
        stream.event({"event": "started", "pid": pid})
        if command.over:
            self._running += 1
            command.answer()
        return LATER

    def _find(self, pid: int) -> Command | None:
        """The command that `pid` leads or belongs to."""
        tagged = self._sweep()
        return next((command for tag, command in self._by_tag.items() if command.pid == pid or pid in tagged.get(tag, ())), None)

    def signal(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a signal to the process group of a command, or to one process of a command."""
        pid, number = request["pid"], request["signal"]
        command = self._find(pid)
        if command is None:
            raise Fault("ESRCH", "no process with pid %d" % pid, pid=pid)
        if command.pid == pid and command.status is None:
            os.killpg(pid, number)
        else:
            kill(pid, number)
        return {}

    def kill(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Kills a command with its whole tree, or one process that a command left behind; False if there is none."""
        pid = request["pid"]
        command = self._find(pid)
        if command is None:
            return {"killed": False}
        if command.pid == pid:
            command.kill("killed")
        else:
            kill(pid)
        return {"killed": True}


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def _cannot_start(failure: CannotStart, request: dict[str, Any]) -> Fault:
    path = request["cwd"] if failure.step == AT_CWD else request["argv"][0]
    code = errno.errorcode.get(failure.number, "EIO")
    return Fault(code, os.strerror(failure.number), what=failure.step, path=path)

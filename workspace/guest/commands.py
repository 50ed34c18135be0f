"""Commands: started, listened to, signalled, killed with everything they started."""

from __future__ import annotations

import errno
import os
import time

from . import wire
from .channel import LATER
from .faults import Fault
from .herd import kill
from .output import Input, Output
from .shepherd import AT_CWD, AT_PROGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Stream
    from .herd import Herd, Shepherd
    from .loop import Loop, Timer
    from .paths import Paths

LINGER_S = 30.0
"""How long an ended command that was started in the background can still be connected to."""
MAX_ENDED = 256
MAX_COMMANDS = 1024


class Command:
    """One command and all its descendants. `herd.Job` for its shepherd."""

    def __init__(self, owner: Commands, stream: Stream, request: dict[str, Any]) -> None:
        self.pid = 0
        self.request = request
        self.output = Output(owner.loop)
        self.input: Input | None = None
        self.shepherd: Shepherd | None = None
        self.status: int | None = None
        self.left = True
        self.reason: str | None = None
        self.started_at = time.time()
        self._owner = owner
        self._begun = time.monotonic()
        self._duration = 0.0
        self._drained = False
        self._timer: Timer | None = None
        self._listeners: list[Stream] = []
        self.attach(stream, replay=False)

    def attach(self, stream: Stream, replay: bool) -> None:
        self._listeners.append(stream)
        stream.on_data = lambda data, end: self._on_input(stream, data, end)
        stream.on_cancel = lambda link_lost: self._on_cancel(stream, link_lost)
        self.output.listen(stream, replay)

    def launch(self, fds: list[int]) -> None:
        request = self.request
        spawn = {key: request[key] for key in ("argv", "env", "cwd")}
        self.shepherd = self._owner.herd.start(spawn, fds, self, request["user"])
        timeout = request.get("timeout_s")
        if timeout is not None:
            self._timer = self._owner.loop.after(timeout, lambda: self.kill("timeout"))

    def kill(self, reason: str | None) -> None:
        """Kills the whole tree; `reason` is told with the result."""
        if self.shepherd is None or not self.left:
            return
        if self.status is None:
            self.reason = self.reason or reason
        self._owner.herd.kill_tree(self.shepherd)

    def members(self) -> list[int]:
        return self._owner.herd.members(self.shepherd) if self.shepherd is not None and self.left else []

    def on_started(self, pid: int) -> None:
        self.pid = pid
        self._owner.by_pid[pid] = self
        if self.request.get("background"):
            self._tell({"event": "started", "pid": pid})

    def on_failed(self, number: int, step: int) -> None:
        self.left = False
        self._stop_timer()
        self._close()
        self._owner.forget(self)
        name = self.request["argv"][0]
        if step == AT_PROGRAM and not self.request.get("background"):
            self._fail_as_a_shell_does(name, number)
            return
        if step == AT_CWD:
            details = {"path": self.request["cwd"], "what": "cwd"}
        else:
            details = {"path": name, "what": "program" if step == AT_PROGRAM else "spawn"}
        code = errno.errorcode.get(number, "EIO")
        self._end(Fault(code, os.strerror(number), **details))

    def _fail_as_a_shell_does(self, name: str, number: int) -> None:
        """Exit codes 127 and 126 with a message, as POSIX has it for a command not found and not executable."""
        missing = number in (errno.ENOENT, errno.ENOTDIR)
        what = "command not found" if missing else os.strerror(number)
        message = ("%s: %s\n" % (name, what)).encode("utf-8", "surrogateescape")
        for stream in self._listeners:
            stream.send(message, wire.STDERR)
        self.status = (127 if missing else 126) << 8
        self._finish()

    def on_exited(self, status: int, left: bool) -> None:
        self.status = status
        self.left = left
        self._duration = time.monotonic() - self._begun
        self._stop_timer()
        if self.reason is None:
            self.output.drain(self._on_drained)

    def on_idle(self) -> None:
        self.left = False
        if self.reason is not None and not self._drained:
            self.output.drain(self._on_drained)
        elif self._drained:
            self._close()
            self._owner.forget(self)

    def _on_drained(self) -> None:
        self._drained = True
        self._finish()
        if not self.left:
            self._close()
            self._owner.forget(self)

    def _finish(self) -> None:
        self._owner.remember(self)
        for stream in self._listeners:
            self.output.forget(stream)
            stream.reply(self.result())
        self._listeners.clear()

    def result(self) -> dict[str, Any]:
        status = self.status or 0
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        return {
            "pid": self.pid,
            "exit_code": 128 + number if number else os.WEXITSTATUS(status),
            "signal": number,
            "duration_s": self._duration,
            "reason": self.reason,
        }

    def describe(self) -> dict[str, Any]:
        shown = ("argv", "cwd", "user", "background")
        details = {key: self.request.get(key) for key in shown}
        details.update(pid=self.pid, pids=self.members(), started_at=self.started_at, ended=self.status is not None)
        return details

    def _end(self, fault: Fault) -> None:
        for stream in self._listeners:
            self.output.forget(stream)
            stream.fail(fault)
        self._listeners.clear()

    def _tell(self, event: dict[str, Any]) -> None:
        for stream in self._listeners:
            stream.event(event)

    def _on_input(self, stream: Stream, data: bytes, end: bool) -> None:
        if self.input is not None:
            self.input.write(stream, data, end)
        else:
            stream.grant(wire.cost(len(data)))

    def _on_cancel(self, stream: Stream, link_lost: bool) -> None:
        """A background command outlives its listeners; any other dies with the one who asked for it."""
        foreground = not self.request.get("background") and len(self._listeners) == 1
        self.output.forget(stream)
        if link_lost or not foreground or self.status is not None:
            self._listeners.remove(stream)
            stream.reply({"detached": True})
        if foreground:
            self.kill("cancelled")

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self) -> None:
        self.output.close()
        if self.input is not None:
            self.input.close()


class Commands:
    """The requests `command.*`."""

    def __init__(self, loop: Loop, herd: Herd, paths: Paths, config: dict[str, Any]) -> None:
        self.loop = loop
        self.herd = herd
        self._paths = paths
        self._config = config
        self.by_pid: dict[int, Command] = {}
        self._live: dict[Command, None] = {}
        self._ended: dict[int, Command] = {}

    def run(self, stream: Stream, request: dict[str, Any]) -> object:
        """Runs a command; the reply comes when it has ended and its output has been sent."""
        if len(self._live) >= MAX_COMMANDS:
            raise Fault("EAGAIN", "more than %d commands at once" % MAX_COMMANDS)
        self._complete(request)
        command = Command(self, stream, request)
        theirs: list[int] = []
        ours: list[int] = []
        try:
            self._open_stdio(request, theirs, ours)
            command.launch(theirs)
        except OSError:
            for fd in ours:
                os.close(fd)
            raise
        finally:
            for fd in theirs:
                os.close(fd)
        if request.get("stdin"):
            command.input = Input(self.loop, ours.pop(0))
        for fd, flags in zip(ours, (0, wire.STDERR)):  # noqa: B905 (3.8)
            command.output.add_pipe(fd, flags)
        self._live[command] = None
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

    def list(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Every command that runs or has left processes behind."""
        return {"commands": [command.describe() for command in self._live if command.pid]}

    def connect(self, stream: Stream, request: dict[str, Any]) -> object:
        """Listens to a running command; recent output first."""
        pid = request["pid"]
        command = self.by_pid.get(pid) or self._ended.get(pid)
        if command is None:
            raise Fault("ESRCH", "no command with pid %d" % pid, pid=pid)
        command.attach(stream, replay=True)
        stream.event({"event": "started", "pid": pid})
        if command.status is not None:
            command._finish()
        return LATER

    def signal(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a signal to the process group of a command, or to one process below a command."""
        pid, number = request["pid"], request["signal"]
        command = self.by_pid.get(pid)
        if command is not None and command.status is None:
            os.killpg(pid, number)
            return {}
        if any(pid in other.members() for other in self._live):
            kill(pid, number)
            return {}
        raise Fault("ESRCH", "no process with pid %d" % pid, pid=pid)

    def kill(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        """Kills a command with its whole tree, or one process that a command left behind; False if there is none."""
        pid = request["pid"]
        command = self.by_pid.get(pid)
        if command is not None:
            command.kill("killed")
            return {"killed": True}
        if any(pid in other.members() for other in self._live):
            kill(pid)
            return {"killed": True}
        return {"killed": False}

    def remember(self, command: Command) -> None:
        """Keeps an ended background command for a while, for those who connect late."""
        if not command.request.get("background") or command.pid in self._ended:
            return
        self._ended[command.pid] = command
        while len(self._ended) > MAX_ENDED:
            del self._ended[next(iter(self._ended))]
        self.loop.after(LINGER_S, lambda: self._ended.pop(command.pid, None))  # type: ignore[arg-type]

    def forget(self, command: Command) -> None:
        self._live.pop(command, None)
        if self.by_pid.get(command.pid) is command:
            del self.by_pid[command.pid]

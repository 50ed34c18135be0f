"""The host's side of the launcher: one launcher per host process, started when it is first needed."""

from __future__ import annotations

import array
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workspace.errors import StartFailed

_SCRIPT = Path(__file__).with_name("launcher.py")
FIRST_FD = 10
"""The number that the first descriptor passed to a sandbox has there; the others follow."""


class Nursery:
    """Starts processes through the launcher and hears of their ends. Thread-safe."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        self._ids = itertools.count(1)
        self._lock = threading.Lock()
        self._answers: dict[int, _Answer] = {}
        self._children: dict[int, Child] = {}
        self._ended_early: dict[int, int] = {}
        self._process = self._spawn(theirs)
        theirs.close()
        threading.Thread(target=self._listen, name="workspace-nursery", daemon=True).start()

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        code = f"import os;os.dup2({theirs.fileno()},3);exec(compile(open({str(_SCRIPT)!r}).read(),'launcher','exec'))"
        command = [sys.executable, "-I", "-S", "-c", code]
        null = subprocess.DEVNULL
        return subprocess.Popen(
            command, env={}, cwd="/", stdin=null, stdout=null, stderr=null, pass_fds=[theirs.fileno()], start_new_session=True
        )

    @property
    def usable(self) -> bool:
        return self._process.poll() is None

    def start(self, request: dict[str, Any], fds: list[int]) -> Child:
        """Forks and executes `request["argv"]` with copies of `fds`; the last one takes its output."""
        number = next(self._ids)
        answer = self._answers[number] = _Answer()
        body = json.dumps({**request, "id": number}).encode()
        try:
            self._sock.sendmsg([body], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        except OSError as error:
            raise StartFailed(f"the launcher does not answer: {error}") from error
        if not answer.ready.wait(30):
            raise StartFailed("the launcher has not answered for 30 s")
        if answer.error is not None:
            raise StartFailed(f"a sandbox cannot be forked: {answer.error}")
        child = Child(answer.pid)
        with self._lock:
            status = self._ended_early.pop(answer.pid, None)
            if status is None:
                self._children[answer.pid] = child
        if status is not None:
            child.end(status)
        return child

    def _listen(self) -> None:
        while True:
            try:
                data = self._sock.recv(65536)
            except OSError:
                data = b""
            if not data:
                break
            self._on_message(json.loads(data))
        for answer in list(self._answers.values()):
            answer.give(0, "the launcher ended")

    def _on_message(self, message: dict[str, Any]) -> None:
        if "exited" in message:
            pid, status = message["exited"], message["status"]
            with self._lock:
                child = self._children.pop(pid, None)
                if child is None:
                    self._ended_early[pid] = status
            if child is not None:
                child.end(status)
        else:
            self._answers.pop(message["id"]).give(message.get("pid", 0), message.get("error"))


class _Answer:
    def __init__(self) -> None:
        self.ready = threading.Event()
        self.pid = 0
        self.error: str | None = None

    def give(self, pid: int, error: str | None) -> None:
        self.pid, self.error = pid, error
        self.ready.set()


class Child:
    """One process that the launcher started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self._ended = threading.Event()
        self._callbacks: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def end(self, status: int) -> None:
        with self._lock:
            self.status = status
            callbacks, self._callbacks = self._callbacks, []
            self._ended.set()
        for callback in callbacks:
            callback()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Calls `callback`, from another thread, when the process has ended; at once if it has already."""
        with self._lock:
            if self.status is None:
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended, within `timeout_s`."""
        return self._ended.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL; the pid cannot have been reused, because the launcher tells of every end before it reaps another."""
        with self._lock:
            if self.status is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, 9)


_nursery: Nursery | None = None
_nursery_pid = 0
_guard = threading.Lock()


def nursery() -> Nursery:
    """This process's launcher; a new one after a fork or when it was killed."""
    global _nursery, _nursery_pid
    with _guard:
        if _nursery is None or _nursery_pid != os.getpid() or not _nursery.usable:
            _nursery, _nursery_pid = Nursery(), os.getpid()
        return _nursery

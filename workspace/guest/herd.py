"""All shepherds, and the killing of what runs under them.

Invariant: the guest's only children are shepherds. Any other child is an orphan of a shepherd that user code has
killed; it is killed with everything below it, so killing a shepherd is no way to outlive a timeout.
"""

from __future__ import annotations

import _socket
import os

from . import shepherd
from .loop import READ
from .shepherd import EXITED, FAILED, IDLE, REPORT, STARTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    from .loop import Loop

    class Job(Protocol):
        """What a command tells the herd it wants to hear."""

        def on_started(self, pid: int) -> None: ...
        def on_failed(self, number: int, step: int) -> None: ...
        def on_exited(self, status: int, left: bool) -> None: ...
        def on_idle(self) -> None: ...


SPARE = 2
"""Idle shepherds that are kept for the next command."""
SIGKILL, SIGSTOP = 9, 19
KILL_INTERVAL_S = 0.002
KILL_ROUNDS = 100
"""Rounds after which a tree that forks faster than it can be killed takes everything in the sandbox with it."""


def process_tree() -> dict[int, list[int]]:
    """Parent → children, for every process that is visible."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name, "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] != b"Z":
            children.setdefault(int(fields[1]), []).append(int(name))
    return children


def below(tree: dict[int, list[int]], root: int) -> list[int]:
    """All descendants of `root`, parents first."""
    found = []
    waiting = list(tree.get(root, ()))
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting.extend(tree.get(pid, ()))
    return found


def kill(pid: int, number: int = SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_everything() -> None:
    """The kernel kills all other processes of this pid namespace in one step, which no fork can outrun (kill(2))."""
    if os.getpid() == 1:
        kill(-1)


def kill_below(root: int) -> None:
    """One attempt at all descendants of `root`: stopped first, so that they cannot fork, then killed."""
    stopped: set[int] = set()
    for _ in range(16):
        fresh = [pid for pid in below(process_tree(), root) if pid not in stopped]
        if not fresh:
            break
        for pid in fresh:
            kill(pid, SIGSTOP)
        stopped.update(fresh)
    for pid in stopped:
        kill(pid)


class Shepherd:
    """The guest's handle of one shepherd process."""

    __slots__ = ("job", "killing", "pid", "sock", "user")

    def __init__(self, pid: int, sock: _socket.socket, user: str) -> None:
        self.pid = pid
        self.sock = sock
        self.user = user
        self.job: Job | None = None
        self.killing = 0


class Herd:
    def __init__(self, loop: Loop, limits: dict[str, int], identities: dict[str, Any]) -> None:
        self._loop = loop
        self._limits = limits
        self._identities = identities
        self._idle: dict[str, list[Shepherd]] = {}
        self._all: dict[int, Shepherd | None] = {}
        self._sweeping = False

    def start(self, request: dict[str, Any], fds: list[int], job: Job, user: str) -> Shepherd:
        """Starts a command under a shepherd of `user`; the rest is told to `job`."""
        idle = self._idle.get(user)
        chosen = idle.pop() if idle else self._fork(user)
        chosen.job = job
        try:
            shepherd.send_request(chosen.sock, request, fds)
        except OSError:  # it was killed while it idled
            self._lose(chosen, quiet=True)
            chosen = self._fork(user)
            chosen.job = job
            shepherd.send_request(chosen.sock, request, fds)
        return chosen

    def prepare(self, user: str) -> None:
        """Has one idle shepherd ready."""
        if not self._idle.get(user):
            self._idle.setdefault(user, []).append(self._fork(user))

    def identity(self, user: str) -> Any:
        """Who a child that works for `user` has to become; None: stay as it is."""
        return self._identities[user]

    def adopt(self, pid: int) -> None:
        """Counts `pid`, a child of the guest, as one of ours."""
        self._all[pid] = None

    def members(self, owner: Shepherd) -> list[int]:
        """The pids under `owner`."""
        return below(process_tree(), owner.pid)

    def kill_tree(self, owner: Shepherd) -> None:
        """Kills all that runs under `owner`; its job hears `on_idle` when nothing is left."""
        if not owner.killing:
            self._kill_round(owner)

    def kill_all(self) -> None:
        """Kills everything but the guest."""
        kill_below(os.getpid())
        kill_everything()

    def _fork(self, user: str) -> Shepherd:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            raise
        if pid == 0:
            shepherd.run(theirs, self._limits, self._identities[user])
        theirs.close()
        born = self._all[pid] = Shepherd(pid, ours, user)
        self._loop.watch(ours.fileno(), READ, lambda events: self._on_report(born))
        return born

    def _on_report(self, owner: Shepherd) -> None:
        try:
            data = owner.sock.recv(REPORT.size * 16)
        except OSError:
            data = b""
        if not data:
            self._lose(owner)
            return
        while len(data) % REPORT.size:
            data += owner.sock.recv(REPORT.size - len(data) % REPORT.size)
        for at in range(0, len(data), REPORT.size):
            self._report(owner, *REPORT.unpack_from(data, at))

    def _report(self, owner: Shepherd, kind: int, first: int, second: int) -> None:
        job = owner.job
        if job is None:
            return
        if kind == STARTED:
            job.on_started(first)
        elif kind == FAILED:
            self._rest(owner)
            job.on_failed(first, second)
        elif kind == EXITED:
            if not second:
                self._rest(owner)
            job.on_exited(first, bool(second))
            if not second:
                job.on_idle()
        elif kind == IDLE:
            self._rest(owner)
            job.on_idle()

    def _rest(self, owner: Shepherd) -> None:
        owner.job = None
        owner.killing = 0
        idle = self._idle.setdefault(owner.user, [])
        if len(idle) < SPARE:
            idle.append(owner)
        else:
            self._dismiss(owner)

    def _dismiss(self, owner: Shepherd) -> None:
        self._loop.unwatch(owner.sock.fileno())
        owner.sock.close()  # it reads end of file and exits; SIGCHLD reaps it

    def _lose(self, owner: Shepherd, quiet: bool = False) -> None:
        """The shepherd was killed from inside: its command counts as killed, its orphans are killed."""
        if owner in self._idle.get(owner.user, ()):
            self._idle[owner.user].remove(owner)
        self._dismiss(owner)
        kill(owner.pid)
        job, owner.job = owner.job, None
        self._sweep()
        if job is not None and not quiet:
            job.on_exited(SIGKILL, False)
            job.on_idle()

    def reap(self) -> None:
        """Collects ended children; for SIGCHLD."""
        try:
            while True:
                pid = os.waitpid(-1, os.WNOHANG)[0]
                if not pid:
                    break
                self._all.pop(pid, None)
        except ChildProcessError:
            pass
        self._sweep()

    def _sweep(self) -> None:
        """Kills children that are not shepherds, and all below them, until there are none."""
        if self._sweeping:
            return
        self._sweeping = True
        self._sweep_round(0)

    def _sweep_round(self, rounds: int) -> None:
        tree = process_tree()
        strays = [pid for pid in tree.get(os.getpid(), ()) if pid not in self._all]
        if not strays:
            self._sweeping = False
            return
        for stray in strays:
            kill(stray, SIGSTOP)
            kill_below(stray)
            kill(stray)
        if rounds and rounds % KILL_ROUNDS == 0:
            kill_everything()
        self._loop.after(KILL_INTERVAL_S, lambda: self._sweep_round(rounds + 1))

    def _kill_round(self, owner: Shepherd) -> None:
        if owner.job is None or self._all.get(owner.pid) is not owner:
            return
        owner.killing += 1
        kill_below(owner.pid)
        if owner.killing % KILL_ROUNDS == 0:
            kill_everything()
        self._loop.after(KILL_INTERVAL_S, lambda: self._kill_round(owner))

"""Starting processes, knowing which belong together, killing them together.

Every command gets a *tag*: the soft limit RLIMIT_LOCKS, which the kernel has not used since Linux 2.4.25
(getrlimit(2)). A child inherits it over fork and exec, daemonised or not, and the seccomp filter keeps user code from
changing it: only who knows two secret words may (the filter compares unused argument registers). So the guest can
tell which processes belong to which command without a process of its own in between.
"""

from __future__ import annotations

import errno
import os
import resource

from . import sealing
from .sealing import RLIMIT_LOCKS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Protocol

    from .loop import Loop

    class Leader(Protocol):
        """Who wants to hear how a process ended."""

        def on_exited(self, status: int) -> None: ...


WORKER_TAG = 0
SIGKILL, SIGSTOP = 9, 19
KILL_INTERVAL_S = 0.002
KILL_ROUNDS = 100
"""Rounds after which a tree that forks faster than it can be killed takes everything in the sandbox with it."""
# What FAILED says about the step at which starting a command failed.
AT_CWD, AT_PROGRAM, AT_SPAWN = "cwd", "program", "spawn"
_DEFAULT_SIGNALS = [1, 2, 3, 10, 12, 13, 14, 15, 17, 25]
_NOT_RUNNABLE = (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR, errno.ELOOP)


class CannotStart(Exception):
    """A process did not start: the errno and the step that failed."""

    def __init__(self, number: int, step: str) -> None:
        super().__init__(number, step)
        self.number = number
        self.step = step


def kill(pid: int, number: int = SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def kill_everything() -> None:
    """The kernel kills all other processes of this pid namespace in one step, which no fork can outrun (kill(2))."""
    if os.getpid() == 1:
        kill(-1)


def _find_program(name: str, path: str) -> str:
    if "/" in name:
        return name
    denied = False
    for folder in path.split(":"):
        candidate = (folder or ".") + "/" + name
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
        denied = denied or os.path.isfile(candidate)
    raise CannotStart(errno.EACCES if denied else errno.ENOENT, AT_PROGRAM)


class Processes:
    """The processes of the sandbox."""

    def __init__(self, loop: Loop, config: dict[str, Any]) -> None:
        self._loop = loop
        self._users = config["users"]
        self._secret = config.get("tag_secret") or (0, 0)
        self._score_fd = config.get("score_fd", -1)
        self._leaders: dict[int, Leader] = {}
        self._own_pid = os.getpid()
        # Without a pid namespace other guests' processes are in sight: their tags must not be ours.
        self._first_tag = 1 if self._own_pid == 1 else int.from_bytes(os.urandom(5), "big") << 20
        self._next_tag = self._first_tag

    def start(self, request: dict[str, Any], fds: list[int], leader: Leader) -> tuple[int, int]:
        """Executes `argv` in `cwd` with `env` and `fds` as 0, 1, 2, as `user`, in a session of its own: (pid, tag).

        Raises `CannotStart`.
        """
        try:
            os.chdir(request["cwd"])
        except OSError as error:
            raise CannotStart(error.errno or errno.EIO, AT_CWD) from None
        tag = self._next_tag
        self._next_tag += 1
        sealing.set_tag(tag, *self._secret)
        self._score_for_oom(b"500")
        try:
            pid = self._spawn(request, fds)
        finally:
            sealing.set_tag(WORKER_TAG, *self._secret)
            self._score_for_oom(b"0")
            os.chdir("/")
        self._leaders[pid] = leader
        return pid, tag

    def _spawn(self, request: dict[str, Any], fds: list[int]) -> int:
        argv, env = request["argv"], request["env"]
        program = _find_program(argv[0], env.get("PATH", "/usr/bin:/bin"))
        actions: list[Any] = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        if request.get("terminal"):
            # A session leader's first terminal becomes its controlling one (tty_ioctl(4)).
            actions = [(os.POSIX_SPAWN_OPEN, 0, request["terminal"], os.O_RDWR, 0)]
            actions += [(os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2)]
        try:
            return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_DEFAULT_SIGNALS)
        except OSError as error:
            step = AT_PROGRAM if error.errno in _NOT_RUNNABLE else AT_SPAWN
            raise CannotStart(error.errno or errno.EIO, step) from None

    def _score_for_oom(self, score: bytes) -> None:
        """When memory runs out, commands go before the guest: they inherit a high score, which Landlock keeps them from lowering."""
        if self._score_fd >= 0:
            os.pwrite(self._score_fd, score, 0)

    def tagged(self) -> dict[int, list[int]]:
        """Tag → pids, of all processes but the guest's own."""
        found: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            if not name.isdigit() or int(name) == self._own_pid:
                continue
            try:
                tag = resource.prlimit(int(name), RLIMIT_LOCKS)[0]
            except (ProcessLookupError, PermissionError):
                continue
            found.setdefault(tag, []).append(int(name))
        return found

    def members(self, tag: int) -> list[int]:
        """The pids with this tag; zombies that wait for their parent are among them."""
        return self.tagged().get(tag, [])

    def kill_tag(self, tag: int, gone: Callable[[], None], rounds: int = 1) -> None:
        """Kills all processes with `tag`; calls `gone` when there are none."""
        if not self._kill_once(tag):
            gone()
            return
        if rounds % KILL_ROUNDS == 0:
            kill_everything()
        self._loop.after(KILL_INTERVAL_S, lambda: self.kill_tag(tag, gone, rounds + 1))

    def _kill_once(self, tag: int) -> bool:
        """One attempt: all are stopped first, so that they cannot fork, then killed. Whether there were any."""
        self.reap()
        stopped: set[int] = set()
        for _ in range(16):
            fresh = [pid for pid in self.members(tag) if pid not in stopped]
            if not fresh:
                break
            for pid in fresh:
                kill(pid, SIGSTOP)
            stopped.update(fresh)
        for pid in stopped:
            kill(pid)
        return bool(stopped)

    def kill_all(self) -> None:
        """Kills everything but the guest; for its end."""
        for tag in self.tagged():
            if self._first_tag <= tag < self._next_tag:
                self._kill_once(tag)
        kill_everything()

    def reap(self) -> None:
        """Collects all ended children, orphans too, and tells their leaders; for SIGCHLD."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            leader = self._leaders.pop(pid, None)
            if leader is not None:
                leader.on_exited(status)

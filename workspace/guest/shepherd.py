"""A shepherd: a forked child of the guest under which one command at a time runs.

It is a *child subreaper* (prctl(2)): whatever a command starts, daemonised or not, stays below the shepherd. So the
guest can say which processes belong to which command without trusting anything that user code can change, and a
timeout kills all of them. When a command and all that it left behind are gone, the shepherd serves the next one.

User code cannot trace a shepherd (it is not dumpable) but may kill it; see `herd.py` for what happens then.
"""

from __future__ import annotations

import _socket
import array
import errno
import marshal
import os
import struct

from . import sealing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

REPORT = struct.Struct("!Bii")
STARTED, FAILED, EXITED, IDLE = range(1, 5)
LENGTH = struct.Struct("!I")
# What FAILED says about the step at which starting a command failed.
AT_CWD, AT_PROGRAM, AT_SPAWN = range(3)
MSG_CMSG_CLOEXEC = 0x40000000
_DEFAULT_SIGNALS = [1, 2, 3, 10, 12, 13, 14, 15, 17, 25]


class _StartFailed(Exception):
    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.report = REPORT.pack(FAILED, number, step)


def send_request(sock: _socket.socket, request: dict[str, Any], fds: list[int]) -> None:
    """The guest's side: hands `request` and copies of `fds` (standard input, output, error) to a shepherd."""
    body = marshal.dumps(request)
    message = LENGTH.pack(len(body)) + body
    sent = sock.sendmsg([message], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds))])
    if sent < len(message):
        sock.sendall(message[sent:])


def _receive_request(sock: _socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, ancillary, _, _ = sock.recvmsg(65536, _socket.CMSG_SPACE(12), MSG_CMSG_CLOEXEC)
    if not data:
        os._exit(0)
    fds = array.array("i")
    for _level, _kind, payload in ancillary:
        fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    while len(data) < LENGTH.size or len(data) < LENGTH.size + LENGTH.unpack_from(data)[0]:
        more = sock.recv(1 << 20)
        if not more:
            os._exit(0)
        data += more
    return marshal.loads(data[LENGTH.size :]), list(fds)


def _find_program(name: str, path: str) -> str:
    if "/" in name:
        return name
    denied = False
    for folder in path.split(":"):
        candidate = (folder or ".") + "/" + name
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
        denied = denied or os.path.isfile(candidate)
    raise _StartFailed(errno.EACCES if denied else errno.ENOENT, AT_PROGRAM)


def _spawn(request: dict[str, Any], fds: list[int]) -> int:
    try:
        os.chdir(request["cwd"])
    except OSError as error:
        raise _StartFailed(error.errno or errno.EIO, AT_CWD) from None
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
        missing = error.errno in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR)
        raise _StartFailed(error.errno or errno.EIO, AT_PROGRAM if missing else AT_SPAWN) from None


def _children_left() -> bool:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def _watch_over(sock: _socket.socket, leader: int) -> None:
    """Reaps until the command and everything below it are gone; reports the leader's end as soon as it comes."""
    left = True
    while left:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            break
        if pid == leader:
            left = _children_left()
            sock.sendall(REPORT.pack(EXITED, status, left))
            if not left:
                return
    sock.sendall(REPORT.pack(IDLE, 0, 0))


def _serve(sock: _socket.socket) -> None:
    request, fds = _receive_request(sock)
    try:
        pid = _spawn(request, fds)
    except _StartFailed as failure:
        sock.sendall(failure.report)
        return
    finally:
        for fd in fds:
            os.close(fd)
        os.chdir("/")
    sock.sendall(REPORT.pack(STARTED, pid, 0))
    _watch_over(sock, pid)


def run(sock: _socket.socket, limits: dict[str, int], identity: tuple[int, int, list[int]] | None) -> NoReturn:
    """The life of a shepherd, in the forked child. `identity` is the (uid, gid, groups) to become, if any."""
    status = 1
    try:
        _leave_guest_behind(sock.fileno())
        if identity is not None:
            _become(*identity)
        sealing.become_subreaper()
        sealing.make_undumpable()
        sealing.limit(limits)
        while True:
            _serve(sock)
    except OSError:
        status = 0  # the guest is gone
    finally:
        os._exit(status)


def _leave_guest_behind(keep: int) -> None:
    import _signal  # type: ignore[import-not-found]

    _signal.set_wakeup_fd(-1)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != keep:
            try:
                os.close(int(name))
            except OSError:
                continue  # the descriptor of listdir itself
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("500")  # when memory runs out, commands go before the guest
    except OSError:
        pass


def _become(uid: int, gid: int, groups: list[int]) -> None:
    os.setresuid(0, 0, 0)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)

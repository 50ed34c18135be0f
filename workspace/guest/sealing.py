"""The walls that the guest raises around itself before it serves the first request.

What the launcher has done already (namespaces, capabilities, seccomp) is only observed here, for `info()`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import errno
import os
import resource
import stat
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PR_SET_DUMPABLE, PR_GET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 3, 36, 38
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446

RLIMIT_LOCKS = 10
_PRLIMIT64 = 261 if os.uname().machine == "aarch64" else 302
_PR_CAPBSET_DROP, _PR_SET_SECCOMP = 24, 22
_word = ctypes.c_ulong

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# Access rights of linux/landlock.h.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_WRITES = 0x1FF0  # remove_dir … make_sym
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_SCOPE_ABSTRACT_UNIX, _SCOPE_SIGNAL = 1, 2


def prctl(option: int, value: int) -> int:
    result: int = _libc.prctl(option, value, 0, 0, 0)
    if result < 0:
        raise OSError(ctypes.get_errno(), "prctl(%d, %d)" % (option, value))
    return result


def make_undumpable() -> None:
    """No ptrace, no /proc/PID/{mem,fd,environ} for processes of the same user (prctl(2), PR_SET_DUMPABLE)."""
    prctl(PR_SET_DUMPABLE, 0)


def become_subreaper() -> None:
    """Orphans below this process become its children, not process 1's."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def open_oom_score() -> int:
    """Our own oom_score_adj, to be opened before Landlock closes /proc to writers; -1 where it cannot be written."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return -1
    if os.pread(fd, 16, 0).strip() == b"0":
        return fd
    os.close(fd)  # not at the usual 0: it could not be set back
    return -1


def ignore_signals() -> None:
    """What user code may send to process 1 and Python would heed; children start with the defaults again."""
    for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)


def child_signals() -> int:
    """A descriptor that is readable when a child has ended (signalfd(2)); SIGCHLD no longer interrupts anything."""
    _signal.pthread_sigmask(_signal.SIG_BLOCK, [_signal.SIGCHLD])
    mask = (ctypes.c_ulong * 16)(1 << (_signal.SIGCHLD - 1))
    fd: int = _libc.signalfd(-1, mask, os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "signalfd")
    return fd


def limit(limits: dict[str, int]) -> None:
    """Sets hard rlimits by name (`NOFILE`, `FSIZE`, …); a limit lower already in force stays."""
    for name, value in limits.items():
        number = getattr(resource, "RLIMIT_" + name)
        hard = resource.getrlimit(number)[1]
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(number, (lower, lower))


def set_tag(tag: int, first: int, second: int) -> None:
    """Sets the soft limit RLIMIT_LOCKS of this process; the two words open the seccomp filter for it."""
    limit = struct.pack("=QQ", tag, 0xFFFFFFFFFFFFFFFF)
    words = (0, RLIMIT_LOCKS)
    if _libc.syscall(_PRLIMIT64, *map(_word, words), limit, None, _word(first), _word(second)):
        raise OSError(ctypes.get_errno(), "prlimit64(RLIMIT_LOCKS)")


def drop_bounding_set() -> None:
    """No program that is executed from now on can gain a capability, whatever its file says."""
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) and ctypes.get_errno() == errno.EINVAL:
            return


def seccomp(program: bytes) -> None:
    """Adds a filter to those in force; the strictest answer of all counts (seccomp(2))."""
    code = ctypes.create_string_buffer(program, len(program))
    head = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    if _libc.prctl(_PR_SET_SECCOMP, 2, head, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def landlock_abi() -> int:
    abi: int = _libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))
    return max(abi, 0)


def _landlock_allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # others are for directories
        rule = struct.pack("=Qi", access, fd)
        if _libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0):
            raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
    finally:
        os.close(fd)


def landlock(writable: list[str]) -> int:
    """A second wall around the file system: everything may be read and run, only `writable` may be changed.

    Returns the ABI in force, 0 where the kernel has no Landlock. Abstract unix sockets and signals stay inside
    from ABI 6 on (landlock(7)).
    """
    abi = landlock_abi()
    if not abi:
        return 0
    reads = _EXECUTE | _READ_FILE | _READ_DIR
    handled = reads | _WRITE_FILE | _WRITES
    handled |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0) | (_IOCTL_DEV if abi >= 5 else 0)
    scoped = _SCOPE_ABSTRACT_UNIX | _SCOPE_SIGNAL if abi >= 6 else 0
    attributes = struct.pack("=QQQ", handled, 0, scoped)[: 24 if abi >= 6 else 16 if abi >= 4 else 8]
    ruleset = _libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        _landlock_allow(ruleset, "/", reads)
        for path in writable:
            _landlock_allow(ruleset, path, handled)
        if _libc.syscall(LANDLOCK_RESTRICT, ruleset, 0):
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return abi


def observed() -> dict[str, Any]:
    """What the kernel says of this process: capabilities, seccomp, no_new_privs, uid map."""
    fields = {}
    with open("/proc/self/status") as status:
        for line in status:
            name, _, value = line.partition(":")
            fields[name] = value.strip()
    with open("/proc/self/uid_map") as uid_map:
        uids = [[int(word) for word in line.split()] for line in uid_map]
    return {
        "capabilities": int(fields.get("CapEff", "0"), 16),
        "bounding": int(fields.get("CapBnd", "0"), 16),
        "no_new_privs": fields.get("NoNewPrivs") == "1",
        "seccomp": fields.get("Seccomp") == "2",
        "uid_map": uids[:16],
        "dumpable": bool(prctl(PR_GET_DUMPABLE, 0)),
        "pid": os.getpid(),
        "uid": os.getuid(),
    }

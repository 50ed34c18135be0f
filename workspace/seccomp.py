"""The system calls that code in a sandbox may not make, as a readable table, and the filter made from it.

A deny list on top of the other walls: it shuts kernel surface that ordinary programs do not use and that has been the
way out before. The filter is classic BPF (seccomp(2)) for the native architecture only; any other architecture's
calls kill the process.
"""

from __future__ import annotations

import errno
import platform
import struct
from dataclasses import dataclass

from workspace.errors import IsolationUnavailable

X86_64, AARCH64 = "x86_64", "aarch64"

# name: (number on x86_64, number on aarch64); None where the architecture does not have it.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # The mount API, old and new
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "open_tree_attr": (467, 467),
    # New namespaces; clone is looked into below, clone3 hides its flags behind a pointer
    "setns": (308, 268),
    "unshare": (272, 97),
    # Other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    # Keys
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # Kernel programs and events
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "lookup_dcookie": (212, 18),
    "fanotify_init": (300, 262),
    # io_uring goes around every filter on system calls
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # The kernel itself
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "get_kernel_syms": (177, None),
    "query_module": (178, None),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "nfsservctl": (180, 42),
    "vhangup": (153, 58),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "_sysctl": (156, None),
    "vserver": (236, None),
    "modify_ldt": (154, None),
    # File handles reach outside of the mount tree
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Clocks and host names
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    # Hardware
    "iopl": (172, None),
    "ioperm": (173, None),
}
ABSENT: dict[str, tuple[int | None, int | None]] = {"clone3": (435, 435)}
"""Answered ENOSYS: libraries fall back to the older call, which can be looked into."""
NEWEST = 462
"""The newest call this table knows (mseal, Linux 6.10); newer ones answer ENOSYS."""
KNOWN_LATER = (463, 464, 465, 466)
"""setxattrat, getxattrat, listxattrat, removexattrat (Linux 6.13): harmless."""

CLONE_NEW = 0x7E020000
"""Flags of clone(2) that make a namespace: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; CLONE_NEWTIME is for clone3."""
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, NETLINK_ROUTE = 1, 2, 10, 16, 0
GUEST_PID = 1
PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Plain Linux, the 32-bit and old version names, and the question which one is in force: what Docker allows, too."""
RLIMIT_LOCKS = 10

_ARCH = {X86_64: 0xC000003E, AARCH64: 0xC00000B7}
_X32_BIT = 0x40000000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LD, _JEQ, _JGE, _JGT, _JSET, _RET = 0x20, 0x15, 0x35, 0x25, 0x45, 0x06
_NR, _ARCH_AT, _ARG = 0, 4, 16

# name: (x86_64, aarch64) of the calls whose arguments are looked at
_LOOKED_AT = {
    "clone": (56, 220),
    "ioctl": (16, 29),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "prlimit64": (302, 261),
    "setrlimit": (160, 164),
    "personality": (135, 92),
}
_TOUCH_BY_PID = {
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
_TOUCH_BY_SECOND = {"setpriority": (141, 140), "ioprio_set": (251, 30)}
_OF_A_USER = {"setpriority": 2, "ioprio_set": 3}  # the first argument that means all processes of a user


@dataclass(frozen=True)
class _Step:
    code: int
    value: int
    if_true: str = ""
    if_false: str = ""
    label: str = ""


class _Program:
    """BPF with labels. An empty label means the next instruction."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._label = ""

    def label(self, name: str) -> None:
        self._label = name

    def add(self, code: int, value: int, if_true: str = "", if_false: str = "") -> None:
        self._steps.append(_Step(code, value, if_true, if_false, self._label))
        self._label = ""

    def answer(self, action: int) -> None:
        self.add(_RET, action)

    def assemble(self) -> bytes:
        at = {step.label: index for index, step in enumerate(self._steps) if step.label}
        out = b""
        for index, step in enumerate(self._steps):
            jumps = [at[name] - index - 1 if name else 0 for name in (step.if_true, step.if_false)]
            out += struct.pack("HBBI", step.code, *jumps, step.value)
        return out


def _numbers(table: dict[str, tuple[int | None, int | None]], machine: str) -> list[int]:
    column = 0 if machine == X86_64 else 1
    return sorted(number for pair in table.values() if (number := pair[column]) is not None)


def _refuse(number: int) -> int:
    return _ERRNO | number


def _each(program: _Program, numbers: list[int], action: int) -> None:
    """One comparison and one answer per call, so that no jump is long."""
    for number in numbers:
        program.add(_JEQ, number, "", f"after{number}")
        program.answer(action)
        program.label(f"after{number}")


def _head(program: _Program, machine: str) -> None:
    program.add(_LD, _ARCH_AT)
    program.add(_JEQ, _ARCH[machine], "native", "")
    program.answer(_KILL)
    program.label("native")
    program.add(_LD, _NR)
    if machine == X86_64:
        program.add(_JGE, _X32_BIT, "", "not_x32")
        program.answer(_refuse(errno.ENOSYS))
        program.label("not_x32")


def _newer_calls(program: _Program) -> None:
    program.add(_JGT, NEWEST, "", "known")
    for number in KNOWN_LATER:
        program.add(_JEQ, number, "known", "")
    program.answer(_refuse(errno.ENOSYS))
    program.label("known")


def _look(program: _Program, name: str, number: int, argument: int) -> None:
    """Begins a block for one call with its argument loaded; `_looked` ends it."""
    program.add(_JEQ, number, "", f"end_{name}")
    program.add(_LD, _ARG + 8 * argument)


def _looked(program: _Program, name: str) -> None:
    program.answer(_ALLOW)
    program.label(f"end_{name}")


def _sockets(program: _Program, name: str, number: int) -> None:
    """unix and internet sockets, and netlink for routes (glibc's getaddrinfo asks there); no other family."""
    _look(program, name, number, 0)
    for family in (AF_UNIX, AF_INET, AF_INET6):
        program.add(_JEQ, family, f"ok_{name}", "")
    program.add(_JEQ, AF_NETLINK, "", f"no_{name}")
    program.add(_LD, _ARG + 16)
    program.add(_JEQ, NETLINK_ROUTE, f"ok_{name}", "")
    program.label(f"no_{name}")
    program.answer(_refuse(errno.EAFNOSUPPORT))
    program.label(f"ok_{name}")
    _looked(program, name)


def _not_the_guest(program: _Program, name: str, number: int, argument: int) -> None:
    """Process 1 is the guest, under the same user: its limits and priorities are not for others to set."""
    _look(program, name, number, argument)
    program.add(_JEQ, GUEST_PID, "", f"ok_{name}")
    program.answer(_refuse(errno.EPERM))
    program.label(f"ok_{name}")
    _looked(program, name)


def _not_all_nor_the_guest(program: _Program, name: str, number: int, everybody: int) -> None:
    """As `_not_the_guest`, for calls that can also mean all processes of the user, the guest among them."""
    _look(program, name, number, 0)
    program.add(_JEQ, everybody, f"no_{name}", "")
    program.add(_LD, _ARG + 8)
    program.add(_JEQ, GUEST_PID, "", f"ok_{name}")
    program.label(f"no_{name}")
    program.answer(_refuse(errno.EPERM))
    program.label(f"ok_{name}")
    _looked(program, name)


def _limits(program: _Program, column: int, secret: tuple[int, int]) -> None:
    """RLIMIT_LOCKS is the tag by which the guest knows a command's processes: nobody else may set it.

    The guest is under this filter too. It proves itself by two words in the argument registers that prlimit64 does
    not use; they are drawn for each sandbox and given to the guest alone.
    """
    _look(program, "setrlimit", _LOOKED_AT["setrlimit"][column], 0)
    program.add(_JEQ, RLIMIT_LOCKS, "", "ok_setrlimit")
    program.answer(_refuse(errno.EPERM))
    program.label("ok_setrlimit")
    _looked(program, "setrlimit")
    _look(program, "prlimit64", _LOOKED_AT["prlimit64"][column], 0)
    program.add(_JEQ, GUEST_PID, "no_prlimit64", "")
    program.add(_LD, _ARG + 8)
    program.add(_JEQ, RLIMIT_LOCKS, "", "ok_prlimit64")
    program.add(_LD, _ARG + 16)  # a new limit is given where the pointer is not null
    program.add(_JEQ, 0, "", "set_prlimit64")
    program.add(_LD, _ARG + 20)
    program.add(_JEQ, 0, "ok_prlimit64", "")
    program.label("set_prlimit64")
    for at, word in enumerate(word for each in secret for word in (each & 0xFFFFFFFF, each >> 32)):
        program.add(_LD, _ARG + 32 + 4 * at)
        program.add(_JEQ, word, "", "no_prlimit64")
    program.label("ok_prlimit64")
    program.answer(_ALLOW)
    program.label("no_prlimit64")
    program.answer(_refuse(errno.EPERM))
    program.label("end_prlimit64")


def _arguments(program: _Program, machine: str, secret: tuple[int, int]) -> None:
    column = 0 if machine == X86_64 else 1
    _look(program, "clone", _LOOKED_AT["clone"][column], 0)
    program.add(_JSET, CLONE_NEW, "", "ok_clone")
    program.answer(_refuse(errno.EPERM))
    program.label("ok_clone")
    _looked(program, "clone")
    _look(program, "ioctl", _LOOKED_AT["ioctl"][column], 1)
    for number in (TIOCSTI, TIOCLINUX):
        program.add(_JEQ, number, "no_ioctl", "")
    program.answer(_ALLOW)
    program.label("no_ioctl")
    program.answer(_refuse(errno.EPERM))
    program.label("end_ioctl")
    for name in ("socket", "socketpair"):
        _sockets(program, name, _LOOKED_AT[name][column])
    _limits(program, column, secret)
    for name, pair in _TOUCH_BY_PID.items():
        _not_the_guest(program, name, pair[column], 0)
    for name, pair in _TOUCH_BY_SECOND.items():
        _not_all_nor_the_guest(program, name, pair[column], _OF_A_USER[name])
    _look(program, "personality", _LOOKED_AT["personality"][column], 0)
    for value in PERSONALITIES:
        program.add(_JEQ, value, "ok_personality", "")
    program.answer(_refuse(errno.EPERM))
    program.label("ok_personality")
    _looked(program, "personality")


def build(secret: tuple[int, int], machine: str | None = None) -> bytes:
    """The filter for `machine` (default: this one) as an array of `struct sock_filter`; `secret` is the guest's."""
    machine = machine or platform.machine()
    if machine not in _ARCH:
        raise IsolationUnavailable(f"there is no system call filter for {machine!r}; x86_64 and aarch64 have one")
    program = _Program()
    _head(program, machine)
    _each(program, _numbers(ABSENT, machine), _refuse(errno.ENOSYS))
    _each(program, _numbers(DENIED, machine), _refuse(errno.EPERM))
    _newer_calls(program)
    _arguments(program, machine, secret)
    program.answer(_ALLOW)
    return program.assemble()

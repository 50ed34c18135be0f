"""The system call filter, interpreted instruction by instruction as the kernel would, for both architectures."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from workspace import seccomp
from workspace.errors import IsolationUnavailable

MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386, ARM, X32_BIT = 0x40000003, 0x40000028, 0x40000000
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
MAX_INSTRUCTIONS = 4096
HEADERS = {
    "x86_64": (Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), Path("/usr/include/asm/unistd_64.h")),
    "aarch64": (Path("/usr/include/asm-generic/unistd.h"), Path("/usr/include/aarch64-linux-gnu/asm/unistd_64.h")),
}

# Written down independently of the table under test: name: (x86_64, aarch64).
MUST_BE_REFUSED = {
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
    "open_tree_attr": (467, 467),
    "setns": (308, 268),
    "unshare": (272, 97),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "fanotify_init": (300, 262),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "reboot": (169, 142),
    "syslog": (103, 116),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "iopl": (172, None),
    "ioperm": (173, None),
    "modify_ldt": (154, None),
}
ORDINARY = {
    "read": (0, 63),
    "write": (1, 64),
    "openat": (257, 56),
    "execve": (59, 221),
    "mmap": (9, 222),
    "futex": (202, 98),
    "exit_group": (231, 94),
    "wait4": (61, 260),
    "getrandom": (318, 278),
    "memfd_create": (319, 279),
    "statx": (332, 291),
    "openat2": (437, 437),
    "faccessat2": (439, 439),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "fchmodat2": (452, 452),
    "mseal": (462, 462),
    "getxattrat": (464, 464),
    "vfork": (58, None),
}
CLONE, IOCTL, SOCKET, SOCKETPAIR, PRLIMIT = (56, 220), (16, 29), (41, 198), (53, 199), (302, 261)
NAMESPACES = {
    "CLONE_NEWNS": 0x00020000,
    "CLONE_NEWCGROUP": 0x02000000,
    "CLONE_NEWUTS": 0x04000000,
    "CLONE_NEWIPC": 0x08000000,
    "CLONE_NEWUSER": 0x10000000,
    "CLONE_NEWPID": 0x20000000,
    "CLONE_NEWNET": 0x40000000,
}
SECRET = (0x1122334455667788, 0x99AABBCCDDEEFF00)
THREAD_FLAGS = 0x003D0F00
"""What glibc's pthread_create passes to clone(2)."""


def refused(number: int) -> int:
    return ERRNO | number


def column(machine: str) -> int:
    return list(MACHINES).index(machine)


def decide(machine: str, number: int, *arguments: int, arch: int | None = None) -> int:
    """What the filter answers for one call: an interpreter of classic BPF over `struct seccomp_data`."""
    program = [struct.unpack_from("=HBBI", built, at) for built in [seccomp.build(SECRET, machine)] for at in range(0, len(built), 8)]
    padded = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack(
        "=IIQ6Q", number & 0xFFFFFFFF, MACHINES[machine] if arch is None else arch, 0, *(value & (2**64 - 1) for value in padded)
    )
    accumulator = at = 0
    for _ in range(MAX_INSTRUCTIONS):
        code, if_true, if_false, value = program[at]
        at += 1
        if code == 0x20:
            assert value % 4 == 0
            assert value <= len(data) - 4
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            holds = {0x15: accumulator == value, 0x25: accumulator > value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            at += if_true if holds[code] else if_false
    raise AssertionError("the filter does not end")


each_machine = pytest.mark.parametrize("machine", MACHINES)


@each_machine
def test_the_program_is_one_that_the_kernel_takes(machine: str) -> None:
    built = seccomp.build(SECRET, machine)
    count = len(built) // 8
    assert len(built) % 8 == 0
    assert 0 < count <= MAX_INSTRUCTIONS
    for index in range(count):
        code, if_true, if_false, _ = struct.unpack_from("=HBBI", built, 8 * index)
        assert code in (0x20, 0x06, 0x15, 0x25, 0x35, 0x45)
        if code & 7 == 5:
            assert max(index + 1 + if_true, index + 1 + if_false) < count
    assert struct.unpack_from("=HBBI", built, 8 * (count - 1))[0] == 0x06


@each_machine
@pytest.mark.parametrize("name", MUST_BE_REFUSED)
def test_a_dangerous_call_is_refused(machine: str, name: str) -> None:
    number = MUST_BE_REFUSED[name][column(machine)]
    if number is not None:
        assert decide(machine, number) == refused(errno.EPERM)
        assert decide(machine, number, *[2**64 - 1] * 6) == refused(errno.EPERM)


@each_machine
@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_call_is_allowed(machine: str, name: str) -> None:
    number = ORDINARY[name][column(machine)]
    if number is not None:
        assert decide(machine, number) == ALLOW


@each_machine
def test_every_call_of_the_table_is_refused_under_its_own_number(machine: str) -> None:
    for name, pair in seccomp.DENIED.items():
        if pair[column(machine)] is not None:
            assert decide(machine, pair[column(machine)]) == refused(errno.EPERM), name


@each_machine
def test_the_numbers_are_those_of_the_kernel_headers(machine: str) -> None:
    header = next((path for path in HEADERS[machine] if path.exists()), None)
    if header is None:
        pytest.skip("no kernel headers here")
    found = {name: int(number) for name, number in re.findall(r"#define\s+__NR(?:3264)?_(\w+)\s+(\d+)", header.read_text())}
    assert len(found) > 250
    tables = (seccomp.DENIED, seccomp.ABSENT, seccomp._LOOKED_AT, seccomp._TOUCH_BY_PID, seccomp._TOUCH_BY_SECOND)
    for table in tables:
        for name, pair in table.items():
            if name in found:
                assert pair[column(machine)] == found[name], name
    for name, pair in MUST_BE_REFUSED.items():
        if name in found:
            assert pair[column(machine)] == found[name], name


@each_machine
@pytest.mark.parametrize("flag", NAMESPACES)
def test_clone_makes_no_namespace_of_any_kind(machine: str, flag: str) -> None:
    number = CLONE[column(machine)]
    assert decide(machine, number, NAMESPACES[flag] | 17) == refused(errno.EPERM)
    assert decide(machine, number, NAMESPACES[flag] | THREAD_FLAGS) == refused(errno.EPERM)
    assert decide(machine, number, 0xDEAD_0000_0000_0000 | NAMESPACES[flag]) == refused(errno.EPERM)


@each_machine
def test_clone_makes_processes_and_threads(machine: str) -> None:
    for flags in (17, THREAD_FLAGS, 0x4100 | 17, 0x01200000 | 17):
        assert decide(machine, CLONE[column(machine)], flags) == ALLOW


@each_machine
def test_clone3_is_answered_as_if_the_kernel_had_none(machine: str) -> None:
    assert decide(machine, 435, 0xDEAD, 88) == refused(errno.ENOSYS)


@each_machine
def test_calls_newer_than_the_table_are_answered_as_unknown(machine: str) -> None:
    for number in (468, 469, 470, 471, 500, 511, 600, 1000, 0x0FFF_FFFF):
        assert decide(machine, number) == refused(errno.ENOSYS), number


@each_machine
def test_terminal_injection_is_refused_and_other_ioctls_are_not(machine: str) -> None:
    number = IOCTL[column(machine)]
    for request in (0x5412, 0x541C, 0xFFFF_FFFF_0000_5412, 1 << 63 | 0x541C):
        assert decide(machine, number, 0, request) == refused(errno.EPERM)
    for request in (0x5401, 0x5413, 0x541B, 0x5421):
        assert decide(machine, number, 0, request) == ALLOW
    assert decide(machine, number, 0x5412, 0x5401) == ALLOW


@each_machine
@pytest.mark.parametrize("call", [SOCKET, SOCKETPAIR])
def test_only_unix_internet_and_route_sockets_are_made(machine: str, call: tuple[int, int]) -> None:
    number = call[column(machine)]
    for family in range(64):
        expected = ALLOW if family in (1, 2, 10) else refused(errno.EAFNOSUPPORT)
        assert decide(machine, number, family, 1, 5) == expected, family
    assert decide(machine, number, 16, 3, 0) == ALLOW
    for protocol in (1, 2, 4, 6, 9, 12, 15, 16):
        assert decide(machine, number, 16, 3, protocol) == refused(errno.EAFNOSUPPORT), protocol
    assert decide(machine, number, 1 << 32 | 40, 1, 0) == refused(errno.EAFNOSUPPORT)


@each_machine
@pytest.mark.parametrize("foreign", [0, I386, ARM, 0xC000003E, 0xC00000B7, 0xC00000F3])
def test_a_call_of_a_foreign_architecture_kills(machine: str, foreign: int) -> None:
    for number in (0, 1, 11, 56, 120, 435, 10_000):
        if foreign == MACHINES[machine]:
            assert decide(machine, number, arch=foreign) != KILL_PROCESS
        else:
            assert decide(machine, number, arch=foreign) == KILL_PROCESS


def test_x32_calls_are_not_made() -> None:
    for number in (0, 1, 41, 101, 165, 272, 425, 512, 520, 547):
        assert decide("x86_64", X32_BIT | number) in (KILL_PROCESS, refused(errno.ENOSYS))
    assert decide("x86_64", 0xFFFF_FFFF) in (KILL_PROCESS, refused(errno.ENOSYS))


@each_machine
def test_the_limits_of_process_1_are_not_for_others_to_set(machine: str) -> None:
    number = PRLIMIT[column(machine)]
    assert decide(machine, number, 1, 7, 0xBEEF) == refused(errno.EPERM)
    assert decide(machine, number, 0xFFFF_FFFF_0000_0001, 7) == refused(errno.EPERM)
    assert decide(machine, number, 0, 7, 0xBEEF) == ALLOW
    assert decide(machine, number, 77, 7, 0xBEEF) == ALLOW


@each_machine
def test_the_tag_of_a_command_is_set_by_nobody_without_the_secret(machine: str) -> None:
    """RLIMIT_LOCKS says to which command a process belongs: user code may read it and not change it, by no call."""
    number, setrlimit, locks = PRLIMIT[column(machine)], (160, 164)[column(machine)], 10
    assert decide(machine, number, 0, locks, 0, 0xBEEF) == ALLOW
    for pid in (0, 77):
        for pointer in (0xBEEF, 0xBEEF_0000_0000):
            assert decide(machine, number, pid, locks, pointer, 0) == refused(errno.EPERM)
            assert decide(machine, number, pid, locks, pointer, 0, SECRET[0], SECRET[1] ^ 1) == refused(errno.EPERM)
            assert decide(machine, number, pid, locks, pointer, 0, SECRET[0] ^ 1 << 63, SECRET[1]) == refused(errno.EPERM)
            assert decide(machine, number, pid, locks, pointer, 0, *SECRET) == ALLOW
    assert decide(machine, setrlimit, locks, 0xBEEF) == refused(errno.EPERM)
    assert decide(machine, setrlimit, 1 << 32 | locks, 0xBEEF) == refused(errno.EPERM)


@each_machine
@pytest.mark.parametrize(
    ("call", "argument"),
    [((203, 122), 0), ((144, 119), 0), ((142, 118), 0), ((314, 274), 0), ((141, 140), 1), ((251, 30), 1)],
    ids=["sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr", "setpriority", "ioprio_set"],
)
def test_the_scheduling_of_process_1_is_not_for_others_to_set(machine: str, call: tuple[int, int], argument: int) -> None:
    arguments = [0, 0, 0]
    assert decide(machine, call[column(machine)], *arguments) == ALLOW
    arguments[argument] = 1
    assert decide(machine, call[column(machine)], *arguments) == refused(errno.EPERM)


@each_machine
def test_priorities_of_all_processes_of_the_user_cannot_be_set_at_once(machine: str) -> None:
    """setpriority(PRIO_USER) and ioprio_set(IOPRIO_WHO_USER) reach process 1 without naming it."""
    setpriority, ioprio_set = ((141, 140), (251, 30))
    for uid in (0, 1000):
        assert decide(machine, setpriority[column(machine)], 2, uid, 19) == refused(errno.EPERM)
        assert decide(machine, ioprio_set[column(machine)], 3, uid, 3 << 13) == refused(errno.EPERM)


def test_an_architecture_without_a_filter_is_refused() -> None:
    with pytest.raises(IsolationUnavailable, match="riscv64"):
        seccomp.build(SECRET, "riscv64")

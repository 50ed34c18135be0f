"""Contract rows 29 to 34: code inside reaches nothing outside, and cannot take the workspace from its owner.

Every probe runs as hostile code would: a Python script inside that tries to get out and prints what it got.
"""

# ruff: noqa: E501 - the probes are scripts in strings
from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from workspace import AsyncWorkspace, CommandTimeout, Resources, WorkspaceError
from workspace.errors import FileError

MIB = 1024 * 1024
SMALL = Resources(memory_bytes=256 * MIB, pids=64, disk_bytes=64 * MIB, accept_weaker=frozenset({"disk_bytes"}))
TIMEOUT_S = 20.0

PRELUDE = r"""
import ctypes, errno, json, os, platform, signal, socket, stat, struct, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
NR = {
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "init_module": (175, 105), "reboot": (169, 142), "syslog": (103, 116), "swapon": (167, 224), "open_by_handle_at": (304, 265),
    "name_to_handle_at": (303, 264), "settimeofday": (164, 170), "sethostname": (170, 161), "clone": (56, 220),
    "personality": (135, 92), "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "ioprio_set": (251, 30), "ioprio_get": (252, 31), "setpriority": (141, 140), "kexec_load": (246, 104),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433), "pidfd_open": (434, 434),
    "clone3": (435, 435), "pidfd_getfd": (438, 438), "mount_setattr": (442, 442), "fanotify_init": (300, 262),
    "process_madvise": (440, 440), "quotactl": (179, 60), "acct": (163, 89), "clock_settime": (227, 112),
}
def call(name, *args):
    ctypes.set_errno(0)
    number = NR[name][0 if platform.machine() == "x86_64" else 1]
    result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
    return result if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "E?")
def attempt(function, *args):
    try:
        return function(*args)
    except OSError as error:
        return errno.errorcode.get(error.errno, "E?")
    except ValueError as error:
        return "ValueError"
def slurp(path):
    with open(path, "rb") as file:
        return file.read(1 << 20).decode("latin-1")
def tell(value):
    print(json.dumps(value), flush=True)
"""


async def probe(ws: AsyncWorkspace, code: str, timeout_s: float = TIMEOUT_S, **kwargs: Any) -> Any:
    """What a hostile script inside tells, as JSON."""
    result = await ws.run(["python3", "-c", PRELUDE + code], timeout_s=timeout_s, **kwargs)
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


async def still_usable(ws: AsyncWorkspace) -> None:
    """Several commands and file calls in a row work, also two at once."""
    async with asyncio.timeout(60):
        for _ in range(3):
            results = await asyncio.gather(*(ws.run("echo ok", timeout_s=10) for _ in range(2)))
            assert [result.stdout for result in results] == ["ok\n", "ok\n"]
        await ws.files.write("usable", b"yes")
        assert await ws.files.read("usable") == b"yes"


def is_error(answer: object) -> bool:
    return isinstance(answer, str) and answer.startswith("E")


def all_errors(answers: dict[str, object]) -> bool:
    wrong = {name: answer for name, answer in answers.items() if not is_error(answer)}
    assert not wrong, wrong
    return True


@dataclass
class Canary:
    """A secret planted all over the host."""

    secret: str
    folder: Path
    files: list[Path]
    port: int
    abstract: str
    unix: Path
    visits: list[str]


def _listen(server: socket.socket, name: str, secret: str, visits: list[str]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        visits.append(name)
        with contextlib.suppress(OSError), connection:
            connection.sendall(secret.encode())


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Canary]:
    """Files, environment variables and listeners of the host that nothing inside may reach."""
    secret = f"canary-{secrets.token_hex(12)}"
    name = f".{secret[:16]}"
    monkeypatch.setenv("WORKSPACE_TEST_CANARY", secret)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with tempfile.TemporaryDirectory(prefix="canary-") as folder, contextlib.ExitStack() as stack:
        files = [Path(folder) / "secret", Path.home() / name, Path("/tmp") / name, Path("/dev/shm") / name]
        for path in files:
            path.write_text(secret)
            path.chmod(0o644)
            stack.callback(path.unlink, missing_ok=True)
        os.chmod(folder, 0o755)
        loopback = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        abstract, unix = secret, Path(folder) / "listener"
        by_name = stack.enter_context(socket.socket(socket.AF_UNIX))
        by_name.bind("\0" + abstract)
        by_path = stack.enter_context(socket.socket(socket.AF_UNIX))
        by_path.bind(str(unix))
        unix.chmod(0o777)
        visits: list[str] = []
        threads = []
        for server, kind in ((loopback, "loopback"), (by_name, "abstract"), (by_path, "unix")):
            server.listen(8)
            threads.append(threading.Thread(target=_listen, args=(server, kind, secret, visits), daemon=True))
            threads[-1].start()
            stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield Canary(secret, Path(folder), files, loopback.getsockname()[1], abstract, unix, visits)
    for thread in threads:
        thread.join(5)


@pytest.fixture
async def box(backend: str, canary: Canary) -> AsyncIterator[AsyncWorkspace]:
    """A small workspace that is opened after the canaries are planted."""
    async with AsyncWorkspace.create(backend, resources=SMALL) as workspace:
        yield workspace


def host_processes_of(ws: AsyncWorkspace) -> list[tuple[int, int, int]]:
    """(pid, parent, real uid) of every process of this host below the launcher that runs `ws`, by its cgroup."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if ws.id not in Path(f"/proc/{name}/cgroup").read_text():
                continue
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{name}/status").read_text().splitlines())
            if fields["State"].split()[0] != "Z":
                found.append((int(name), int(fields["PPid"]), fields["Uid"].split()))
    return [(pid, parent, int(uid)) for pid, parent, uids in found for uid in uids]


async def until(condition: Any, what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        await asyncio.sleep(0.02)


# Reads


async def test_no_file_of_the_host_can_be_read(box: AsyncWorkspace, canary: Canary) -> None:
    paths = [str(path) for path in canary.files]
    roots = ["", "/proc/1/root", "/proc/self/root", "/proc/1/cwd", "/proc/self/cwd/../../..", "/workspace/../..", "/proc/thread-self/root"]
    found = await probe(box, f"tell({{r + p: attempt(slurp, r + p) for r in {roots!r} for p in {paths!r}}})")
    assert all_errors(found)
    for path in paths:
        with pytest.raises(FileError):
            await box.files.read(path)
        with pytest.raises(FileError):
            await box.files.read("../../../.." + path)


async def test_the_canary_is_nowhere_in_what_can_be_read(box: AsyncWorkspace, canary: Canary) -> None:
    """Everything in /proc/*, /tmp, /dev/shm, /run, /home, /root, /var that opens is read."""
    half = len(canary.secret) // 2
    code = f"""
needle = ({canary.secret[:half]!r} + {canary.secret[half:]!r}).encode()
hits, count = [], 0
deadline = time.monotonic() + 12
for top in ("/tmp", "/dev/shm", "/run", "/home", "/root", "/var", "/etc", "/workspace", "/proc"):
    for folder, names, files in os.walk(top):
        names[:] = [n for n in names if n not in ("task", "net", "sys") or folder == "/proc"]
        if needle in folder.encode("utf-8", "surrogateescape"):
            hits.append(folder)
        for name in files:
            path = folder + "/" + name
            if time.monotonic() > deadline:
                break
            if needle[:16] in name.encode("utf-8", "surrogateescape"):
                hits.append(path)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                if not path.startswith("/proc/self/") and not path.startswith("/proc/%d/" % os.getpid()) and needle in os.read(fd, 1 << 20):
                    hits.append(path)
                count += 1
            except OSError:
                pass
            finally:
                os.close(fd)
tell({{"hits": hits, "count": count}})
"""
    await box.files.write("probe.py", (PRELUDE + code).encode())  # not in argv, where the search would find itself
    result = await box.run("python3 - < probe.py; rm probe.py", timeout_s=40)
    found = json.loads(result.stdout)
    assert [hit for hit in found["hits"] if not hit.endswith("/probe.py")] == []
    assert found["count"] > 100


async def test_no_environment_variable_of_the_host_is_visible(box: AsyncWorkspace, canary: Canary) -> None:
    found = await probe(box, "tell({p: attempt(slurp, f'/proc/{p}/environ') for p in os.listdir('/proc') if p.isdigit()})")
    assert is_error(found["1"])
    for text in found.values():
        assert canary.secret not in text
        assert "WORKSPACE_TEST_CANARY" not in text
    assert canary.secret not in (await box.run("env; set; cat /proc/self/environ", timeout_s=10)).stdout


async def test_the_innards_of_process_1_are_closed(box: AsyncWorkspace) -> None:
    code = """
out = {}
shepherd = os.getppid()
for pid in (1, shepherd):
    for name in ("environ", "mem", "maps", "smaps", "auxv", "pagemap", "syscall", "stack", "io", "numa_maps"):
        out["%s %s" % (pid, name)] = attempt(lambda: slurp("/proc/%d/%s" % (pid, name)) and "read")
    for name in ("root", "cwd", "exe", "ns/mnt", "ns/pid", "ns/user", "fd/0", "fd/3", "fd/10"):
        out["%s %s" % (pid, name)] = attempt(os.readlink, "/proc/%d/%s" % (pid, name))
    out["%s fd" % pid] = attempt(os.listdir, "/proc/%d/fd" % pid)
    out["%s map_files" % pid] = attempt(os.listdir, "/proc/%d/map_files" % pid)
    for name in ("mem", "oom_score_adj", "clear_refs", "coredump_filter", "uid_map", "gid_map", "setgroups", "comm"):
        out["%s write %s" % (pid, name)] = attempt(os.open, "/proc/%d/%s" % (pid, name), os.O_WRONLY)
    out["%s attr" % pid] = attempt(lambda: os.write(os.open("/proc/%d/attr/current" % pid, os.O_WRONLY), b"unconfined"))
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_only_the_standard_descriptors_are_inherited(box: AsyncWorkspace) -> None:
    code = """
out = {}
for fd in range(0, 4096):
    try:
        out[fd] = "%o" % stat.S_IFMT(os.fstat(fd).st_mode)
    except OSError:
        pass
tell(out)
"""
    found = await probe(box, code)
    assert sorted(int(fd) for fd in found) == [0, 1, 2]
    assert found["0"] in ("20000", "10000")
    assert found["1"] == found["2"] == "10000"


@pytest.mark.parametrize("cwd", [f"/proc/self/fd/{number}" for number in (*range(3, 24), 100, 101, 102)] + ["/proc/1/cwd", "/proc/1/root"])
async def test_a_descriptor_as_working_directory_leads_nowhere(box: AsyncWorkspace, canary: Canary, cwd: str) -> None:
    """CVE-2024-21626: a leaked directory descriptor as cwd is the host's file system."""
    for path in (cwd, cwd + "/../../..", cwd + "/../../../../.."):
        try:
            result = await box.run(
                ["/bin/sh", "-c", f"cat ./{canary.files[0]} ../../../../../..{canary.files[0]}; pwd -P; ls /"], cwd=path, timeout_s=10
            )
        except WorkspaceError:
            continue
        assert canary.secret not in result.stdout
        assert canary.secret not in result.stderr


async def test_kernel_memory_and_knobs_are_closed(box: AsyncWorkspace) -> None:
    code = r"""
out = {}
for path in ("/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/fuse", "/dev/kvm", "/dev/loop0", "/dev/loop-control",
             "/dev/vda", "/dev/sda", "/dev/net/tun", "/dev/userfaultfd", "/dev/mapper/control", "/dev/vsock", "/dev/uinput"):
    got = attempt(lambda: os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 64))
    out[path] = got if isinstance(got, str) else "EMPTY" if not got else repr(got)
for path in ("/proc/kallsyms", "/proc/kmsg", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/sched_debug", "/proc/kpageflags",
             "/proc/slabinfo", "/proc/vmallocinfo", "/proc/kpagecount"):
    got = attempt(lambda: os.read(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 64))
    out[path] = got if isinstance(got, str) else "EMPTY" if not got else repr(got)
for path in ("/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/drop_caches",
             "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname", "/proc/sys/net/ipv4/ip_forward", "/proc/sys/fs/binfmt_misc/register",
             "/proc/sys/kernel/ns_last_pid", "/proc/sys/user/max_user_namespaces", "/proc/sys/fs/mqueue/msg_max",
             "/proc/sys/kernel/shmmax", "/proc/irq/default_smp_affinity", "/proc/mtrr", "/proc/scsi/scsi", "/proc/acpi/wakeup",
             "/proc/timer_stats", "/proc/latency_stats", "/proc/fs/nfsd/threads"):
    def write(path=path):
        fd = os.open(path, os.O_WRONLY)
        return "EMPTY" if os.fstat(fd).st_rdev == os.makedev(1, 3) else "OPENED " + path
    out["write " + path] = attempt(write)
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_sys_is_absent_and_system_directories_are_read_only(backend: str, box: AsyncWorkspace) -> None:
    absent = ("/sys", "/boot", "/lost+found") if backend == "local" else ()  # an image has its own /boot, an engine a read-only /sys
    code = (
        f"out = {{path: attempt(os.listdir, path) for path in {absent!r}}}"
        + """
for folder in ("/", "/usr", "/usr/bin", "/usr/lib", "/bin", "/lib", "/etc", "/etc/ssl", "/dev", "/home", "/run", "/var", "/root", "/opt",
               "/run/workspace", "/run/workspace/guest", "/run/workspace/guest/workspace_guest", "/proc/sys", "/proc/sys/kernel", "/sys",
               os.path.dirname(os.path.realpath(sys.executable)), os.path.dirname(os.__file__)):
    out[folder] = attempt(lambda: os.close(os.open(folder + "/planted", os.O_CREAT | os.O_WRONLY)) or "WRITTEN")
for path in ("/etc/passwd", "/etc/ld.so.cache", "/usr/bin/env", os.path.realpath(sys.executable), os.__file__, "/proc/1/exe", "/proc/self/exe",
             "/run/workspace/guest/workspace_guest/main.py"):
    out["open " + path] = attempt(lambda: os.close(os.open(path, os.O_WRONLY)) or "WRITABLE")
    out["chmod " + path] = attempt(lambda: os.chmod(path, 0o777) or "CHANGED")
tell(out)
"""
    )
    assert all_errors(await probe(box, code))


# Network and sockets


async def test_no_service_of_the_host_answers(box: AsyncWorkspace, canary: Canary) -> None:
    host = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outward:
        outward.connect(("192.0.2.1", 9))
        host.append(outward.getsockname()[0])
    addresses = [*dict.fromkeys(["127.0.0.1", "127.1.2.3", "0.0.0.0", *host])]
    code = f"""
def reach(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(2)
        try:
            s.connect(address)
            return "CONNECTED " + s.recv(100).decode()
        except socket.timeout:
            return "ETIMEDOUT"
out = {{}}
for a in {addresses!r}:
    out[a] = attempt(reach, socket.AF_INET, (a, {canary.port}))
out["::1"] = attempt(reach, socket.AF_INET6, ("::1", {canary.port}))
out["mapped"] = attempt(reach, socket.AF_INET6, ("::ffff:127.0.0.1", {canary.port}))
for a, p in (("169.254.169.254", 80), ("100.100.100.200", 80), ("169.254.170.2", 80), ("1.1.1.1", 53), ("10.0.0.1", 80), ("192.168.0.1", 80)):
    out[a] = attempt(reach, socket.AF_INET, (a, p))
out["fd00:ec2::254"] = attempt(reach, socket.AF_INET6, ("fd00:ec2::254", 80))
out["abstract"] = attempt(reach, socket.AF_UNIX, "\\0" + {canary.abstract!r})
out["unix"] = attempt(reach, socket.AF_UNIX, {str(canary.unix)!r})
tell(out)
"""
    assert all_errors(await probe(box, code, timeout_s=40))
    assert canary.visits == []


async def test_only_a_loopback_interface_is_there_and_nothing_listens(box: AsyncWorkspace) -> None:
    code = """
tell({"interfaces": [name for _, name in socket.if_nameindex()],
      "routes": slurp("/proc/net/route").splitlines()[1:],
      "tcp": slurp("/proc/net/tcp").splitlines()[1:], "unix": slurp("/proc/net/unix").splitlines()[1:],
      "raw": attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) and "RAW")})
"""
    found = await probe(box, code)
    assert found["interfaces"] == ["lo"]
    assert found["routes"] == []
    assert found["tcp"] == []
    assert [line for line in found["unix"] if "@" in line] == []
    assert is_error(found["raw"])


async def test_odd_socket_families_are_refused(box: AsyncWorkspace) -> None:
    code = """
out = {}
for name, family, kind, protocol in (("vsock", 40, 1, 0), ("alg", 38, 5, 0), ("packet", 17, 3, 768), ("key", 15, 3, 2), ("bluetooth", 31, 3, 1),
                                     ("can", 29, 3, 1), ("tipc", 30, 1, 0), ("xdp", 44, 3, 0), ("smc", 43, 1, 0), ("rds", 21, 5, 0),
                                     ("netfilter", 16, 3, 12), ("uevent", 16, 3, 15), ("audit", 16, 3, 9), ("generic", 16, 3, 16),
                                     ("sock_diag", 16, 3, 4), ("xfrm", 16, 3, 6), ("qipcrtr", 42, 2, 0), ("kcm", 41, 5, 0), ("ax25", 3, 5, 0)):
    out[name] = attempt(lambda: socket.socket(family, kind, protocol) and "MADE")
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_the_guest_cannot_be_impersonated(box: AsyncWorkspace) -> None:
    """No socket of the guest has a name inside, and its descriptors cannot be taken."""
    code = """
sockets = []
for top in ("/run", "/tmp", "/workspace", "/home", "/var", "/dev", "/etc", "/root"):
    for folder, _, files in os.walk(top):
        sockets += [folder + "/" + n for n in files if stat.S_ISSOCK(os.lstat(folder + "/" + n).st_mode)]
out = {"sockets": sockets}
fd = call("pidfd_open", 1, 0)
out["pidfd"] = fd
out["stolen"] = [call("pidfd_getfd", fd, n, 0) for n in range(16)] if isinstance(fd, int) else []
out["opened"] = [n for n in range(16) for p in ("1", str(os.getppid())) if not isinstance(attempt(os.open, "/proc/%s/fd/%d" % (p, n), os.O_RDWR), str)]
tell(out)
"""
    found = await probe(box, code)
    assert found["sockets"] == []
    assert found["opened"] == []
    assert all(is_error(answer) for answer in found["stolen"])


# Files that change under the host's hands


RACE = """
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
outside = sys.argv[1]
os.makedirs("race/real", exist_ok=True)
with open("race/real/secret", "w") as f:
    f.write("inside")
if not os.path.islink("race/link"):
    os.symlink(outside, "race/link")
end = time.monotonic() + float(sys.argv[2])
open("racing", "w").close()
while time.monotonic() < end:
    libc.renameat2(-100, b"race/real", -100, b"race/link", 2)  # RENAME_EXCHANGE
"""


async def test_a_directory_swapped_for_a_link_gives_no_host_file_and_writes_none(box: AsyncWorkspace, canary: Canary) -> None:
    host = canary.folder / "host"
    host.mkdir(mode=0o777)
    (host / "secret").write_text(canary.secret)
    target = canary.folder / "downloads"
    await box.files.write("race.py", RACE.encode())
    racing = asyncio.ensure_future(box.run(["python3", "race.py", str(host), "4"], timeout_s=15))
    try:
        async with asyncio.timeout(10):
            while not await box.files.exists("racing"):
                await asyncio.sleep(0.01)
        begun, rounds = time.monotonic(), 0
        while time.monotonic() - begun < 3:
            rounds += 1
            with contextlib.suppress(WorkspaceError):
                assert await box.files.read("race/real/secret") == b"inside"
            with contextlib.suppress(WorkspaceError):
                await box.files.write("race/real/written", b"written")
            with contextlib.suppress(WorkspaceError):
                await box.files.append("race/real/secret", b"")
            with contextlib.suppress(WorkspaceError):
                await box.files.remove("race/real/gone", recursive=True)
            with contextlib.suppress(WorkspaceError):
                await box.files.download("race", target)
    finally:
        await racing
    assert rounds > 5
    assert [path.name for path in host.iterdir()] == ["secret"]
    assert (host / "secret").read_text() == canary.secret
    for path in target.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert canary.secret not in path.read_text()


async def test_a_download_never_leaves_its_directory(box: AsyncWorkspace, canary: Canary) -> None:
    """Links that lead out are left out, also those that a later entry would go through."""
    setup = f"""
mkdir -p tree/sub/deep
ln -s / tree/root
ln -s {canary.folder} tree/abs
ln -s ../../.. tree/up
ln -s ../../outside tree/sub/out
ln -s sub tree/inside
ln -s deep/../../../../.. tree/sub/twisted
ln -s . tree/dot
ln -s sub/deep tree/a; ln -s a/../../.. tree/b
mkfifo tree/fifo
python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("tree/socket")'
echo data > 'tree/sub/file'
printf x > 'tree/sub/new
line'
"""
    assert (await box.run(setup, timeout_s=15)).exit_code == 0
    target = canary.folder / "out" / "tree"
    before = sorted(canary.folder.iterdir())
    async with asyncio.timeout(20):
        report = await box.files.download("tree", target)
    for path in target.rglob("*"):
        if path.is_symlink():
            assert os.path.realpath(path).startswith(str(target.resolve()) + "/") or os.path.realpath(path) == str(target.resolve()), path
        assert path.is_symlink() or path.is_file() or path.is_dir(), path
    assert {"root", "abs", "up", "sub/out", "sub/twisted", "fifo", "socket"} <= set(report.skipped)
    assert (target / "sub" / "file").read_text() == "data\n"
    assert sorted(path for path in canary.folder.iterdir() if path.name != "out") == before


async def test_a_download_does_not_go_through_links_that_are_there_already(box: AsyncWorkspace, canary: Canary) -> None:
    """The first download plants a link, the second would write through it."""
    target, outside = canary.folder / "twice", canary.folder / "victim"
    outside.mkdir()
    target.mkdir()
    (target / "planted").symlink_to(outside)
    (target / "file").symlink_to(outside / "file")
    await box.run("mkdir -p t/planted; echo evil > t/planted/evil; echo evil > t/file", timeout_s=10)
    with contextlib.suppress(OSError, WorkspaceError):
        await box.files.download("t", target)
    assert list(outside.iterdir()) == []


async def test_no_file_call_hangs_on_a_fifo_or_a_device(box: AsyncWorkspace) -> None:
    await box.run("mkfifo fifo; ln -s /dev/zero zero; ln -s /dev/tty tty; ln -s fifo link; ln -s loop loop", timeout_s=10)
    async with asyncio.timeout(30):
        for name in ("fifo", "link", "zero", "tty", "loop", "/dev/ptmx", "/dev/zero", "/proc/kmsg"):
            for call in (
                box.files.read,
                lambda n: box.files.write(n, b"x"),
                lambda n: box.files.append(n, b"x"),
                lambda n: box.files.edit(n, "a", "b"),
            ):
                try:
                    await call(name)
                except (FileError, WorkspaceError):
                    continue
                assert name in ("/proc/kmsg",), f"{name} was taken for a file"
            await box.files.stat("fifo")
        await box.files.grep("x")
        await box.files.list(".")
        with pytest.raises(FileError):
            await box.files.copy("zero", "zero2")
    await still_usable(box)


async def test_device_nodes_cannot_be_made(box: AsyncWorkspace) -> None:
    code = """
out = {}
for folder in ("/workspace", "/tmp", "/home/user", "/dev/shm", "/dev"):
    for name, kind, device in (("null", stat.S_IFCHR, (1, 3)), ("mem", stat.S_IFCHR, (1, 1)), ("disk", stat.S_IFBLK, (254, 0)), ("loop", stat.S_IFBLK, (7, 0))):
        out[folder + "/" + name] = attempt(lambda: os.mknod(folder + "/n-" + name, kind | 0o666, os.makedev(*device)) or "MADE")
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_setuid_bits_have_no_effect(backend: str, box: AsyncWorkspace) -> None:
    code = """
import shutil, subprocess
out = {}
for folder in ("/workspace", "/tmp", "/home/user", "/dev/shm"):
    out["nosuid " + folder] = bool(os.statvfs(folder).f_flag & os.ST_NOSUID)
    out["nodev " + folder] = bool(os.statvfs(folder).f_flag & os.ST_NODEV)
for folder in ("/usr", "/", "/etc", "/dev"):
    out["nosuid " + folder] = bool(os.statvfs(folder).f_flag & os.ST_NOSUID)
shutil.copy("/usr/bin/id", "/workspace/id")
os.chmod("/workspace/id", 0o6755)
out["uid"] = subprocess.run(["/workspace/id", "-u"], capture_output=True, text=True).stdout.strip() == "1000"
out["setuid"] = all(is_int != 0 for is_int in [1 if isinstance(attempt(os.setuid, 0), str) else 0])
out["setgroups"] = isinstance(attempt(os.setgroups, [0]), str)
out["chown"] = isinstance(attempt(os.chown, "/workspace/id", 0, 0), str)
tell(out)
"""
    found = await probe(box, code)
    if backend != "local":  # an engine's volumes carry no mount flags; no_new_privs and the missing capabilities hold
        found = {name: value for name, value in found.items() if not name.startswith(("nosuid", "nodev"))}
    assert all(found.values()), found
    result = await box.run(
        "for p in su sudo mount newuidmap passwd; do command -v $p >/dev/null && timeout 3 $p -c 'id -u' root </dev/null; done; true",
        timeout_s=30,
    )
    assert "0\n" not in result.stdout


# Kernel surface


async def test_mounts_and_namespaces_cannot_be_changed(box: AsyncWorkspace) -> None:
    code = r"""
MS_REMOUNT, MS_BIND = 32, 4096
out = {}
for path in (b"/", b"/usr", b"/etc", b"/proc/sys", b"/dev", b"/run/workspace/guest"):
    out["remount " + path.decode()] = call("mount", b"none", path, b"", MS_REMOUNT | MS_BIND, 0)
out["mount tmpfs"] = call("mount", b"none", b"/tmp", b"tmpfs", 0, 0)
out["mount proc"] = call("mount", b"none", b"/tmp", b"proc", 0, 0)
out["bind"] = call("mount", b"/usr", b"/tmp", b"", MS_BIND, 0)
for path in (b"/proc/sys", b"/proc/kcore", b"/proc/keys", b"/tmp", b"/etc", b"/dev"):
    out["umount " + path.decode()] = call("umount2", path, 2)
out["pivot_root"] = call("pivot_root", b"/tmp", b"/tmp")
out["chroot"] = call("chroot", b"/tmp")
out["fsopen"] = call("fsopen", b"tmpfs", 0)
out["fspick"] = call("fspick", -100, b"/", 0)
out["open_tree"] = call("open_tree", -100, b"/", 1)
out["mount_setattr"] = call("mount_setattr", -100, b"/usr", 0, ctypes.create_string_buffer(32), 32)
out["move_mount"] = call("move_mount", -100, b"/usr", -100, b"/tmp", 0)
for name, flag in (("ns", 0x20000), ("cgroup", 0x2000000), ("uts", 0x4000000), ("ipc", 0x8000000), ("user", 0x10000000), ("pid", 0x20000000),
                   ("net", 0x40000000), ("time", 0x80), ("user+ns", 0x10020000)):
    out["unshare " + name] = call("unshare", flag)
    if name != "time":
        got = call("clone", flag | 17, 0, 0, 0, 0)
        if got == 0:
            os._exit(0)
        out["clone " + name] = got
out["clone3"] = call("clone3", struct.pack("=11Q", 0x10000000, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0), 88)
for pid in (1, os.getppid(), os.getpid()):
    for name in ("mnt", "user", "pid", "net"):
        fd = attempt(os.open, "/proc/%d/ns/%s" % (pid, name), os.O_RDONLY)
        out["setns %d %s" % (pid, name)] = fd if isinstance(fd, str) else call("setns", fd, 0)
tell(out)
"""
    found = await probe(box, code)
    assert all_errors(found)
    assert found["clone3"] == "ENOSYS"
    result = await box.run(
        "unshare -U true; unshare -r id -u; unshare -n true; unshare --map-root-user --mount true; setpriv --ambient-caps +all true",
        timeout_s=15,
    )
    assert "0\n" not in result.stdout
    assert (await box.run("unshare -U true", timeout_s=10)).exit_code != 0


async def test_dangerous_system_calls_are_refused(box: AsyncWorkspace) -> None:
    code = r"""
buffer = ctypes.create_string_buffer(256)
out = {
    "io_uring_setup": call("io_uring_setup", 4, buffer),
    "io_uring_enter": call("io_uring_enter", 0, 0, 0, 0, 0, 0),
    "io_uring_register": call("io_uring_register", 0, 0, 0, 0),
    "keyctl": call("keyctl", 0, -3, 1),
    "keyctl join": call("keyctl", 1, 0),
    "add_key": call("add_key", b"user", b"x", b"y", 1, -3),
    "request_key": call("request_key", b"user", b"x", 0, -3),
    "bpf": call("bpf", 0, buffer, 120),
    "userfaultfd": call("userfaultfd", 0),
    "userfaultfd user": call("userfaultfd", 1),
    "perf_event_open": call("perf_event_open", buffer, 0, -1, -1, 0),
    "fanotify_init": call("fanotify_init", 0x200, 0),
    "kexec_load": call("kexec_load", 0, 0, 0, 0),
    "init_module": call("init_module", buffer, 10, b""),
    "reboot": call("reboot", 0xfee1dead - (1 << 32), 672274793, 0, 0),
    "syslog": call("syslog", 3, buffer, 256),
    "swapon": call("swapon", b"/workspace/x", 0),
    "acct": call("acct", 0),
    "quotactl": call("quotactl", 0, 0, 0, 0),
    "name_to_handle_at": call("name_to_handle_at", -100, b"/usr", buffer, buffer, 0),
    "open_by_handle_at": call("open_by_handle_at", 0, buffer, 0),
    "settimeofday": call("settimeofday", buffer, 0),
    "clock_settime": call("clock_settime", 0, buffer),
    "sethostname": call("sethostname", b"evil", 4),
    "process_madvise": call("process_madvise", 1, buffer, 1, 21, 0),
    "kcmp": call("kcmp", os.getpid(), 1, 0, 0, 0),
    "iopl": "EPERM" if platform.machine() != "x86_64" else attempt(lambda: "EPERM" if libc.syscall(172, 3) < 0 else "IOPL"),
}
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_an_odd_personality_cannot_be_taken(box: AsyncWorkspace) -> None:
    """READ_IMPLIES_EXEC, ADDR_COMPAT_LAYOUT, MMAP_PAGE_ZERO weaken every program started after."""
    code = """
out = {name: call("personality", flag) for name, flag in (("READ_IMPLIES_EXEC", 0x400000), ("MMAP_PAGE_ZERO", 0x100000), ("ADDR_COMPAT_LAYOUT", 0x200000))}
out["query"] = "EOK" if isinstance(call("personality", 0xffffffff), int) else "refused"
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_the_x32_system_call_table_is_closed(box: AsyncWorkspace) -> None:
    """Refused as unknown, or the caller is killed; never served."""
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is of x86_64 alone")
    result = await box.run(
        ["python3", "-c", PRELUDE + "tell([libc.syscall(ctypes.c_long(0x40000000 | 39)), ctypes.get_errno()])"], timeout_s=10
    )
    assert result.signal == 31 or json.loads(result.stdout) == [-1, 38]


async def test_no_input_can_be_typed_into_a_terminal(box: AsyncWorkspace) -> None:
    code = """
import fcntl, termios
master, slave = attempt(os.openpty) if hasattr(os, "openpty") else (None, None)
out = {}
for name, request in (("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541C)):
    for fd in (0, 1, 2, slave):
        out["%s %s" % (name, fd)] = attempt(lambda: fcntl.ioctl(fd, request, b"x") and "TYPED")
out["/dev/tty"] = attempt(os.open, "/dev/tty", os.O_RDWR)
out["/dev/console"] = attempt(os.open, "/dev/console", os.O_RDWR)
tell(out)
"""
    assert all_errors(await probe(box, code))


async def test_process_1_and_siblings_cannot_be_traced(box: AsyncWorkspace) -> None:
    sibling = await box.commands.start("exec sleep 30")
    code = f"""
out = {{}}
buffer = ctypes.create_string_buffer(64)
for pid in (1, os.getppid(), {sibling.pid}):
    for name, request in (("ATTACH", 16), ("SEIZE", 0x4206)):
        out["%s %d" % (name, pid)] = call("ptrace", request, pid, 0, 0)
    local = struct.pack("=QQ", ctypes.addressof(buffer), 8)
    remote = struct.pack("=QQ", 0x400000, 8)
    out["readv %d" % pid] = call("process_vm_readv", pid, local, 1, remote, 1, 0)
    out["writev %d" % pid] = call("process_vm_writev", pid, local, 1, remote, 1, 0)
out["TRACEME"] = call("ptrace", 0, 0, 0, 0)
tell(out)
"""
    try:
        assert all_errors(await probe(box, code))
    finally:
        await sibling.kill()
        await sibling.wait()


async def test_limits_and_priorities_of_process_1_stay(box: AsyncWorkspace) -> None:
    before = await probe(
        box, "tell([slurp('/proc/1/limits'), slurp('/proc/1/stat').rpartition(')')[2].split()[15:17], call('ioprio_get', 1, 1)])"
    )
    code = """
zero = struct.pack("=QQ", 0, 0)
buffer = ctypes.create_string_buffer(8)
out = {"prlimit %d" % n: call("prlimit64", 1, n, zero, 0) for n in range(16)}
out["affinity"] = call("sched_setaffinity", 1, 8, b"\\1" + bytes(7))
out["scheduler"] = call("sched_setscheduler", 1, 5, ctypes.create_string_buffer(4))
out["priority"] = call("setpriority", 0, 1, 19)
out["priority of the group"] = call("setpriority", 1, 1, 19)
out["ioprio"] = call("ioprio_set", 1, 1, 3 << 13)
out["oom_score_adj"] = attempt(lambda: open("/proc/1/oom_score_adj", "w").write("1000"))
tell(out)
"""
    assert all_errors(await probe(box, code))
    await probe(box, "tell([call('setpriority', 2, u, 19) for u in (0, 1000)] + [call('ioprio_set', 3, u, 3 << 13) for u in (0, 1000)])")
    after = await probe(
        box, "tell([slurp('/proc/1/limits'), slurp('/proc/1/stat').rpartition(')')[2].split()[15:17], call('ioprio_get', 1, 1)])"
    )
    assert after == before


# Killing what runs the workspace


@pytest.mark.parametrize("number", [1, 2, 3, 6, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 23, 31, 34, 64])
async def test_a_signal_to_process_1_leaves_the_workspace_usable(box: AsyncWorkspace, number: int) -> None:
    await box.run(f"kill -{number} 1", timeout_s=10)
    await box.run(["python3", "-c", f"import os\nfor _ in range(2000): os.kill(1, {number})"], timeout_s=10)
    await still_usable(box)


async def test_killing_every_process_inside_leaves_the_workspace_usable_and_nothing_alive(box: AsyncWorkspace) -> None:
    for _ in range(3):
        with contextlib.suppress(CommandTimeout):
            await box.run("(setsid sleep 987 &) ; sleep 0.05; kill -9 -1", timeout_s=10)
        await still_usable(box)
    result = await box.run("grep -l '[s]leep.987' /proc/[0-9]*/cmdline", timeout_s=10)
    assert result.stdout == ""


async def test_killing_the_shepherd_is_no_way_to_outlive_a_timeout(box: AsyncWorkspace) -> None:
    code = "import os, signal, time\nif os.fork() == 0:\n os.setsid()\n os.kill(os.getppid(), 0)\n"
    script = f"python3 -c '{code}' ; (setsid sleep 986 >/dev/null 2>&1 &) ; sleep 0.1; kill -9 $PPID; sleep 985"
    with contextlib.suppress(CommandTimeout):
        await box.run(script, timeout_s=3)
    async with asyncio.timeout(15):
        while (
            await box.run("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 98[56]'", timeout_s=10)
        ).stdout.strip() not in ("", "sleep 98[56]"):
            await asyncio.sleep(0.05)
    await still_usable(box)


async def test_stopping_every_process_inside_leaves_the_workspace_usable(box: AsyncWorkspace) -> None:
    """SIGSTOP, to the shepherds too: the command may time out, the next ones must not."""
    with contextlib.suppress(CommandTimeout):
        await box.run("kill -STOP -1", timeout_s=3)
    await still_usable(box)


async def test_a_stopped_idle_shepherd_does_not_swallow_the_next_command(box: AsyncWorkspace) -> None:
    await asyncio.gather(*(box.run("sleep 0.3", timeout_s=10) for _ in range(3)))  # now there are idle shepherds
    stop_others = """
for p in os.listdir("/proc"):
    if p.isdigit() and int(p) not in (1, os.getpid(), os.getppid()) and "workspace_guest" in slurp("/proc/%s/cmdline" % p):
        os.kill(int(p), signal.SIGSTOP)
tell("stopped")
"""
    await probe(box, stop_others)
    await still_usable(box)


async def test_a_shepherd_with_poisoned_limits_does_not_spoil_later_commands(box: AsyncWorkspace) -> None:
    """prlimit(2) reaches every process of the same user that the filter does not name."""
    poison = """
tell([call("prlimit64", os.getppid(), n, struct.pack("=QQ", 0, 0), 0) for n in (1, 2, 3, 6, 7, 9)])
"""
    await probe(box, poison)
    await still_usable(box)


async def test_a_flood_of_orphans_and_signals_leaves_the_workspace_usable(box: AsyncWorkspace) -> None:
    code = """
end = time.monotonic() + 2
while time.monotonic() < end:
    pid = attempt(os.fork)
    if pid == 0:
        if attempt(os.fork) == 0:
            os.kill(1, signal.SIGCHLD)
        os._exit(0)
    elif not isinstance(pid, str):
        os.waitpid(pid, 0)
tell("done")
"""
    await probe(box, code)
    await still_usable(box)


# Other workspaces, and the sandbox from outside


async def test_another_workspace_is_invisible(backend: str, box: AsyncWorkspace) -> None:
    mark = f"mark{secrets.token_hex(8)}"
    async with AsyncWorkspace.create(backend, resources=SMALL) as other:
        for folder in ("/tmp", "/dev/shm", "/workspace", "/home/user"):
            await other.files.write(f"{folder}/{mark}", mark.encode())
        handle = await other.commands.start(
            ["python3", "-c", f"import socket,time;s=socket.socket(socket.AF_UNIX);s.bind('\\0{mark}');s.listen();time.sleep(60)#{mark}"]
        )
        assert handle.running
        found = await probe(
            box,
            f"""
half = ({mark[:10]!r}, {mark[10:]!r})
out = {{"files": [f + "/" + n for f in ("/tmp", "/dev/shm", "/workspace", "/home/user") for n in os.listdir(f) if half[0] + half[1] == n]}}
s = socket.socket(socket.AF_UNIX)
out["abstract"] = attempt(lambda: s.connect("\\0" + half[0] + half[1]) or "CONNECTED")
out["processes"] = [p for p in os.listdir("/proc") if p.isdigit() and int(p) != os.getpid() and half[0] + half[1] in slurp("/proc/%s/cmdline" % p)]
out["killed"] = attempt(lambda: os.kill({handle.pid} + 100000, 9) or "KILLED")
out["shm"] = len(slurp("/proc/sysvipc/shm").splitlines()) if os.path.exists("/proc/sysvipc/shm") else 1
tell(out)
""",
        )
        assert found["files"] == []
        assert found["processes"] == []
        assert is_error(found["abstract"])
        assert found["shm"] == 1
        if backend == "local":
            ours, theirs = ({uid for _, _, uid in host_processes_of(space)} for space in (box, other))
            assert ours
            assert theirs
            if os.geteuid() == 0:
                assert ours.isdisjoint(theirs)
        await handle.kill()
        await handle.wait()


async def test_no_process_of_the_sandbox_has_a_privileged_uid_on_the_host(backend: str, box: AsyncWorkspace) -> None:
    if backend != "local":
        pytest.skip("only a local sandbox's processes are those of this host")
    handle = await box.commands.start("sleep 30")
    await until(lambda: len({pid for pid, _, _ in host_processes_of(box)}) >= 3, "the sandbox's processes are seen")
    found = host_processes_of(box)
    assert {uid for _, _, uid in found} == {found[0][2]}
    assert found[0][2] >= 1000
    for pid, _, _ in found:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert fields["Gid"].split() == [fields["Gid"].split()[0]] * 4
        assert int(fields["Gid"].split()[0]) >= 1000
        assert set(fields["Groups"].split()) <= set(fields["Gid"].split())
        in_sandbox = os.readlink(f"/proc/{pid}/ns/user") != os.readlink("/proc/self/ns/user")
        if in_sandbox and len(fields["NSpid"].split()) > 1:
            assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapBnd"], 16) == 0
            assert fields["NoNewPrivs"].strip() == "1"
            assert fields["Seccomp"].strip() == "2"
    await handle.kill()
    await handle.wait()


async def test_no_secret_of_the_host_is_in_the_sandbox_as_the_host_sees_it(backend: str, box: AsyncWorkspace, canary: Canary) -> None:
    """The launcher's and bubblewrap's environments and arguments are clean, and no descriptor of the host is held."""
    if backend != "local":
        pytest.skip("only a local sandbox's processes are those of this host")
    pids = {pid for pid, _, _ in host_processes_of(box)}
    assert pids
    parents = {parent for pid, parent, _ in host_processes_of(box)} - pids
    for pid in pids | parents - {os.getpid()}:
        assert canary.secret.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
        assert canary.secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    for pid in pids:
        assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") in (b"", b"PWD=/"), pid
        targets = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
        for target in targets:
            assert target.startswith(("socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null", "/proc/1/oom_score_adj")), (pid, target)


async def test_nothing_survives_the_end_of_the_workspace(backend: str, canary: Canary) -> None:
    if backend != "local":
        pytest.skip("only a local sandbox's processes are those of this host")
    async with AsyncWorkspace.create(backend, resources=SMALL) as ws:
        await ws.run("for i in 1 2 3; do (setsid nohup sleep 984 >/dev/null 2>&1 &); done; trap '' TERM HUP INT", timeout_s=10)
        assert host_processes_of(ws)
    await until(lambda: not host_processes_of(ws), "no process is left")


async def test_the_only_uid_inside_is_mapped_to_one_unprivileged_uid(backend: str, box: AsyncWorkspace) -> None:
    if backend != "local":
        pytest.skip("an engine's user namespace is its administrator's choice (userns-remap, rootless)")
    found = await probe(
        box,
        "tell([[slurp('/proc/self/uid_map').split(), slurp('/proc/self/gid_map').split(), slurp('/proc/self/setgroups').strip()], os.getuid(), os.getgid()])",
    )
    (uids, gids, setgroups), uid, gid = found
    assert uid == gid == 1000
    assert len(uids) == len(gids) == 3
    assert uids[2] == gids[2] == "1"
    assert setgroups == "deny"


# What info() says


async def test_every_wall_that_is_named_stands(backend: str, box: AsyncWorkspace) -> None:
    walls = dict((await box.info()).walls)
    found = await probe(
        box,
        """
fields = dict(line.split(":", 1) for line in slurp("/proc/self/status").splitlines())
ruleset = libc.syscall(444, ctypes.c_void_p(0), ctypes.c_size_t(0), ctypes.c_uint(1))
tell({"caps": [fields[n].strip() for n in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")], "nnp": fields["NoNewPrivs"].strip(),
      "seccomp": fields["Seccomp"].strip(), "ns": {n: os.readlink("/proc/self/ns/" + n) for n in os.listdir("/proc/self/ns")},
      "abi": ruleset, "one": slurp("/proc/1/cmdline"), "dump": attempt(os.listdir, "/proc/1/fd"),
      "interfaces": [n for _, n in socket.if_nameindex()],
      "mounts": {line.split()[1]: line.split()[2:4] for line in slurp("/proc/self/mounts").splitlines()},
      "roots": sorted(os.listdir("/"))})
""",
    )
    proofs = {
        "namespaces": lambda: all(
            found["ns"][name] != os.readlink(f"/proc/self/ns/{name}") for name in ("user", "pid", "mnt", "ipc", "uts", "cgroup", "net")
        ),
        "root": lambda: (
            {"usr", "workspace", "home", "proc", "dev", "tmp"} <= set(found["roots"])
            and "sys" not in found["roots"]
            and found["mounts"]["/"][0] == "tmpfs"
            and all(found["mounts"][path][1].split(",")[0] == "ro" for path in ("/", "/usr", "/proc/sys", "/etc", "/dev"))
        ),
        "files": lambda: (
            {
                path
                for path, (kind, flags) in found["mounts"].items()
                if flags.split(",")[0] == "rw" and kind not in ("tmpfs", "proc", "devtmpfs", "devpts")
            }
            == {"/workspace", "/home/user"}
        ),
        "host_uid": lambda: {uid for _, _, uid in host_processes_of(box)} and all(uid >= 1000 for _, _, uid in host_processes_of(box)),
        "capabilities": lambda: {int(value, 16) for value in found["caps"]} == {0},
        "no_new_privs": lambda: found["nnp"] == "1",
        "seccomp": lambda: found["seccomp"] == "2",
        "landlock": lambda: walls["landlock"] == f"ABI {found['abi']}",
        "guest": lambda: "workspace_guest" in found["one"] and is_error(found["dump"]),
        "network": lambda: found["interfaces"] == ["lo"],
    }
    if backend != "local":
        listed = [{"mount": "mnt"}.get(name, name) for name in walls["namespaces"].split(", ")]
        proofs["namespaces"] = lambda: all(found["ns"][name] != os.readlink(f"/proc/self/ns/{name}") for name in listed)
        proofs["root"] = lambda: found["mounts"]["/"][0] in ("overlay", "fuse-overlayfs", "vfs", "ext4")
        proofs["files"] = lambda: {"/workspace", "/home/user"} <= set(found["mounts"])
    required = {"namespaces", "root", "files", "capabilities", "no_new_privs", "seccomp", "network"} if backend == "local" else set()
    assert required <= set(walls)
    for name in walls:
        assert name in proofs, f"the wall {name!r} has no proof"
        assert proofs[name](), name


async def test_landlock_holds_where_a_mount_would_not(box: AsyncWorkspace) -> None:
    """Writable by mode and mount, but not among the places that may be changed: /dev/null yes, new names in /proc no."""
    if "landlock" not in (await box.info()).walls:
        pytest.skip("no Landlock in this kernel")
    code = """
status = slurp("/proc/self/status")
tell({"mq": attempt(lambda: os.open("/dev/mqueue/x", os.O_CREAT | os.O_RDWR)), "var": attempt(lambda: os.mkdir("/var/x"))})
"""
    assert all_errors(await probe(box, code))


async def test_the_workspace_s_own_id_is_not_seen_inside(box: AsyncWorkspace) -> None:
    text = (await box.run("cat /proc/self/mountinfo /proc/self/mounts /proc/1/cmdline /proc/self/cgroup; hostname", timeout_s=10)).stdout
    assert box.id not in text


async def test_the_host_s_pressure_files_take_no_triggers(box: AsyncWorkspace) -> None:
    """/proc/pressure is of the whole machine and writable for everybody: not for code inside."""
    code = """
tell({n: attempt(lambda: os.write(os.open("/proc/pressure/" + n, os.O_RDWR), b"some 150000 2000000")) for n in ("cpu", "memory", "io")})
"""
    assert all_errors(await probe(box, code))

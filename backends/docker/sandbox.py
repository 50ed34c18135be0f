"""One container: its start, its end, how it is reached."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import shutil
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workspace.backend import Sandbox, SandboxInfo, observed_walls
from workspace.errors import BackendError, WorkspaceError, WorkspaceExists, WorkspaceGone, WorkspaceNotFound
from workspace.spec import WorkspaceSpec
from workspace.transport import connect_in

from . import engine, network
from .box import LINK_DIR, Box, hidden_name
from .images import tar
from .options import DockerOptions
from .relay import demultiplex

START_TIMEOUT_S = 30.0
POLL_S = 0.004
REMOVE_TIMEOUT_S = 30.0
RELAY = f"""
import socket,sys,threading,os
s=socket.socket(socket.AF_UNIX);s.connect("{LINK_DIR}/sock")
def up():
    while True:
        d=os.read(0,65536)
        if not d: break
        s.sendall(d)
    s.shutdown(1)
threading.Thread(target=up,daemon=True).start()
while True:
    d=s.recv(262144)
    if not d: break
    while d: d=d[os.write(1,d):]
"""
"""Runs inside as root, next to the guest, where the engine does not share files with us: one for each link."""


class DockerSandbox(Sandbox):
    """A container with the guest as its first process."""

    backend = "docker"

    def __init__(self, box: Box, state: Path, owned: bool) -> None:
        self.id = box.id
        self.spec = box.spec
        self.owned = owned
        self.greeting = {"token": box.token, "owner": owned and not box.spec.detached}
        self._box = box
        self._state = state
        self._host = box.options.docker_host
        self._api = engine.client(self._host).api
        self._removed = False

    # Start

    def start(self) -> None:
        """Creates and starts the container on its volumes; blocking. Leaves no container on failure."""
        box = self._box
        with engine.mapped(self._host):
            if box.spec.network.mode == "open":
                network.ensure(engine.client(self._host))
            config = box.host_config(self._api)
            self._api.create_container(
                box.image.id,
                name=box.name,
                hostname="workspace",
                user="0",
                working_dir="/",
                entrypoint=box.command(),
                command=[],
                labels=box.labels(),
                host_config=config,
                environment={},
                stdin_open=False,
                healthcheck={"test": ["NONE"]},
            )
            try:
                self._place_config()
                self._api.start(box.name)
            except BaseException:
                self._api.remove_container(box.name, force=True, v=False)
                raise

    def _place_config(self) -> None:
        """The configuration goes in as a file that only root can read and that the guest removes."""
        if self._box.link_dir is not None:
            path = self._box.link_dir / "config.json"
            path.touch(mode=0o600)
            path.write_bytes(self._box.config())
        else:
            self._api.put_archive(self._box.name, "/", tar({f"{LINK_DIR.lstrip('/')}/config.json": self._box.config()}, 0o600))

    async def dial(self) -> socket.socket:
        if self._box.link_dir is None:
            return await engine.call(self._host, self._dial_through_engine)
        deadline = time.monotonic() + START_TIMEOUT_S
        looked = time.monotonic()
        while True:
            try:
                return connect_in(self._box.link_dir)
            except OSError:
                await asyncio.sleep(POLL_S)
            if time.monotonic() - looked > 0.3:
                looked = time.monotonic()
                if not await self.alive() or looked > deadline:
                    reason, message = await self.why_gone()
                    raise WorkspaceGone(message, reason)

    def _dial_through_engine(self) -> socket.socket:
        """A relay inside, its standard streams carried by the engine; waits until the guest listens."""
        deadline = time.monotonic() + START_TIMEOUT_S
        ready = f"import os,sys;sys.exit(not os.path.exists('{LINK_DIR}/sock'))"
        while self._execute(["python3", "-I", "-S", "-c", ready]):
            if time.monotonic() > deadline:
                raise WorkspaceGone(f"the guest of {self.id} does not listen", "unresponsive")
            time.sleep(0.02)
        made = self._api.exec_create(self._box.name, ["python3", "-I", "-S", "-c", RELAY], stdin=True, user="0")
        stream = self._api.exec_start(made["Id"], socket=True)
        return demultiplex(stream)

    def _execute(self, command: list[str]) -> int:
        made = self._api.exec_create(self._box.name, command, user="0")
        self._api.exec_start(made["Id"])
        return int(self._api.exec_inspect(made["Id"])["ExitCode"])

    # Life

    async def _inspect(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = await engine.call(self._host, self._api.inspect_container, self._box.name)
        except WorkspaceNotFound:
            return None
        return found

    async def alive(self) -> bool:
        found = await self._inspect()
        return found is not None and bool(found["State"]["Running"])

    async def why_gone(self) -> tuple[str, str]:
        try:
            found = await self._inspect()
        except WorkspaceError as error:
            return "killed", f"the sandbox {self.id} cannot be reached: {error}"
        if found is None:
            return "killed", f"the container of workspace {self.id} was removed"
        state = found["State"]
        if state.get("OOMKilled") and not state["Running"]:
            return "out_of_memory", f"the container of workspace {self.id} was killed at its memory limit"
        if state["Running"]:
            return "killed", f"the link to workspace {self.id} was lost; its container still runs, connect again"
        return (
            "killed",
            f"the container of workspace {self.id} ended with exit code {state.get('ExitCode')} {state.get('Error') or ''}".strip(),
        )

    async def stop(self) -> None:
        await engine.call(self._host, self._remove_container)
        self.owned = False

    def _remove_container(self) -> None:
        remove_container(self._host, self._box.name)

    async def destroy(self) -> None:
        await engine.call(self._host, self.remove)
        self.owned = False

    def remove(self) -> None:
        """The container, its volumes and our files about it; blocking, idempotent."""
        self._remove_container()
        for volume in self._box.volumes():
            with contextlib.suppress(WorkspaceNotFound), engine.mapped(self._host):
                self._api.remove_volume(volume, force=True)
        shutil.rmtree(self._state / self.id, ignore_errors=True)
        shutil.rmtree(self._state / "links" / hidden_name(self.id), ignore_errors=True)

    async def touch(self, spec: WorkspaceSpec | None = None) -> None:
        self.spec = spec or self.spec
        if (self._state / self.id).is_dir():
            await asyncio.to_thread(remember, self._state, self.id, self.spec, self._box.token)

    async def pause(self) -> None:
        await engine.call(self._host, self._api.pause, self._box.name)

    async def resume(self) -> None:
        await engine.call(self._host, self._api.unpause, self._box.name)

    async def checkpoint(self, name: str) -> str:
        """The container's whole file system (without its volumes) as an image; its id."""
        repository, _, tag = name.partition(":")
        made: dict[str, Any] = await engine.call(self._host, self._api.commit, self._box.name, repository, tag or "latest")
        return str(made["Id"])

    def describe(self, walls: Mapping[str, object]) -> SandboxInfo:
        resources = self.spec.resources
        limits = {
            name: f"{getattr(resources, name)} (all processes together)"
            for name in ("memory_bytes", "cpus", "pids", "tmp_bytes", "shm_bytes")
        }
        limits |= {name: f"{getattr(resources, name)} (each process)" for name in ("open_files", "file_bytes")}
        limits["disk_bytes"] = f"{resources.disk_bytes} (not enforced by the engine's volumes)"
        options = self._box.options
        extra = {"image": options.image, "digest": self._box.image.digest, "runtime": options.runtime or "default"}
        link = "unix socket on a bind mount" if self._box.link_dir else "relay through the engine"
        return SandboxInfo(f"container on {engine.name(self._host)}", _walls(self.spec, options, walls), limits, link, extra)


def _walls(spec: WorkspaceSpec, options: DockerOptions, seen: Mapping[str, object]) -> dict[str, str]:
    found = {
        "namespaces": "pid, mount, net, ipc, uts",
        "root": "read-only" if options.read_only_root else "the image's, in a layer of its own",
        "files": "/workspace and /home/user on volumes of this workspace",
        "network": "own loopback only" if spec.network.mode == "none" else "a bridge without host, containers and private addresses",
    }
    if options.user == "root":
        found["user"] = "root was asked for: few capabilities, inside the same walls"
    return found | observed_walls(seen, "the engine's profile and our deny list")


def remove_container(host: str | None, name: str) -> None:
    """Removes a container and waits until it is gone, whoever removes it; blocking, idempotent."""
    api = engine.client(host).api
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    while True:
        try:
            with engine.mapped(host):
                api.remove_container(name, force=True, v=False)
        except WorkspaceNotFound:
            return
        except BackendError:  # Podman, where the container ends in the same moment
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)
        except WorkspaceExists:  # its removal is under way already
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def remember(state: Path, workspace_id: str, spec: WorkspaceSpec, token: str | None) -> None:
    """What this machine knows about a workspace: the token of its link, its last use, a changed spec."""
    folder = state / workspace_id
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f"state.json.{secrets.token_hex(4)}"
        temporary.touch(mode=0o600)
        temporary.write_text(json.dumps({"token": token, "used_at": time.time(), "spec": spec.as_json()}))
        temporary.replace(folder / "state.json")
    except OSError as error:
        raise BackendError(f"the state directory {str(folder)!r} cannot be written: {error}; set WORKSPACE_HOME") from error


def recall(state: Path, workspace_id: str) -> dict[str, Any]:
    """What `remember` stored; empty where this machine knows nothing."""
    try:
        value: dict[str, Any] = json.loads((state / workspace_id / "state.json").read_text())
    except (OSError, ValueError):
        return {}
    return value

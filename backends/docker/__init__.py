"""Sandboxes in containers, on a Docker engine or Podman's Docker-compatible service."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import getpass
import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from workspace.backend import Backend, Capabilities, Finding, ImageSource, SandboxRecord, is_over
from workspace.errors import BackendUnavailable, NotSupported, StartFailed, WorkspaceError, WorkspaceExists, WorkspaceNotFound, printable
from workspace.settings import state_home
from workspace.spec import WorkspaceSpec

from . import build, engine, images
from .box import Box, hidden_name
from .images import LABEL
from .options import DockerOptions, check
from .sandbox import DockerSandbox, recall, remember, remove_container

YOUNG_S = 60.0
STARTING_S = 15.0
ENDED = frozenset({"exited", "dead", "stopped"})


def owner() -> str:
    """Who our labels say a workspace belongs to."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):
        return f"{os.getuid()}@{socket.gethostname()}"


class DockerBackend(Backend):
    """`Workspace.create("docker", image=…)`."""

    name = "docker"
    option_names = frozenset(DockerOptions.model_fields)

    def __init__(self) -> None:
        self._state = state_home() / "docker"
        self._host = engine.address()

    async def capabilities(self) -> Capabilities:
        hard = ("memory_bytes", "cpus", "pids", "open_files", "file_bytes", "tmp_bytes", "shm_bytes")
        inodes = "none" if await engine.call(self._host, engine.is_podman, self._host) else "hard"
        limits: dict[str, Any] = {**dict.fromkeys(hard, "hard"), "disk_bytes": "none", "tmp_inodes": inodes}
        return Capabilities(True, limits, ("none", "open"), pause=True, checkpoint=True, root_user=True)

    async def probe(self) -> builtins.list[Finding]:
        try:
            found = await engine.call(self._host, engine.name, self._host)
        except WorkspaceError as error:
            return [Finding("engine", False, "does not answer", str(error))]
        return [Finding("engine", True, found), await self._runtime()]

    async def _runtime(self) -> Finding:
        info = await engine.call(self._host, engine.client(self._host).api.info)
        names = ", ".join(sorted(info.get("Runtimes") or {}))
        return Finding("runtimes", True, names or "the engine's own", needed=False)

    # Making

    async def create(self, spec: WorkspaceSpec) -> DockerSandbox:
        options = self._options(spec)
        check(spec.resources)
        if spec.isolation == "none":
            raise NotSupported("the docker backend always isolates; isolation='none' is for local")
        box = await engine.call(options.docker_host, self._box, f"ws-{secrets.token_hex(16)}", spec, options)
        making = asyncio.ensure_future(engine.call(options.docker_host, self._create, box))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            await asyncio.wait([making])
            if making.exception() is None:
                await making.result().destroy()
            raise

    def _options(self, spec: WorkspaceSpec) -> DockerOptions:
        options = DockerOptions.parse(spec.options)
        return options if options.docker_host else options.model_copy(update={"docker_host": self._host})

    def _box(self, workspace_id: str, spec: WorkspaceSpec, options: DockerOptions) -> Box:
        """The token stays the same for a workspace's life, so that two who start it at once do not lock each other out."""
        prepared = images.prepare(options.docker_host, options.image, self._state)
        shares = prepared.shares_files
        link = self._state / "links" / hidden_name(workspace_id) if shares else None
        secret = (secrets.randbits(64), secrets.randbits(64))
        token = (recall(self._state, workspace_id).get("token") or secrets.token_hex(16)) if shares else None
        return Box(workspace_id, spec, options, prepared, owner(), link, secret, token)

    def _create(self, box: Box) -> DockerSandbox:
        sandbox = DockerSandbox(box, self._state, owned=True)
        try:
            self._refuse_taken_name(box)
            for volume in box.volumes():
                engine.client(box.options.docker_host).api.create_volume(volume, labels=box.labels())
            self._start(sandbox, box)
        except BaseException as error:
            sandbox.remove()
            if isinstance(error, OSError) and not isinstance(error, WorkspaceError):
                raise StartFailed(f"the container cannot be started: {error}") from error
            raise
        return sandbox

    def _refuse_taken_name(self, box: Box) -> None:
        if box.spec.name is None:
            return
        taken = self._volumes({f"{LABEL}.name": box.spec.name})
        if taken:
            other = taken[0]["Labels"][f"{LABEL}.id"]
            raise WorkspaceExists(17, f"there is a workspace named {box.spec.name!r} already ({other}); connect to it, or kill it first")

    def _start(self, sandbox: DockerSandbox, box: Box) -> None:
        remember(self._state, box.id, box.spec, box.token)
        if box.link_dir is not None:
            box.link_dir.mkdir(mode=0o777, parents=True, exist_ok=True)
            box.link_dir.chmod(0o777)  # below a directory of ours that is 0700; the guest takes it over
            with contextlib.suppress(FileNotFoundError):
                (box.link_dir / "sock").unlink()
        sandbox.start()

    # Images

    async def pull_image(self, image: str, progress: Callable[[str], None]) -> None:
        """Pulls an image, with credentials from Docker's own configuration."""
        await engine.call(self._host, images.pull, self._host, image, progress)

    async def build_image(self, tag: str, source: ImageSource, progress: Callable[[str], None]) -> str:
        """Builds an image from a directory with a Dockerfile, or from a base and packages; its id."""
        if source.folder is not None:
            return await engine.call(self._host, build.from_folder, self._host, tag, source.folder, source.dockerfile, progress)
        text = build.dockerfile(source.base or "", list(source.packages), list(source.pip))
        return await engine.call(self._host, build.from_text, self._host, tag, text, progress)

    # Finding

    def _volumes(self, labels: dict[str, str]) -> builtins.list[dict[str, Any]]:
        wanted = [f"{LABEL}=workspace", *(f"{key}={value}" for key, value in labels.items())]
        with engine.mapped(self._host):
            found = engine.client(self._host).api.volumes(filters={"label": wanted}).get("Volumes") or []
        # Podman takes several labels as "any of them", so they are compared here once more.
        homes = [volume for volume in found if volume["Name"].endswith("-home")]
        return [volume for volume in homes if labels.items() <= (volume.get("Labels") or {}).items()]

    def _find(self, key: str) -> dict[str, Any]:
        for label in (f"{LABEL}.id", f"{LABEL}.name"):
            found = self._volumes({label: key}) if key else []
            if found:
                return found[0]
        raise WorkspaceNotFound(f"there is no docker workspace {printable(key)!r}; `workspace list` shows those there are")

    def _spec(self, volume: dict[str, Any]) -> WorkspaceSpec:
        known = recall(self._state, volume["Labels"][f"{LABEL}.id"])
        return WorkspaceSpec.model_validate(known.get("spec") or json.loads(volume["Labels"][f"{LABEL}.spec"]))

    async def attach(self, key: str) -> DockerSandbox:
        return await engine.call(self._host, self._attach, key)

    def _attach(self, key: str) -> DockerSandbox:
        volume = self._find(key)
        workspace_id, spec = volume["Labels"][f"{LABEL}.id"], self._spec(volume)
        options = self._options(spec)
        box = self._box(workspace_id, spec, options)
        if self._running(box):
            if box.link_dir is not None and not recall(self._state, workspace_id):
                raise BackendUnavailable(
                    f"workspace {workspace_id} was started from another machine or state directory; join it from there"
                )
            return DockerSandbox(box, self._state, owned=False)
        sandbox = DockerSandbox(box, self._state, owned=True)
        try:
            self._start(sandbox, box)
        except WorkspaceExists:  # somebody else was faster, or removes the last one still
            time.sleep(0.01)
            return self._attach(key)
        return sandbox

    def _running(self, box: Box) -> bool:
        """Whether its container runs; one that has ended is removed, one that somebody is starting is waited for."""
        api = engine.client(box.options.docker_host).api
        deadline = time.monotonic() + STARTING_S
        while True:
            try:
                with engine.mapped(box.options.docker_host):
                    state = api.inspect_container(box.name)["State"]
            except WorkspaceNotFound:
                return False
            if state["Running"]:
                return True
            if state.get("Status") in ENDED or time.monotonic() > deadline:
                remove_container(box.options.docker_host, box.name)
                return False
            time.sleep(0.02)

    async def list(self) -> builtins.list[SandboxRecord]:
        return await engine.call(self._host, self._list)

    def _list(self) -> builtins.list[SandboxRecord]:
        api = engine.client(self._host).api
        with engine.mapped(self._host):
            running = {entry["Labels"].get(f"{LABEL}.id") for entry in api.containers(filters={"label": f"{LABEL}=workspace"})}
        return [self._record(volume, running) for volume in self._volumes({})]

    def _record(self, volume: dict[str, Any], running: set[str | None]) -> SandboxRecord:
        workspace_id, spec = volume["Labels"][f"{LABEL}.id"], self._spec(volume)
        created = _timestamp(volume.get("CreatedAt"))
        used = float(recall(self._state, workspace_id).get("used_at") or created)
        expires = used + spec.ttl_s if spec.ttl_s is not None else None
        return SandboxRecord(workspace_id, "docker", spec, workspace_id in running, created, used, expires)

    # Removing

    async def remove(self, key: str) -> None:
        await engine.call(self._host, self._remove, key)

    def _remove(self, key: str) -> None:
        volume = self._find(key)
        spec = self._spec(volume)
        self._forget(volume["Labels"][f"{LABEL}.id"], spec)

    def _forget(self, workspace_id: str, spec: WorkspaceSpec) -> None:
        nothing = images.Prepared("", "", (), "", False)
        box = Box(workspace_id, spec, self._options(spec), nothing, owner(), None, (0, 0), None)
        DockerSandbox(box, self._state, owned=False).remove()

    async def prune(self, kept: bool = False) -> builtins.list[str]:
        return await engine.call(self._host, self._prune, kept)

    def _prune(self, kept: bool) -> builtins.list[str]:
        """Only what carries our labels and this owner's."""
        mine = {volume["Labels"][f"{LABEL}.id"] for volume in self._volumes({f"{LABEL}.owner": owner()})}
        removed = []
        for record in self._list():
            young = time.time() - record.created_at < YOUNG_S and not recall(self._state, record.id)
            if record.id in mine and not record.running and not young and is_over(record, kept):
                self._forget(record.id, record.spec)
                removed.append(record.id)
        self._prune_helpers()
        return removed

    def _prune_helpers(self) -> None:
        """Throw-away containers and half-filled volumes of an interrupted preparation."""
        api = engine.client(self._host).api
        with engine.mapped(self._host):
            for entry in api.containers(all=True, filters={"label": f"{LABEL}=prepare"}):
                if time.time() - entry["Created"] > YOUNG_S:
                    api.remove_container(entry["Id"], force=True)


def _timestamp(text: Any) -> float:
    try:
        return (
            datetime.fromisoformat(str(text)[:19] + "+00:00").timestamp()
            if str(text).endswith("Z")
            else datetime.fromisoformat(str(text)).timestamp()
        )
    except ValueError:
        return 0.0

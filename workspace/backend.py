"""What an environment has to provide. Everything else is written once, above the stream."""

from __future__ import annotations

import builtins
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from workspace.spec import WorkspaceSpec

Enforcement = Literal["hard", "per_process", "none"]


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do on this host, as it was found by trying. The contract tests hold it equal to what is seen."""

    isolation: bool
    """Code cannot reach the host."""
    limits: Mapping[str, Enforcement] = field(default_factory=dict)
    """Resource → how it is enforced: `hard` (all processes together), `per_process`, `none`."""
    network: tuple[str, ...] = ("none",)
    pause: bool = False
    checkpoint: bool = False
    detached: bool = True
    root_user: bool = False


@dataclass(frozen=True)
class Finding:
    """One thing that `doctor` looked at."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    needed: bool = True


@dataclass(frozen=True)
class SandboxRecord:
    """A workspace as its backend remembers it, running or not."""

    id: str
    backend: str
    spec: WorkspaceSpec
    running: bool
    created_at: float
    last_used_at: float
    expires_at: float | None


def is_over(record: SandboxRecord, kept: bool) -> bool:
    """Whether `prune` may take it, given that nobody holds it: an orphan, or past its time; named ones only with `kept`."""
    if not record.spec.persistent:
        return True
    expired = record.expires_at is not None and record.expires_at < time.time()
    return expired and (kept or not record.spec.kept)


@dataclass(frozen=True)
class SandboxInfo:
    """Where a sandbox runs and what holds it."""

    environment: str
    """In words: `bubblewrap 0.11 on Linux 6.18`."""
    walls: Mapping[str, str]
    """Wall in force → what it is exactly. Each has a test."""
    limits: Mapping[str, str]
    """Resource → its value and how it is enforced."""
    link: str
    extra: Mapping[str, str] = field(default_factory=dict)


def observed_walls(seen: Mapping[str, object], seccomp: str) -> dict[str, str]:
    """Walls that the guest found around itself; `seccomp` says which filter is meant."""
    found = {}
    if seen.get("capabilities") == 0 and seen.get("bounding") == 0:
        found["capabilities"] = "none"
    if seen.get("no_new_privs") is True:
        found["no_new_privs"] = "set"
    if seen.get("seccomp") is True:
        found["seccomp"] = seccomp
    if seen.get("landlock"):
        found["landlock"] = f"ABI {seen['landlock']}"
    if seen.get("dumpable") is False and seen.get("pid") == 1:
        found["guest"] = "process 1, not dumpable"
    return found


class Sandbox(ABC):
    """One sandbox with a guest in it. Not bound to an event loop."""

    id: str
    backend: str
    spec: WorkspaceSpec
    owned: bool
    """Whether this process keeps it alive."""
    greeting: dict[str, Any] | None = None
    """What the guest wants to hear before it answers, where others could reach it, too."""

    @abstractmethod
    async def dial(self) -> socket.socket:
        """A new connected, non-blocking stream socket to the guest; raises `WorkspaceGone`."""

    @abstractmethod
    async def alive(self) -> bool:
        """Whether the sandbox runs now, asked of its environment."""

    @abstractmethod
    async def why_gone(self) -> tuple[str, str]:
        """After the link was lost: (reason, message) for `WorkspaceGone`."""

    @abstractmethod
    async def stop(self) -> None:
        """Ends all processes and waits until they are gone; the files stay. Idempotent."""

    @abstractmethod
    async def destroy(self) -> None:
        """Ends all processes and removes everything. Idempotent."""

    @abstractmethod
    def describe(self, walls: Mapping[str, object]) -> SandboxInfo:
        """Where it runs; `walls` is what the guest observed about itself."""

    @abstractmethod
    async def touch(self, spec: WorkspaceSpec | None = None) -> None:
        """Notes that the workspace is used now, or that its spec has changed."""

    def memory_kills(self) -> int:
        """How many processes the kernel has killed because of the memory limit; for telling `OutOfMemory`."""
        return 0


class Backend(ABC):
    """One kind of environment."""

    name: str
    option_names: frozenset[str] = frozenset()
    """What its `options` may hold; others in a profile are other backends' and left out."""

    @abstractmethod
    async def capabilities(self) -> Capabilities:
        """What it can do here."""

    @abstractmethod
    async def probe(self) -> builtins.list[Finding]:
        """What works here and, for each no, why and what to do."""

    @abstractmethod
    async def create(self, spec: WorkspaceSpec) -> Sandbox:
        """Starts a new sandbox. Cancelled or failed, nothing of it stays."""

    @abstractmethod
    async def attach(self, key: str) -> Sandbox:
        """Takes up a workspace by id or name: joins a running sandbox, else starts one on its files."""

    @abstractmethod
    async def list(self) -> builtins.list[SandboxRecord]:
        """All workspaces of this backend that this user may see."""

    @abstractmethod
    async def remove(self, key: str) -> None:
        """Ends and removes a workspace without attaching to it."""

    @abstractmethod
    async def prune(self, kept: bool = False) -> builtins.list[str]:
        """Reclaims what nobody holds: orphans and expired ones. `kept` takes expired named ones too. Returns their ids."""


@dataclass(frozen=True)
class ImageSource:
    """What an image is built from: a directory with a Dockerfile, or a base image and packages."""

    folder: Path | None = None
    dockerfile: str | None = None
    base: str | None = None
    packages: tuple[str, ...] = ()
    """Packages of the base's distribution."""
    pip: tuple[str, ...] = ()
    """Python packages."""


@runtime_checkable
class Imaging(Protocol):
    """A backend that has images."""

    async def pull_image(self, image: str, progress: Callable[[str], None]) -> None: ...

    async def build_image(self, tag: str, source: ImageSource, progress: Callable[[str], None]) -> str: ...


@runtime_checkable
class Pausing(Protocol):
    """A sandbox whose processes can be frozen and thawed."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

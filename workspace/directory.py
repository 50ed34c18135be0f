"""Finding workspaces across backends."""

from __future__ import annotations

from workspace import registry, settings
from workspace.backend import Backend, SandboxRecord
from workspace.errors import BackendNotFound, BackendUnavailable, WorkspaceNotFound, printable


def _backends(name: str | None) -> list[Backend]:
    if name is not None:
        return [registry.load(name)]
    found = []
    for each in registry.names():
        try:
            found.append(registry.load(each))
        except BackendNotFound:
            continue  # its extra is not installed, so it has no workspaces of ours
    return found


async def records(name: str | None = None) -> list[SandboxRecord]:
    """Every workspace; a backend that does not answer is left out unless it was asked for by name."""
    found: list[SandboxRecord] = []
    for backend in _backends(name):
        try:
            found.extend(await backend.list())
        except BackendUnavailable:
            if name is not None:
                raise
    return found


async def find(key: str, name: str | None = None, profile: str | None = None) -> Backend:
    """The backend that has the workspace `key` (an id or a name); raises `WorkspaceNotFound`."""
    if name is None and profile is not None:
        name = settings.load(profile).backend
    for backend in _backends(name):
        try:
            known = await backend.list()
        except BackendUnavailable:
            if name is not None:
                raise
            continue
        if any(key in (record.id, record.spec.name) for record in known):
            return backend
    where = f"on backend {name!r}" if name else f"on any backend ({', '.join(registry.names())})"
    raise WorkspaceNotFound(f"there is no workspace {printable(key)!r} {where}; `workspace list` shows those there are")

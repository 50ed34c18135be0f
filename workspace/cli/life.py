"""`workspace create`, `list`, `info`, `kill`, `prune`."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Any

import typer

from workspace import SandboxRecord, Workspace, WorkspaceInfo, registry
from workspace.cli import options
from workspace.cli.console import print_json, print_table
from workspace.errors import BackendNotFound, BackendUnavailable, WorkspaceNotFound, printable

Id = Annotated[str, typer.Argument(metavar="ID", help="Id or name of the workspace.")]


def create(
    backend: options.Backend = None,
    profile: options.Profile = None,
    name: Annotated[str | None, typer.Option("--name", "-n", help="A name; its files stay until they are killed.")] = None,
    image: options.Image = None,
    env: options.Env = None,
    ttl: Annotated[float | None, typer.Option("--ttl", help="Seconds after the last use at which it ends (default 24 h).")] = None,
    memory: options.Memory = None,
    cpus: options.Cpus = None,
    pids: options.Pids = None,
    disk: options.Disk = None,
    network: options.Network = None,
    isolation: options.Isolation = None,
    as_json: options.Json = False,
) -> None:
    """Start a workspace that runs on by itself, and print its id."""
    limits = options.resources(memory, cpus, pids, disk)
    given: dict[str, Any] = {"image": image} if image else {}
    if ttl is not None:
        given["ttl_s"] = ttl
    if env:
        given["env"] = options.parse_env(env)
    ws = Workspace.create(
        backend, profile=profile, name=name, resources=limits, network=network, isolation=isolation, detached=True, **given
    )
    if as_json:
        print_json({"id": ws.id, "name": ws.name, "backend": ws.backend})
    else:
        typer.echo(ws.id)
    ws.close()


def _left(record: SandboxRecord) -> str:
    if record.expires_at is None:
        return "never"
    left = record.expires_at - time.time()
    return f"{left / 3600:.1f} h" if left > 0 else "over"


def list_all(backend: options.Backend = None, as_json: options.Json = False) -> None:
    """List the workspaces there are."""
    records = Workspace.list(backend=backend)
    if as_json:
        print_json([describe(record) for record in records])
        return
    rows = [
        (record.id, record.spec.name or "-", record.backend, "running" if record.running else "stopped", _left(record))
        for record in records
    ]
    print_table(("ID", "NAME", "BACKEND", "STATE", "EXPIRES IN"), rows)


def describe(record: SandboxRecord) -> dict[str, Any]:
    """A record as JSON has it."""
    return {
        "id": record.id,
        "name": record.spec.name,
        "backend": record.backend,
        "running": record.running,
        "created_at": record.created_at,
        "last_used_at": record.last_used_at,
        "expires_at": record.expires_at,
        "metadata": record.spec.metadata,
    }


def info(workspace_id: Id, backend: options.Backend = None, as_json: options.Json = False) -> None:
    """Show where a workspace runs, its walls and its limits."""
    ws = Workspace.connect(workspace_id, backend=backend)
    try:
        found, used = ws.info(), ws.metrics()
    finally:
        ws.close()
    if as_json:
        print_json({**facts(found), "metrics": used.__dict__, "spec": found.spec.model_dump(mode="json")})
        return
    print_table(("", ""), [*rows(found), ("processes", str(used.processes)), ("memory now", str(used.memory_bytes))])


def facts(found: WorkspaceInfo) -> dict[str, Any]:
    """What `info` tells, as JSON."""
    return {
        "id": found.id,
        "name": found.name,
        "backend": found.backend,
        "environment": found.sandbox.environment,
        "walls": dict(found.walls),
        "limits": dict(found.limits),
        "link": found.sandbox.link,
        "guest_python": found.guest_python,
    }


def rows(found: WorkspaceInfo) -> list[tuple[str, str]]:
    """What `info` tells, as a table."""
    head = [("id", found.id), ("name", found.name or "-"), ("backend", found.backend), ("environment", found.sandbox.environment)]
    walls = [(f"wall: {name}", value) for name, value in found.walls.items()]
    return head + walls + [(f"limit: {name}", value) for name, value in found.limits.items()]


def kill(workspace_ids: Annotated[list[str], typer.Argument(metavar="ID…")], backend: options.Backend = None) -> None:
    """End workspaces and remove their files. One that is not there does not save the others; then the exit code is 125."""
    missing = None
    for key in workspace_ids:
        try:
            kill_one(key, backend)
        except WorkspaceNotFound as error:
            missing = error
    if missing is not None:
        raise missing


def kill_one(key: str, backend: str | None) -> None:
    """Ends a running sandbox through its guest; files without a sandbox are removed without starting one."""
    record = next((one for one in Workspace.list(backend=backend) if key in (one.id, one.spec.name)), None)
    if record is None:
        raise WorkspaceNotFound(f"there is no workspace {printable(key)!r}; `workspace list` shows those there are")
    if record.running:
        Workspace.connect(record.id, backend=record.backend).kill()
    else:
        asyncio.run(registry.load(record.backend).remove(record.id))


def prune(
    kept: Annotated[bool, typer.Option("--kept", help="Remove named workspaces past their time, too.")] = False,
    backend: options.Backend = None,
    as_json: options.Json = False,
) -> None:
    """Remove what nobody holds any more: orphans of ended processes and workspaces whose time is over."""
    removed: list[str] = []
    for name in [backend] if backend else registry.names():
        try:
            removed += asyncio.run(registry.load(name).prune(kept))
        except (BackendNotFound, BackendUnavailable):
            if backend:
                raise
    if as_json:
        print_json(removed)
    else:
        print_table(("REMOVED",), [(one,) for one in removed])

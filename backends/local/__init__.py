"""Sandboxes on this machine, made by bubblewrap."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import os
import shutil
import time
from pathlib import Path

from workspace.backend import Backend, Capabilities, Finding, SandboxRecord, is_over
from workspace.errors import IsolationUnavailable, StartFailed, WorkspaceError
from workspace.settings import state_home, uid_range
from workspace.spec import WorkspaceSpec

from . import cgroups, disk, probe, uids
from .options import Host, LocalOptions
from .sandbox import LocalSandbox, wait_for_owner
from .store import Entry, Store

YOUNG_S = 60.0
"""A folder without a holder is not reclaimed before it is this old: its owner may be about to lock it."""


class LocalBackend(Backend):
    """`Workspace.create("local")`: a directory of this machine behind namespaces, seccomp and cgroups."""

    name = "local"
    option_names = frozenset(LocalOptions.model_fields)

    def __init__(self) -> None:
        self._store = Store(state_home())
        self._host = Host(uids.parse_range(uid_range()))

    async def capabilities(self) -> Capabilities:
        return self._host.capabilities(await asyncio.to_thread(probe.can_isolate))

    async def probe(self) -> builtins.list[Finding]:
        return await asyncio.to_thread(probe.findings, self._store.home, self._host)

    async def create(self, spec: WorkspaceSpec) -> LocalSandbox:
        LocalOptions.parse(spec.options)
        if spec.isolation == "required":
            await self._require_isolation()
            self._host.check(spec.resources)
        return await _finish(asyncio.ensure_future(asyncio.to_thread(self._create, spec)))

    async def _require_isolation(self) -> None:
        why_not = await asyncio.to_thread(probe.why_not_isolated)
        if why_not:
            raise IsolationUnavailable(f"{why_not} To run without any isolation, ask for isolation='none'.")

    def _create(self, spec: WorkspaceSpec) -> LocalSandbox:
        entry, lock = self._store.add(spec)
        sandbox = LocalSandbox(self._store, entry, spec, self._host)
        try:
            if self._host.disks and spec.isolation == "required":
                disk.create(self._store.home, entry.disk_path, spec.resources.disk_bytes)
            sandbox.start(lock)
        except BaseException as error:
            self._clean(entry)
            if isinstance(error, OSError) and not isinstance(error, WorkspaceError):
                raise StartFailed(f"a local sandbox cannot be started: {error}") from error
            raise
        return sandbox

    def _clean(self, entry: Entry) -> None:
        uid = None
        with contextlib.suppress(LookupError):
            uid = entry.read().get("uid")
        self._store.remove(entry)
        if uid is not None:
            uids.release(uid)

    async def attach(self, key: str) -> LocalSandbox:
        return await _finish(asyncio.ensure_future(asyncio.to_thread(self._attach, key)))

    def _attach(self, key: str) -> LocalSandbox:
        entry = self._store.find(key)
        spec = WorkspaceSpec.model_validate(entry.read()["spec"])
        sandbox = LocalSandbox(self._store, entry, spec, self._host)
        lock = wait_for_owner(entry)
        if lock is not None:
            sandbox.start(lock)
        return sandbox

    async def list(self) -> builtins.list[SandboxRecord]:
        return await asyncio.to_thread(self._list)

    def _list(self) -> builtins.list[SandboxRecord]:
        records = []
        for entry in self._store.all():
            with contextlib.suppress(LookupError, FileNotFoundError):
                records.append(entry.record())
        return records

    async def remove(self, key: str) -> None:
        """Removes a workspace that no process holds; one that is held is removed by asking its guest to stop first."""
        await asyncio.to_thread(self._remove, self._store.find(key))

    def _remove(self, entry: Entry) -> None:
        lock = entry.lock()
        if lock is None:
            raise StartFailed(f"workspace {entry.id} is held by another process; connect to it and kill it")
        try:
            self._clean(entry)
        finally:
            os.close(lock)

    async def prune(self, kept: bool = False) -> builtins.list[str]:
        return await asyncio.to_thread(self._prune, kept)

    def _prune(self, kept: bool) -> builtins.list[str]:
        removed = [entry.id for entry in self._store.all() if self._reclaim(entry, kept)]
        for path in self._store.leftovers():
            shutil.rmtree(path, ignore_errors=True)
        if self._host.hierarchy is not None:
            live = frozenset(entry.id for entry in self._store.all() if entry.held())
            for name in cgroups.stale(self._host.hierarchy, live):
                if self._is_ours(name, removed):
                    cgroups.Cgroup(self._host.hierarchy, name).remove()
        return removed

    def _is_ours(self, name: str, removed: builtins.list[str]) -> bool:
        return name in removed or (self._store.home / "local" / name).exists()

    def _reclaim(self, entry: Entry, kept: bool) -> bool:
        try:
            record = entry.record()
        except (LookupError, FileNotFoundError):
            age = time.time() - _mtime(entry.path)
            record = None
            if age < YOUNG_S:
                return False
        if record is not None and (record.running or not is_over(record, kept)):
            return False
        lock = entry.lock()
        if lock is None:
            return False
        try:
            self._clean(entry)
        finally:
            os.close(lock)
        return True


def _mtime(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


async def _finish(starting: asyncio.Future[LocalSandbox]) -> LocalSandbox:
    """A start that is cancelled half way is finished in the background and taken back; nothing of it stays."""
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        starting.add_done_callback(_take_back)
        raise


def _take_back(starting: asyncio.Future[LocalSandbox]) -> None:
    if starting.cancelled() or starting.exception() is not None:
        return
    sandbox = starting.result()
    if sandbox.owned:
        asyncio.get_running_loop().create_task(sandbox.stop() if sandbox.spec.persistent else sandbox.destroy())

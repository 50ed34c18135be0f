"""Workspaces that outlive the process that made them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from outside import appears, host_processes, new_marker, until, vanishes

from workspace import AsyncWorkspace, WorkspaceNotFound, registry

CREATE = """
import sys
from workspace import Workspace
ws = Workspace.create(sys.argv[1], detached=True, ttl_s=float(sys.argv[3]))
ws.commands.start(["sleep", sys.argv[2]])
print(ws.id)
"""


async def created(backend: str, marker: str, ttl_s: float = 600) -> str:
    """The id of a workspace whose creator has ended."""
    command = [sys.executable, "-c", CREATE, backend, marker, str(ttl_s)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def supervisors() -> list[int]:
    return [
        int(folder.name)
        for folder in Path("/proc").glob("[0-9]*")
        if b"workspace.supervisor" in _read(folder / "cmdline")
        and f"WORKSPACE_HOME={os.environ['WORKSPACE_HOME']}".encode() in _read(folder / "environ")
    ]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


async def test_it_outlives_its_creator_and_serves_others(backend: str) -> None:
    marker = new_marker()
    key = await created(backend, marker)
    assert host_processes(marker)
    ws = await AsyncWorkspace.connect(key)
    assert [entry.argv for entry in await ws.commands.list()] == [("sleep", marker)]
    await ws.close()
    assert host_processes(marker)
    await (await AsyncWorkspace.connect(key)).kill()
    assert await vanishes(marker)
    with pytest.raises(WorkspaceNotFound):
        await AsyncWorkspace.connect(key)
    assert await until(lambda: not supervisors(), 15)


async def test_its_time_to_live_ends_it_and_removes_it(backend: str) -> None:
    marker = new_marker()
    key = await created(backend, marker, 1)
    assert await vanishes(marker, 15)

    async def gone() -> bool:
        return key not in [record.id for record in await AsyncWorkspace.list(backend=backend)]

    for _ in range(100):
        if await gone():
            break
        await asyncio.sleep(0.1)
    assert await gone()


async def test_a_supervisor_that_is_killed_leaves_nothing_running_and_prune_reclaims(backend: str) -> None:
    marker = new_marker()
    key = await created(backend, marker, 2)
    assert await appears(marker)
    for pid in supervisors():
        os.kill(pid, signal.SIGKILL)
    assert await vanishes(marker, 20)
    for _ in range(100):
        if key in await registry.load(backend).prune():
            break
        await asyncio.sleep(0.1)
    assert key not in [record.id for record in await AsyncWorkspace.list(backend=backend)]

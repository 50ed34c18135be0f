"""Detached workspaces: they outlive who made them and end by their own rules."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from outside import appears, new_marker, until, vanishes

from workspace import AsyncWorkspace, WorkspaceNotFound, registry


def supervisors() -> set[int]:
    """Pids of the supervisors that use this test run's own state directory."""
    home, found = f"WORKSPACE_HOME={os.environ['WORKSPACE_HOME']}".encode(), set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            command = Path("/proc", pid, "cmdline").read_bytes()
            if b"workspace.supervisor" in command and home in Path("/proc", pid, "environ").read_bytes().split(b"\0"):
                found.add(int(pid))
        except OSError:
            continue
    return found


def python(code: str) -> str:
    """What another process prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
async def detached(backend: str) -> AsyncIterator[tuple[AsyncWorkspace, int]]:
    """A named detached workspace and the pid of its supervisor."""
    before = supervisors()
    ws = await AsyncWorkspace.create(backend, detached=True, name=f"d-{os.getpid()}")
    (supervisor,) = supervisors() - before
    yield ws, supervisor
    try:
        again = await AsyncWorkspace.connect(ws.id, backend=backend)
    except WorkspaceNotFound:
        return
    await again.kill()
    await ws.close()


async def test_it_outlives_the_process_that_made_it(backend: str) -> None:
    marker = new_marker()
    code = f"""
import os, signal
from workspace import Workspace
ws = Workspace.create({backend!r}, detached=True)
ws.commands.start("sleep {marker}")
ws.files.write("f", "mine")
print(ws.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)"""
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    ws = await AsyncWorkspace.connect(done.stdout.strip(), backend=backend)
    try:
        assert await appears(marker)
        assert await ws.files.read("f") == b"mine"
        assert not (await ws.info()).owned
    finally:
        await ws.kill()
    assert await vanishes(marker)


async def test_two_processes_use_it_at_once(detached: tuple[AsyncWorkspace, int], backend: str) -> None:
    ws, _ = detached
    code = f"""
from workspace import Workspace
with Workspace.connect({ws.id!r}, backend={backend!r}) as ws:
    ws.files.append("log", "theirs\\n")
    print(ws.run("cat log").stdout, end="")"""
    await ws.files.append("log", "ours\n")
    mine = asyncio.ensure_future(ws.run("sleep 1; echo still"))
    assert await asyncio.to_thread(python, code) == "ours\ntheirs"
    assert (await mine).stdout == "still\n"
    assert await ws.files.read("log") == b"ours\ntheirs\n"


async def test_its_time_to_live_ends_it_and_removes_it(backend: str) -> None:
    before, marker = supervisors(), new_marker()
    ws = await AsyncWorkspace.create(backend, detached=True, ttl_s=1.0)
    await ws.commands.start(f"sleep {marker}")
    assert await appears(marker)
    await ws.close()
    assert await vanishes(marker, 20)
    assert await until(lambda: supervisors() <= before, 20)
    assert ws.id not in [record.id for record in await AsyncWorkspace.list(backend=backend)]


async def test_the_time_to_live_of_a_named_one_keeps_its_files(backend: str) -> None:
    before = supervisors()
    ws = await AsyncWorkspace.create(backend, detached=True, ttl_s=1.0, name=f"ttl-{os.getpid()}")
    await ws.files.write("f", "kept")
    await ws.close()
    assert await until(lambda: supervisors() <= before, 20)
    again = await AsyncWorkspace.connect(ws.id, backend=backend)
    try:
        assert await again.files.read("f") == b"kept"
    finally:
        await again.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_a_supervisor_told_to_stop_keeps_the_files_of_a_named_one(
    detached: tuple[AsyncWorkspace, int], backend: str, number: signal.Signals
) -> None:
    ws, supervisor = detached
    marker = new_marker()
    await ws.files.write("f", "kept")
    await ws.commands.start(f"sleep {marker}")
    assert await appears(marker)
    os.kill(supervisor, number)
    assert await vanishes(marker, 15)
    assert await until(lambda: supervisor not in supervisors(), 15)
    again = await AsyncWorkspace.connect(ws.id, backend=backend)
    assert await again.files.read("f") == b"kept"
    await again.kill()


async def test_a_killed_supervisor_leaves_nothing_running_and_prune_reclaims(backend: str) -> None:
    before, marker = supervisors(), new_marker()
    ws = await AsyncWorkspace.create(backend, detached=True, ttl_s=3.0)
    (supervisor,) = supervisors() - before
    await ws.commands.start(f"sleep {marker}")
    assert await appears(marker)
    os.kill(supervisor, signal.SIGKILL)
    assert await vanishes(marker, 15)
    await ws.close()
    await asyncio.sleep(4)
    await registry.load(backend).prune()
    assert ws.id not in [record.id for record in await AsyncWorkspace.list(backend=backend)]


async def test_a_start_that_is_refused_is_the_same_error_as_without_detached(backend: str) -> None:
    name = f"taken-{os.getpid()}"
    ws = await AsyncWorkspace.create(backend, name=name)
    try:
        before = supervisors()
        with pytest.raises(FileExistsError, match=name):
            await AsyncWorkspace.create(backend, name=name, detached=True)
        assert await until(lambda: supervisors() <= before)
    finally:
        await ws.kill()

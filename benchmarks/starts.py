"""Starts of local sandboxes against one bare `bwrap … true`, and what many of them cost."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from workspace.backends.local import jail

from benchmarks.measure import Result, at_most
from workspace import AsyncWorkspace


async def bare_bwrap() -> None:
    found = jail.bwrap()
    assert found is not None
    command = [found[0], "--unshare-all", "--die-with-parent", "--ro-bind", "/usr", "/usr"]
    for name in jail.SYSTEM_DIRS:
        if os.path.exists("/" + name):
            command += ["--ro-bind", "/" + name, "/" + name]
    command += ["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--", "/usr/bin/true"]
    process = await asyncio.create_subprocess_exec(*command)
    assert await process.wait() == 0


async def first_result() -> None:
    async with AsyncWorkspace.create("local") as ws:
        await ws.run(["true"])


async def to_first_result() -> None:
    global _ws
    _ws = await AsyncWorkspace.create("local")
    await _ws.run(["true"])


_ws: AsyncWorkspace


async def run() -> list[Result]:
    times, floors = [], []
    for _ in range(20):
        begun = time.perf_counter()
        await to_first_result()
        times.append(time.perf_counter() - begun)
        await _ws.kill()
        begun = time.perf_counter()
        await bare_bwrap()
        floors.append(time.perf_counter() - begun)
    ours, floor = sorted(times)[10], sorted(floors)[10]
    results = [
        at_most("create → first result, against bwrap … true", "local", ours, floor, 5),
        Result("create → first result, absolute", "local", ours * 1000, 60, "ms", ours / 0.06, "≤ 60 ms", ours <= 0.06),
    ]
    return [*results, *await _fifty()]


async def _fifty() -> list[Result]:
    begun = time.perf_counter()
    many = await asyncio.gather(*(AsyncWorkspace.create("local") for _ in range(50)))
    await asyncio.gather(*(ws.run(["true"]) for ws in many))
    took = time.perf_counter() - begun
    before = _switches()
    pss = _pss() / 50
    await asyncio.sleep(3)
    woken = _switches() - before
    await asyncio.gather(*(ws.kill() for ws in many))
    return [
        Result("50 sandboxes at once, all answering", "local", took * 1000, 2000, "ms", took / 2, "≤ 2 s", took <= 2),
        Result("memory of an idle sandbox (PSS)", "local", pss / 2**20, 12, "MiB", pss / 2**20 / 12, "≤ 12 MiB", pss <= 12 * 2**20),
        Result("wake-ups of 50 idle sandboxes in 3 s", "local", woken, 0, "", woken, "0", woken == 0),
    ]


def _ours() -> list[Path]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"workspace_guest" in command:
            found.append(folder)
    return found


def _pss() -> int:
    total = 0
    for folder in _ours():
        for line in (folder / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def _switches() -> int:
    total = 0
    for folder in _ours():
        for line in (folder / "status").read_text().splitlines():
            if "ctxt_switches" in line:
                total += int(line.split()[1])
    return total

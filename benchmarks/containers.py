"""Starts and ends of containers against the engine's own command line."""

from __future__ import annotations

import asyncio
import os
import time

from benchmarks.measure import Result, at_most
from workspace import AsyncWorkspace


async def _engine(*arguments: str) -> float:
    begun = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        "docker", *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0
    return time.perf_counter() - begun


async def run(rounds: int = 10) -> list[Result]:
    image = os.environ.get("WORKSPACE_IMAGE", "workspace-test:latest")
    starts, ends, floors, removals = [], [], [], []
    await (await AsyncWorkspace.create("docker")).kill()
    for _ in range(rounds):
        begun = time.perf_counter()
        ws = await AsyncWorkspace.create("docker")
        await ws.run(["true"])
        starts.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        await ws.kill()
        ends.append(time.perf_counter() - begun)
        floors.append(await _engine("run", "--rm", "--network", "none", image, "true"))
        await _engine("run", "-d", "--name", "bench-floor", "--network", "none", image, "sleep", "60")
        removals.append(await _engine("rm", "-f", "bench-floor"))
    middle = rounds // 2
    return [
        at_most("create → first result, against docker run --rm IMAGE true", "docker", sorted(starts)[middle], sorted(floors)[middle], 1.3),
        at_most("kill, against docker rm -f", "docker", sorted(ends)[middle], sorted(removals)[middle], 1.0),
    ]

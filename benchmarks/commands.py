"""Commands against the host's asyncio subprocesses."""

from __future__ import annotations

import asyncio

from benchmarks.measure import Result, at_most, side_by_side, speed
from workspace import AsyncWorkspace, Workspace

PIPE = asyncio.subprocess.PIPE
STREAM = "head -c 100000000 /dev/zero"


async def host_true() -> None:
    process = await asyncio.create_subprocess_exec("true", stdout=PIPE, stderr=PIPE, stdin=asyncio.subprocess.DEVNULL)
    await process.communicate()


async def host_stream() -> None:
    process = await asyncio.create_subprocess_shell(STREAM, stdout=PIPE)
    assert process.stdout is not None
    total = 0
    while data := await process.stdout.read(1 << 20):
        total += len(data)
    await process.wait()
    assert total == 100_000_000


async def run(backend: str, limits: dict[str, float]) -> list[Result]:
    results = []
    async with AsyncWorkspace.create(backend) as ws:

        async def true() -> None:
            await ws.run(["true"])

        async def many() -> None:
            await asyncio.gather(*(ws.run(["true"]) for _ in range(32)))

        async def host_many() -> None:
            await asyncio.gather(*(host_true() for _ in range(32)))

        async def stream() -> None:
            total = 0
            async with ws._session.stream("command.run", argv=["bash", "-c", STREAM], env={}, timeout_s=None) as output:
                async for _, data in output:
                    total += len(data)
            assert total == 100_000_000

        async def ping() -> None:
            await ws.ping()

        ours, floor = await side_by_side(true, host_true, 300)
        results.append(at_most('run(["true"]), async, p50', backend, ours, floor, limits["run"]))
        results.append(at_most('32 × run(["true"]) at once', backend, *await side_by_side(many, host_many, 30), limits["many"]))
        results.append(speed("100 MB of stdout, streamed", backend, *await side_by_side(stream, host_stream, 10, 2), limits["stdout"]))
        results.append(at_most("ping, against run on the host", backend, *await side_by_side(ping, host_true, 200), 0.3))
    results.append(await _sync(backend, limits["sync"]))
    return results


async def _sync(backend: str, limit: float) -> Result:
    def blocking() -> Workspace:
        return Workspace.create(backend)

    ws = await asyncio.to_thread(blocking)

    async def host() -> None:
        await host_true()

    def loop() -> list[float]:
        import time

        times = []
        for _ in range(300):
            begun = time.perf_counter()
            ws.run(["true"])
            times.append(time.perf_counter() - begun)
        return sorted(times)

    _, floor = await side_by_side(host, host, 150)
    times = await asyncio.to_thread(loop)
    await asyncio.to_thread(ws.kill)
    return at_most('run(["true"]), blocking face, p50', backend, times[150], floor, limit)

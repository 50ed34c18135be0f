"""Files against the host's own file system."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from benchmarks.measure import Result, at_most, side_by_side, speed
from workspace import AsyncWorkspace

BIG = os.urandom(1 << 20) * 100
SMALL = os.urandom(4096)
COUNT = 300


async def run(backend: str, limits: dict[str, float]) -> list[Result]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        async with AsyncWorkspace.create(backend) as ws:
            return [*await _big(ws, folder, backend), *await _small(ws, folder, backend, limits), await _list(ws, folder, backend)]
    finally:
        shutil.rmtree(folder)


async def _big(ws: AsyncWorkspace, folder: Path, backend: str) -> list[Result]:
    async def write() -> None:
        await ws.files.write("big", BIG)

    async def host_write() -> None:
        (folder / "big").write_bytes(BIG)

    async def read() -> None:
        total = 0
        async for part in ws.files.read_stream("big"):
            total += len(part)
        assert total == len(BIG)

    async def host_read() -> None:
        with open(folder / "big", "rb", buffering=0) as file:
            while file.read(1 << 18):
                pass

    return [
        speed("write one 100 MiB file", backend, *await side_by_side(write, host_write, 8, 1), 0.5),
        speed("read one 100 MiB file", backend, *await side_by_side(read, host_read, 8, 1), 0.5),
    ]


async def _small(ws: AsyncWorkspace, folder: Path, backend: str, limits: dict[str, float]) -> list[Result]:
    (folder / "small").mkdir()
    rounds = iter(range(10_000))

    async def one_by_one() -> None:
        number = next(rounds)
        for index in range(COUNT):
            await ws.files.write(f"small/{number}-{index}", SMALL)
        for index in range(COUNT):
            await ws.files.read(f"small/{number}-{index}")

    async def host_one_by_one() -> None:
        number = next(rounds)
        for index in range(COUNT):
            (folder / "small" / f"{number}-{index}").write_bytes(SMALL)
        for index in range(COUNT):
            (folder / "small" / f"{number}-{index}").read_bytes()

    async def many() -> None:
        number = next(rounds)
        await ws.files.write_many({f"many/{number}-{index}": SMALL for index in range(COUNT)})

    async def host_many() -> None:
        number = next(rounds)
        for index in range(COUNT):
            (folder / "small" / f"m{number}-{index}").write_bytes(SMALL)

    return [
        speed(
            f"{COUNT} files of 4 KiB, written then read, one by one", backend, *await side_by_side(one_by_one, host_one_by_one, 6, 1), 0.1
        ),
        speed(f"write_many of {COUNT} files of 4 KiB", backend, *await side_by_side(many, host_many, 10, 1), limits["write_many"]),
    ]


async def _list(ws: AsyncWorkspace, folder: Path, backend: str) -> Result:
    await ws.run("mkdir ten && cd ten && seq 10000 | xargs touch", check=True)
    (folder / "ten").mkdir()
    for index in range(10_000):
        (folder / "ten" / str(index)).touch()

    async def ours() -> None:
        assert len(await ws.files.list("ten")) == 10_000

    async def host() -> None:
        with os.scandir(folder / "ten") as entries:
            assert len([(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]) == 10_000

    return at_most("list 10,000 entries with stat", backend, *await side_by_side(ours, host, 10), 3)

"""`python -m benchmarks [--backend local] [--json FILE]`: measures and prints the table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from pathlib import Path

from benchmarks import commands, containers, files, starts
from benchmarks.measure import Result

LIMITS = {
    "local": {"run": 1.0, "sync": 1.2, "many": 1.2, "stdout": 0.8, "write_many": 0.5},
    "docker": {"run": 1.2, "sync": 1.4, "many": 1.5, "stdout": 0.6, "write_many": 0.5},
}


async def measure(backend: str) -> list[Result]:
    limits = LIMITS[backend]
    results = [*await commands.run(backend, limits), *await files.run(backend, limits)]
    results += await (starts.run() if backend == "local" else containers.run())
    return results


def table(results: list[Result]) -> str:
    lines = ["| measure | backend | ours | floor | ratio | aim | met |", "|---|---|---|---|---|---|---|"]
    for one in results:
        numbers = f"{one.ours:.2f} {one.unit} | {one.floor:.2f} {one.unit} | {one.ratio:.2f}"
        lines.append(f"| {one.name} | {one.backend} | {numbers} | {one.aim} | {'yes' if one.met else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", action="append", choices=sorted(LIMITS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-state-") as home:
        os.environ["WORKSPACE_HOME"] = home
        os.environ.setdefault("WORKSPACE_IMAGE", "workspace-test:latest")
        results = [row for backend in arguments.backend or ["local"] for row in asyncio.run(measure(backend))]
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores\n")
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps([row.as_dict() for row in results], indent=2))


if __name__ == "__main__":
    main()

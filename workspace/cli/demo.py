"""`workspace demo`: the test suite of a real project, run inside a workspace."""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from workspace import Workspace
from workspace.cli import options
from workspace.cli.console import say
from workspace.cli.run import stream
from workspace.errors import BackendUnavailable
from workspace.settings import state_home

PROJECT = "toolz 1.0.0"
# Wheels alone: nothing of what is fetched runs on the host. Each is pinned by its digest.
PINS = """\
toolz==1.0.0 --hash=sha256:292c8f1c4e7516bf9086f8850935c799a874039c8bcf959d47b600e4c44a6236
pytest==8.3.4 --hash=sha256:50e16d954148559c9a74109af1eaf0c945ba2d8f30f0a3d3335edde19788b6f6
iniconfig==2.3.1 --hash=sha256:9121e2c1fdb355232495be3194c8dfe87ccc2d5dee45947b78e68f499790d7a7
packaging==26.3 --hash=sha256:d7193f7c8e4e93f444fde0262bf90af30e16fa0ad0ad44cb553c87339b23cd1c
pluggy==1.7.0 --hash=sha256:7dd7b0d8832ba3cb632c306926ded123429211b83641b35dc5c41ad2d34f9bec
"""
UNPACK = "mkdir -p site && for wheel in wheels/*.whl; do python3 -m zipfile -e $wheel site || exit 1; done"
TEST = "PYTHONPATH=site python3 -m pytest -p no:cacheprovider --color={color} site/toolz"


def fetch() -> Path:
    """The directory with the wheels, from the package index the first time and from the state directory afterwards."""
    cache = state_home() / "cache" / "demo-toolz-1.0.0"
    if len(list(cache.glob("*.whl"))) == len(PINS.splitlines()):
        return cache
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text(PINS)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        done = subprocess.run(
            [*command, "--require-hashes", "-r", str(pins), "-d", str(cache)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise BackendUnavailable(
            f"the demo needs the source of {PROJECT}, which is neither in {str(cache)!r} nor can it be fetched by pip. "
            f"Connect to a package index once, or put these wheels there: {' '.join(line.split()[0] for line in PINS.splitlines())}. "
            f"pip said: {done.stderr.strip()[-300:]}"
        )
    return cache


def demo(
    backend: options.Backend = None,
    profile: options.Profile = None,
    image: options.Image = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not show the test run itself.")] = False,
) -> None:
    """Run the test suite of a real project (toolz) inside an isolated workspace."""
    wheels = fetch()
    marks = [time.perf_counter()]
    given: dict[str, Any] = {"image": image} if image else {}
    with Workspace.create(backend, profile=profile, **given) as ws:
        marks.append(time.perf_counter())
        ws.files.upload(wheels, "wheels")
        ws.run(UNPACK, check=True)
        marks.append(time.perf_counter())
        command = TEST.format(color="yes" if sys.stdout.isatty() and not quiet else "no")
        result = ws.run(command) if quiet else stream(ws, [command], False)
        marks.append(time.perf_counter())
        info = ws.info()
    start, transfer, run = (later - sooner for sooner, later in itertools.pairwise(marks))
    passed = result.stdout.strip().splitlines()[-1] if result.stdout.strip() else ""
    say(f"\n[bold]{PROJECT}[/bold]: exit code {result.exit_code}" + (f", {passed}" if quiet else ""))
    say(f"ran in   {info.sandbox.environment} (backend {info.backend}, python {info.guest_python})")
    for name, value in info.walls.items():
        say(f"wall     {name}: {value}")
    say(f"took     start {start * 1000:.0f} ms, transfer and unpack {transfer * 1000:.0f} ms, tests {run:.1f} s")
    raise typer.Exit(result.exit_code)

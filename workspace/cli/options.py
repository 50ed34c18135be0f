"""Options that several commands share."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from workspace.errors import InvalidArgument
from workspace.spec import Resources, make_spec

Backend = Annotated[
    str | None, typer.Option("--backend", "-b", help="Where it runs (default: the profile's, WORKSPACE_BACKEND, else local).")
]
Profile = Annotated[str | None, typer.Option("--profile", "-p", help="Profile of workspace.toml or [tool.workspace].")]
Env = Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE for the command; may be given several times.")]
Cwd = Annotated[str | None, typer.Option("--cwd", "-w", help="Directory inside (default /workspace).")]
TimeoutS = Annotated[float | None, typer.Option("--timeout", "-t", help="Seconds after which the command and all it started are killed.")]
Json = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
Memory = Annotated[str | None, typer.Option("--memory", help="Memory limit, for example 512M or 2G.")]
Cpus = Annotated[float | None, typer.Option("--cpus", help="CPU limit, for example 1.5.")]
Pids = Annotated[int | None, typer.Option("--pids", help="Limit of processes and threads.")]
Disk = Annotated[str | None, typer.Option("--disk", help="Disk limit, for example 1G.")]
Image = Annotated[str | None, typer.Option("--image", help="Image, for backends that have images.")]
Isolation = Annotated[str | None, typer.Option("--isolation", help="'none' runs without any wall. Only for code you have read.")]
Network = Annotated[str | None, typer.Option("--network", help="'none' (default) or what the backend offers.")]
Stdin = Annotated[bool, typer.Option("--stdin", "-i", help="Pass this command's standard input on.")]

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """`512M` as bytes (powers of 1024); raises `InvalidArgument`."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise InvalidArgument(f"{text!r} is not a size; write it as 1048576, 512M or 2G")
    return int(float(found.group(1)) * 1024 ** " KMGT".index(found.group(2).upper() or " "))


def parse_env(pairs: list[str] | None) -> dict[str, str]:
    """`NAME=VALUE` pairs; raises `InvalidArgument` for one without `=`."""
    env = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidArgument(f"--env {pair!r} is not NAME=VALUE")
        env[name] = value
    return env


def resources(memory: str | None, cpus: float | None, pids: int | None, disk: str | None) -> Resources | None:
    """The limits given on the command line, None where there are none."""
    given: dict[str, Any] = {"cpus": cpus, "pids": pids}
    given["memory_bytes"] = parse_size(memory) if memory else None
    given["disk_bytes"] = parse_size(disk) if disk else None
    given = {name: value for name, value in given.items() if value is not None}
    return make_spec(resources=given).resources if given else None

"""`workspace run` and `workspace exec`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from workspace import CommandResult, Workspace
from workspace.cli import options
from workspace.cli.console import note, progress, size
from workspace.cli.terminal import Output
from workspace.errors import InvalidArgument

Command = Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")]


def _stdin() -> Iterator[bytes]:
    while data := os.read(sys.stdin.fileno(), 65536):
        yield data


def for_shell(command: list[str]) -> str | list[str]:
    """One word with spaces in it is a line for the shell, several are a program and its arguments."""
    return command[0] if len(command) == 1 and " " in command[0] else command


def stream(ws: Workspace, command: list[str], stdin: bool, **rest: Any) -> CommandResult:
    """Runs a command with its output passed on as it comes. One word with spaces in it is for the shell."""
    if not command:
        raise InvalidArgument("there is no command; write it after --")
    output = Output()
    try:
        return ws.commands.run(for_shell(command), stdin=_stdin() if stdin else None, on_output=output.write, max_output_bytes=4096, **rest)
    finally:
        output.finish()


def run(
    command: Command,
    upload: Annotated[list[Path] | None, typer.Option("--upload", "-u", help="Copy this directory or file in first.")] = None,
    download: Annotated[Path | None, typer.Option("--download", "-d", help="Copy /workspace (or --from) here afterwards.")] = None,
    source: Annotated[str, typer.Option("--from", help="What --download copies.")] = "/workspace",
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Glob of names that are not uploaded.")] = None,
    backend: options.Backend = None,
    profile: options.Profile = None,
    image: options.Image = None,
    env: options.Env = None,
    cwd: options.Cwd = None,
    timeout: options.TimeoutS = None,
    stdin: options.Stdin = False,
    memory: options.Memory = None,
    cpus: options.Cpus = None,
    pids: options.Pids = None,
    disk: options.Disk = None,
    network: options.Network = None,
    isolation: options.Isolation = None,
) -> None:
    """Run a command in a fresh workspace that is removed afterwards. The exit code is the command's."""
    limits = options.resources(memory, cpus, pids, disk)
    given: dict[str, Any] = {"image": image} if image else {}
    with Workspace.create(backend, profile=profile, resources=limits, network=network, isolation=isolation, **given) as ws:
        for path in upload or []:
            with progress(f"upload {path}") as report:
                ws.files.upload(path, ".", exclude=exclude or (), progress=report)
        try:
            result = stream(ws, command, stdin, env=options.parse_env(env), cwd=cwd, timeout_s=timeout)
        finally:
            if download is not None and ws.alive:
                fetch(ws, source, download)
    raise typer.Exit(result.exit_code)


def fetch(ws: Workspace, source: str, target: Path) -> None:
    """Downloads with a bar and tells what was left out."""
    with progress(f"download {source}") as report:
        done = ws.files.download(source, target, progress=report)
    note(f"{done.files} files, {size(done.bytes)} → {target}")
    for name in done.skipped:
        note(f"[yellow]left out:[/yellow] {name!a}")


def execute(
    workspace_id: Annotated[str, typer.Argument(metavar="ID", help="Id or name of the workspace.")],
    command: Command,
    backend: options.Backend = None,
    env: options.Env = None,
    cwd: options.Cwd = None,
    timeout: options.TimeoutS = None,
    stdin: options.Stdin = False,
    background: Annotated[bool, typer.Option("--background", help="Start it, print its pid and come back.")] = False,
) -> None:
    """Run a command in a workspace that exists. The exit code is the command's."""
    ws = Workspace.connect(workspace_id, backend=backend)
    try:
        if background:
            handle = ws.commands.start(for_shell(command), env=options.parse_env(env), cwd=cwd, timeout_s=timeout)
            typer.echo(handle.pid)
            code = 0
        else:
            code = stream(ws, command, stdin, env=options.parse_env(env), cwd=cwd, timeout_s=timeout).exit_code
    finally:
        ws.close()
    raise typer.Exit(code)

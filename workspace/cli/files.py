"""`workspace cp`, `ls`, `cat`."""

from __future__ import annotations

import re
import stat
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from workspace import FileInfo, OutputChunk, Workspace
from workspace.cli import options
from workspace.cli.console import note, print_json, print_table, progress
from workspace.cli.run import fetch
from workspace.cli.terminal import Output
from workspace.errors import InvalidArgument

_REMOTE = re.compile(r"([a-z0-9][a-z0-9._-]*):(.*)", re.DOTALL)


def parse_remote(text: str) -> tuple[str, str] | None:
    """`ID:PATH` as its parts; None for a path of this machine (`./a:b` names a file with a colon)."""
    found = _REMOTE.fullmatch(text)
    return (found.group(1), found.group(2) or ".") if found else None


def cp(
    source: Annotated[str, typer.Argument(help="PATH or ID:PATH")],
    target: Annotated[str, typer.Argument(help="PATH or ID:PATH")],
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Glob of names that are left out of an upload.")] = None,
    backend: options.Backend = None,
) -> None:
    """Copy files or directories into or out of a workspace."""
    there, here = parse_remote(source), parse_remote(target)
    if (there is None) == (here is None):
        raise InvalidArgument("one side has to be ID:PATH and the other a path of this machine")
    key, path = there or here or ("", "")
    ws = Workspace.connect(key, backend=backend)
    try:
        if there:
            fetch(ws, path, Path(target))
        else:
            with progress(f"upload {source}") as report:
                count = ws.files.upload(source, path, exclude=exclude or (), progress=report)
            note(f"{count} entries → {target}")
    finally:
        ws.close()


def _row(entry: FileInfo) -> tuple[str, str, str, str]:
    kinds = {"directory": stat.S_IFDIR, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "device": stat.S_IFCHR}
    mode = stat.filemode(entry.mode | kinds.get(entry.type, stat.S_IFREG))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime_ns / 1e9))
    name = entry.path + (f" -> {entry.target}" if entry.target is not None else "")
    return mode, str(entry.size), when, name


def ls(
    workspace_id: Annotated[str, typer.Argument(metavar="ID", help="Id or name of the workspace.")],
    path: Annotated[str, typer.Argument()] = ".",
    recursive: Annotated[bool, typer.Option("--recursive", "-R")] = False,
    backend: options.Backend = None,
    as_json: options.Json = False,
) -> None:
    """List a directory of a workspace."""
    ws = Workspace.connect(workspace_id, backend=backend)
    try:
        entries = ws.files.list(path, depth=None if recursive else 1)
    finally:
        ws.close()
    if as_json:
        print_json([entry._asdict() for entry in entries])
    else:
        print_table(("MODE", "SIZE", "MODIFIED", "PATH"), [_row(entry) for entry in entries])


def cat(
    workspace_id: Annotated[str, typer.Argument(metavar="ID", help="Id or name of the workspace.")],
    path: Annotated[str, typer.Argument()],
    backend: options.Backend = None,
) -> None:
    """Print a file: its exact bytes in a pipe; on a terminal, control sequences are shown and not obeyed."""
    ws = Workspace.connect(workspace_id, backend=backend)
    output = Output()
    try:
        for part in ws.files.read_stream(path):
            output.write(OutputChunk("stdout", part, ""))
    finally:
        output.finish()
        sys.stdout.flush()
        ws.close()

"""What the command line prints: tables for people, JSON for programs, nothing unasked for in a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from workspace.errors import CommandTimeout, OutOfMemory, WorkspaceError, printable
from workspace.link import Progress as Report

TIMEOUT_CODE, ERROR_CODE, MEMORY_CODE = 124, 125, 137

errors = Console(stderr=True, highlight=False, emoji=False)
out = Console(highlight=False, emoji=False)


def fail(error: WorkspaceError) -> NoReturn:
    """Prints an error and exits with its code."""
    say(f"[red]workspace:[/red] {escape(printable(str(error)))}")
    codes = {CommandTimeout: TIMEOUT_CODE, OutOfMemory: MEMORY_CODE}
    sys.exit(next((code for kind, code in codes.items() if isinstance(error, kind)), ERROR_CODE))


def say(markup: str) -> None:
    """A line for the person at the terminal, on standard error."""
    errors.print(markup, soft_wrap=True)


def note(markup: str) -> None:
    """Like `say`, but only where a person watches."""
    if errors.is_terminal:
        say(markup)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=True, default=str) + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, tab-separated lines in a pipe. Cells are escaped."""
    if not out.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(printable(cell) for cell in row) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(columns):
        width = max((cell_len(printable(row[index])) for row in rows), default=0)
        table.add_column(name, no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print(table, crop=False, soft_wrap=True)


@contextmanager
def progress(what: str) -> Iterator[Report | None]:
    """A bar for a transfer where a person watches; None elsewhere."""
    if not errors.is_terminal:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(what, total=None)

        def report(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield report


def size(count: int) -> str:
    """Bytes for people."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"

"""`workspace doctor`."""

from __future__ import annotations

import asyncio

import typer

from workspace import registry
from workspace.backend import Finding
from workspace.cli import options
from workspace.cli.console import ERROR_CODE, out, print_json, print_table
from workspace.errors import BackendNotFound, BackendUnavailable


def _findings(name: str) -> list[Finding]:
    try:
        return asyncio.run(registry.load(name).probe())
    except (BackendNotFound, BackendUnavailable) as error:
        return [Finding(name, False, "not usable", str(error), needed=False)]


def doctor(backend: options.Backend = None, as_json: options.Json = False) -> None:
    """Say what this machine can do and, for each no, why and what to do. Exit code 125 where a named backend cannot run."""
    found = {name: _findings(name) for name in ([backend] if backend else registry.names())}
    broken = any(finding.needed and not finding.ok for findings in found.values() for finding in findings)
    if as_json:
        print_json({name: [finding.__dict__ for finding in findings] for name, findings in found.items()})
    else:
        _print(found)
    raise typer.Exit(ERROR_CODE if broken else 0)


def _print(found: dict[str, list[Finding]]) -> None:
    for name, findings in found.items():
        out.print(f"[bold]{name}[/bold]")
        rows = [("yes" if finding.ok else "no ", finding.name, finding.detail, finding.remedy) for finding in findings]
        print_table(("", "", "", "WHAT TO DO"), rows)

"""The `workspace` command."""

from __future__ import annotations

import sys

from workspace.cli.app import app
from workspace.cli.console import fail
from workspace.errors import WorkspaceError


def main() -> None:
    """Entry point. Exit codes: the command's own; 124 time limit, 125 our error, 130 Ctrl-C."""
    try:
        app(prog_name="workspace")
    except WorkspaceError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(141)

"""The guest as it is shipped into sandboxes: its sources and what they are called there."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import workspace.guest

GUEST_PACKAGE = "workspace_guest"


@functools.lru_cache(maxsize=1)
def guest_sources() -> dict[str, bytes]:
    """File name → source of every module of the guest."""
    folder = Path(workspace.guest.__file__).parent
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.py"))}


@functools.lru_cache(maxsize=1)
def guest_version() -> str:
    """Changes with any byte of the guest."""
    digest = hashlib.sha256()
    for name, source in guest_sources().items():
        digest.update(name.encode() + b"\0" + source + b"\0")
    return digest.hexdigest()[:16]


def start_code(folder: str, call: str) -> str:
    """Python code that calls `call` of the guest's `main` module, shipped in `folder`."""
    return f"import sys;sys.path.insert(0,{folder!r});from {GUEST_PACKAGE} import main;main.{call}"

"""Which Python runs the guest, and which one `python3` means inside."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

from workspace.errors import IsolationUnavailable

OLDEST = (3, 8)
SYSTEM = ("/usr/bin/python3", "/usr/local/bin/python3")
_ASK = "import sys,json;print(json.dumps([sys.base_prefix,list(sys.version_info[:2])]))"


@dataclass(frozen=True)
class Interpreter:
    """A Python that works inside: its program, the directory that has to be bound for it (None: it lies in /usr)."""

    program: str
    prefix: str | None

    @property
    def bin(self) -> str | None:
        return f"{self.prefix}/bin" if self.prefix else None


def _ask(program: str) -> tuple[str, tuple[int, int]] | None:
    try:
        done = subprocess.run([program, "-I", "-S", "-c", _ASK], capture_output=True, timeout=20, check=True)
        prefix, (major, minor) = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return prefix, (major, minor)


def _same(program: str) -> bool:
    return os.path.realpath(program) == os.path.realpath(sys.executable)


@functools.lru_cache(maxsize=8)
def _resolve(found: str | None) -> Interpreter | None:
    if found is None:
        return None
    answer = (sys.base_prefix, sys.version_info[:2]) if _same(found) else _ask(found)
    if answer is None or answer[1] < OLDEST:
        return None
    prefix = answer[0]
    if prefix == "/usr" or prefix.startswith("/usr/"):
        return Interpreter(os.path.realpath(f"{prefix}/bin/python3"), None)
    return Interpreter(f"{prefix}/bin/python3", prefix)


def users() -> Interpreter | None:
    """What `python3` resolves to for the calling user, beneath any virtual environment; None where there is none."""
    return _resolve(shutil.which("python3"))


@functools.lru_cache(maxsize=1)
def _systems() -> Interpreter | None:
    for program in SYSTEM:
        answer = _ask(program) if os.path.exists(program) else None
        if answer is not None and answer[1] >= OLDEST:
            return Interpreter(program, None)
    return None


def guests() -> Interpreter:
    """The Python for the guest: the system's where it is new enough, else the user's, else the one that runs us."""
    found = _systems() or users() or _resolve(sys.executable)
    if found is None:
        raise IsolationUnavailable("there is no Python 3.8 or newer that can run inside a sandbox; install python3")
    return found

"""Backends by name, through entry points (`workspace.backends`); loaded when they are first used."""

from __future__ import annotations

import difflib
import threading
from importlib.metadata import EntryPoint, entry_points

from workspace.backend import Backend
from workspace.errors import BackendNotFound, printable

GROUP = "workspace.backends"
EXTRAS = {"docker": "docker", "e2b": "e2b"}
_loaded: dict[str, Backend] = {}
_lock = threading.Lock()


def names() -> list[str]:
    """Every installed backend, whether or not its extra is there."""
    return sorted(_points())


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def load(name: str) -> Backend:
    """The backend called `name`; one object per process. Raises `BackendNotFound` that says what to install."""
    with _lock:
        if name not in _loaded:
            _loaded[name] = _load(name)
        return _loaded[name]


def _load(name: str) -> Backend:
    points = _points()
    if name not in points:
        raise BackendNotFound(_unknown(name, sorted(points)))
    try:
        backend: Backend = points[name].load()()
    except ImportError as error:
        extra = EXTRAS.get(name, name)
        raise BackendNotFound(
            f"the backend {name!r} needs a package that is not installed ({error}); pip install 'workspace-runtime[{extra}]'"
        ) from error
    return backend


def _unknown(name: str, known: list[str]) -> str:
    if name in EXTRAS:
        return f"the backend {name!r} is not installed; pip install 'workspace-runtime[{EXTRAS[name]}]'"
    near = difflib.get_close_matches(name, known, 1)
    return f"there is no backend {printable(name)!r}; " + (f"did you mean {near[0]!r}?" if near else f"installed: {', '.join(known)}")


def forget() -> None:
    """Drops loaded backends, so that changed settings are read again; for tests."""
    with _lock:
        _loaded.clear()

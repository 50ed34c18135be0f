"""One unprivileged host uid per workspace, for hosts where we are root.

Claims are files in a directory of the whole machine, so that two state directories never share a uid. A claim whose
workspace is gone is taken over.
"""

from __future__ import annotations

import fcntl
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workspace.errors import BackendUnavailable

REGISTRY = Path("/var/lib/workspace-runtime/uids")
DEFAULT_RANGE = (1_900_000_000, 1_900_065_535)
"""Far from what users, subuid ranges and systemd use (systemd's UIDS-GIDS table lists it as unused)."""


def parse_range(text: str | None) -> tuple[int, int]:
    """`first-last`, both inclusive; raises `BackendUnavailable` for anything else."""
    if not text:
        return DEFAULT_RANGE
    first, _, last = text.partition("-")
    if not (first.isdigit() and last.isdigit()) or not 1000 < int(first) <= int(last) < 2**32 - 2:
        raise BackendUnavailable(f"WORKSPACE_UID_RANGE={text!r} is not FIRST-LAST with 1000 < FIRST <= LAST < 4294967294")
    return int(first), int(last)


@contextmanager
def _locked() -> Iterator[None]:
    REGISTRY.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(REGISTRY / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _free(claim: Path) -> bool:
    try:
        return not os.path.exists(os.readlink(claim))
    except FileNotFoundError:
        return True


def claim(folder: Path, bounds: tuple[int, int]) -> int:
    """A uid that belongs to the workspace in `folder` until `release`."""
    first, last = bounds
    size = last - first + 1
    start = random.randrange(size)
    with _locked():
        for step in range(min(size, 100_000)):
            uid = first + (start + step) % size
            path = REGISTRY / str(uid)
            if _free(path):
                path.unlink(missing_ok=True)
                path.symlink_to(folder)
                return uid
    raise BackendUnavailable(f"all {size} uids from {first} to {last} are taken by workspaces; prune, or widen WORKSPACE_UID_RANGE")


def release(uid: int) -> None:
    (REGISTRY / str(uid)).unlink(missing_ok=True)

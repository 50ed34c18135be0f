"""The state directory: one folder per workspace, its spec, its lock, its files.

Layout below `$WORKSPACE_HOME`, else `$XDG_STATE_HOME/workspace`, else `~/.local/state/workspace` (all 0700)::

    local/<id>/spec.json    what was asked for           local/<id>/lock   held while a sandbox runs
    local/<id>/uid          its host uid, if it has one   local/<id>/sock   where the guest listens
    local/<id>/files/ or disk.img                         guest/, etc/, templates/: shared, read-only inside
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workspace.backend import SandboxRecord
from workspace.errors import BackendUnavailable, WorkspaceExists, WorkspaceNotFound, os_error_text, printable
from workspace.spec import WorkspaceSpec

ID = re.compile(r"ws-[0-9a-f]{32}")


@dataclass(frozen=True)
class Entry:
    """One workspace's folder."""

    id: str
    path: Path

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def disk_path(self) -> Path:
        return self.path / "disk.img"

    @property
    def files_path(self) -> Path:
        return self.path / "files"

    def read(self) -> dict[str, Any]:
        """What `write` stored; raises `WorkspaceNotFound` where there is nothing (any more)."""
        try:
            value: dict[str, Any] = json.loads((self.path / "spec.json").read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError):
            raise WorkspaceNotFound(f"there is no local workspace {self.id!r}") from None
        return value

    def write(self, state: dict[str, Any]) -> None:
        """Replaces the stored state in one step."""
        temporary = self.path / f"spec.json.{secrets.token_hex(4)}"
        temporary.write_text(json.dumps(state))
        os.replace(temporary, self.path / "spec.json")

    def touch(self) -> None:
        """Notes the last use."""
        os.utime(self.path / "spec.json")

    def record(self) -> SandboxRecord:
        state = self.read()
        used = (self.path / "spec.json").stat().st_mtime
        spec = WorkspaceSpec.model_validate(state["spec"])
        expires = used + spec.ttl_s if spec.ttl_s is not None else None
        return SandboxRecord(self.id, "local", spec, self.held(), state["created_at"], used, expires)

    def lock(self) -> int | None:
        """Takes the right to run a sandbox on this workspace; None where another process has it."""
        try:
            fd = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise WorkspaceNotFound(f"there is no local workspace {self.id!r}") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if not self.lock_path.exists():
            os.close(fd)
            raise WorkspaceNotFound(f"the local workspace {self.id!r} was removed")
        return fd

    def held(self) -> bool:
        """Whether some process runs a sandbox on it now."""
        try:
            fd = self.lock()
        except WorkspaceNotFound:
            return False
        if fd is None:
            return True
        os.close(fd)
        return False


class Store:
    """All workspaces of one state directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._entries = home / "local"

    def prepare(self) -> None:
        """Makes the directories; raises `BackendUnavailable` that names the one that cannot be made."""
        for path in (self.home, self._entries):
            try:
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise BackendUnavailable(_home_message(path, error)) from error

    def add(self, spec: WorkspaceSpec) -> tuple[Entry, int]:
        """A new folder with its lock held. The name is taken or refused in one step."""
        self.prepare()
        entry = Entry(f"ws-{secrets.token_hex(16)}", self._entries / "new")
        entry = Entry(entry.id, self._entries / entry.id)
        try:
            entry.path.mkdir(mode=0o700)
            self._claim_name(spec.name, entry)
            lock = entry.lock()
            entry.write({"spec": spec.as_json(), "created_at": time.time()})
        except OSError as error:
            self.remove(entry)
            if isinstance(error, WorkspaceExists):
                raise
            raise BackendUnavailable(_home_message(entry.path, error)) from error
        assert lock is not None
        return entry, lock

    def _claim_name(self, name: str | None, entry: Entry) -> None:
        if name is None:
            return
        link = self.home / "names" / name
        link.parent.mkdir(mode=0o700, exist_ok=True)
        try:
            os.symlink(entry.id, link)
        except FileExistsError:
            other = os.readlink(link)
            if (self._entries / other / "spec.json").exists():
                raise WorkspaceExists(
                    errno.EEXIST, f"there is a workspace named {name!r} already ({other}); connect to it, or kill it first"
                ) from None
            os.unlink(link)
            self._claim_name(name, entry)

    def find(self, key: str) -> Entry:
        """By id or name; raises `WorkspaceNotFound`."""
        found = key
        if not ID.fullmatch(key):
            try:
                found = os.readlink(self.home / "names" / key) if "/" not in key and "\0" not in key and key not in ("", ".", "..") else ""
            except OSError:
                found = ""
        entry = Entry(found, self._entries / found)
        if not ID.fullmatch(found) or not (entry.path / "spec.json").exists():
            raise WorkspaceNotFound(f"there is no local workspace {printable(key)!r}; `workspace list` shows those there are")
        return entry

    def all(self) -> list[Entry]:
        try:
            names = sorted(os.listdir(self._entries))
        except FileNotFoundError:
            return []
        return [Entry(name, self._entries / name) for name in names if ID.fullmatch(name)]

    def remove(self, entry: Entry) -> None:
        """Removes a folder whose sandbox has ended. Never follows links; modes do not keep it from doing so."""

        def force(function: Any, path: str, _: Any) -> None:
            if not os.path.lexists(path):
                return
            os.chmod(os.path.dirname(path), 0o700)
            if not os.path.islink(path) and os.path.isdir(path):
                os.chmod(path, 0o700)
            function(path)

        self._release_name(entry)
        doomed = entry.path.with_name(entry.path.name + ".removed")
        try:
            os.rename(entry.path, doomed)
        except OSError:
            doomed = entry.path
        if doomed.exists():
            shutil.rmtree(doomed, onerror=force)

    def _release_name(self, entry: Entry) -> None:
        names = self.home / "names"
        if not names.is_dir():
            return
        for link in names.iterdir():
            if link.is_symlink() and os.readlink(link) == entry.id:
                link.unlink(missing_ok=True)

    def leftovers(self) -> list[Path]:
        """Folders whose removal was interrupted."""
        if not self._entries.is_dir():
            return []
        return [path for path in self._entries.iterdir() if path.name.endswith(".removed")]


def _home_message(path: Path, error: OSError) -> str:
    return (
        f"the state directory {str(path)!r} cannot be used: {os_error_text(error)}; set WORKSPACE_HOME to a directory that can be written"
    )

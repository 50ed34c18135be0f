"""Paths of a workspace: POSIX, absolute or relative to /workspace, `~` is the home directory."""

from __future__ import annotations

from .faults import Fault

WORKSPACE = "/workspace"


class Paths:
    """Maps a path that a user gives to one that this process can open.

    In a real sandbox both are the same. Without isolation the two roots are directories of the host, given as
    `mapped` (virtual root → real directory).
    """

    def __init__(self, home: str, mapped: dict[str, str]) -> None:
        self.home = home
        self._mapped = sorted(mapped.items(), reverse=True)
        self.roots = frozenset([WORKSPACE, home, "/", *mapped.values()])

    def absolute(self, path: str) -> str:
        """The absolute path in the workspace; `..` is left to the kernel."""
        if not isinstance(path, str) or "\0" in path:
            raise Fault("EINVAL", "a path is text without NUL", path=repr(path))
        if not path:
            raise Fault("ENOENT", "a path cannot be empty", path=path)
        if path == "~" or path.startswith("~/"):
            return self.home + path[1:]
        return path if path.startswith("/") else (WORKSPACE if path == "." else WORKSPACE + "/" + path)

    def real(self, path: str) -> str:
        """What to open for `path`."""
        path = self.absolute(path)
        for root, directory in self._mapped:
            if path == root or path.startswith(root + "/"):
                return directory + path[len(root) :]
        return path

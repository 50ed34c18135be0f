"""Every error this package raises on purpose, in one tree.

::

    WorkspaceError
    ├── InvalidArgument (ValueError)          a value that cannot be used; names it, its limit and the way out
    │   └── SettingsError                     the same, in workspace.toml, pyproject.toml or the environment
    ├── BackendError (RuntimeError)           the environment cannot do what was asked
    │   ├── BackendNotFound                   no backend of that name, or its extra is not installed
    │   ├── BackendUnavailable                it is installed but does not answer or cannot run here
    │   ├── IsolationUnavailable              this host cannot isolate; says why and what to do
    │   ├── NotSupported                      the backend does not have this power or cannot enforce this limit
    │   └── StartFailed                       the sandbox did not come up; nothing of it is left
    ├── WorkspaceNotFound (LookupError)
    ├── WorkspaceExists (FileExistsError)     the name is taken
    ├── WorkspaceClosed (RuntimeError)        this handle was closed by its user
    ├── WorkspaceGone (ConnectionError)       the sandbox ended; `reason` says why
    │   └── ProtocolError                     what came out of the sandbox was not our protocol
    ├── CommandError
    │   ├── CommandFailed                     non-zero exit with check=True
    │   ├── CommandTimeout (TimeoutError)     killed after timeout_s, with the output so far
    │   ├── OutOfMemory (MemoryError)         killed because the workspace's memory limit was reached
    │   ├── CommandNotFound (LookupError)     no such running command
    │   └── CannotStart (OSError)             the kernel refused to start it
    ├── ResourceExhausted (OSError)           a limit of the workspace: processes, requests, memory
    └── FileError (OSError)
        ├── FileMissing (FileNotFoundError)
        ├── FileTaken (FileExistsError)
        ├── PathIsDirectory (IsADirectoryError)
        ├── PathNotDirectory (NotADirectoryError)
        ├── FileDenied (PermissionError)
        ├── NoSpace                           the workspace's disk, inodes or file size limit is reached
        ├── NotRegular                        a FIFO, socket or device where a file is needed
        ├── FileChanged                       somebody else changed the file since it was read
        └── EditMismatch (ValueError)         the text to replace does not occur, or too often
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workspace.output import CommandResult


class WorkspaceError(Exception):
    """Root of the tree."""


class InvalidArgument(WorkspaceError, ValueError):
    """A value that cannot be used."""


class SettingsError(InvalidArgument):
    """A setting that cannot be used, with the file or variable it comes from."""


class BackendError(WorkspaceError, RuntimeError):
    """The environment cannot do what was asked."""


class BackendNotFound(BackendError):
    """No backend of that name is installed."""


class BackendUnavailable(BackendError):
    """The backend does not answer or cannot run on this host."""


class IsolationUnavailable(BackendUnavailable):
    """This host cannot isolate code; the message says why and what to do."""


class NotSupported(BackendError):
    """The backend lacks this power, or cannot enforce this limit here."""


class StartFailed(BackendError):
    """The sandbox did not come up. Nothing of it is left behind."""


class WorkspaceNotFound(WorkspaceError, LookupError):
    """No workspace has this id or name."""


class WorkspaceExists(WorkspaceError, FileExistsError):
    """A workspace of this name exists already."""


class WorkspaceClosed(WorkspaceError, RuntimeError):
    """The handle was closed; connect again to go on."""


class WorkspaceGone(WorkspaceError, ConnectionError):
    """The sandbox ended. `reason`: closed, expired, owner_gone, out_of_memory, killed, protocol, unresponsive."""

    def __init__(self, message: str, reason: str = "killed") -> None:
        super().__init__(message)
        self.reason = reason


class ProtocolError(WorkspaceGone):
    """What came out of the sandbox was not our protocol; the link was closed."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "protocol")


class CommandError(WorkspaceError):
    """A command did not do what was asked."""


class _WithResult(CommandError):
    def __init__(self, message: str, result: CommandResult) -> None:
        super().__init__(message)
        self.result = result

    @property
    def stdout(self) -> str:
        """Standard output so far."""
        return self.result.stdout

    @property
    def stderr(self) -> str:
        """Standard error so far."""
        return self.result.stderr


class CommandFailed(_WithResult):
    """The command ended with a non-zero exit code and `check=True` was asked for."""


class CommandTimeout(_WithResult, TimeoutError):
    """The command was killed with everything it had started because its time was over."""


class OutOfMemory(_WithResult, MemoryError):
    """The command was killed by the kernel because the workspace reached its memory limit."""


class CommandNotFound(CommandError, LookupError):
    """No command with this pid runs in the workspace."""


class CannotStart(CommandError, OSError):
    """The kernel refused to start the command, for example because its arguments are too long."""


class ResourceExhausted(WorkspaceError, OSError):
    """A limit of the workspace is reached."""


class FileError(WorkspaceError, OSError):
    """A file operation failed; `errno` and `filename` are set as for `OSError`."""

    def __str__(self) -> str:
        return OSError.__str__(self)


class FileMissing(FileError, FileNotFoundError):
    """No such file or directory."""


class FileTaken(FileError, FileExistsError):
    """There is something already."""


class PathIsDirectory(FileError, IsADirectoryError):
    """A directory where a file is needed."""


class PathNotDirectory(FileError, NotADirectoryError):
    """Something else where a directory is needed."""


class FileDenied(FileError, PermissionError):
    """The user inside may not do this."""


class NoSpace(FileError):
    """The disk, the inodes or the file size limit of the workspace is used up."""


class NotRegular(FileError):
    """A FIFO, a socket or a device where a regular file is needed."""


class FileChanged(FileError):
    """Somebody else changed the file since it was read; nothing was written."""


class EditMismatch(FileError, ValueError):
    """The text to replace does not occur in the file, or not as often as said; nothing was written."""


_NUMBERS = {name: number for number, name in errno.errorcode.items()}
_FILE_ERRORS: dict[str, tuple[type[FileError], int]] = {
    "ENOENT": (FileMissing, errno.ENOENT),
    "EEXIST": (FileTaken, errno.EEXIST),
    "ENOTEMPTY": (FileTaken, errno.ENOTEMPTY),
    "EISDIR": (PathIsDirectory, errno.EISDIR),
    "ENOTDIR": (PathNotDirectory, errno.ENOTDIR),
    "EACCES": (FileDenied, errno.EACCES),
    "EPERM": (FileDenied, errno.EPERM),
    "EROFS": (FileDenied, errno.EROFS),
    "ENOSPC": (NoSpace, errno.ENOSPC),
    "EDQUOT": (NoSpace, errno.EDQUOT),
    "EFBIG": (NoSpace, errno.EFBIG),
    "not_regular": (NotRegular, errno.EINVAL),
    "ENXIO": (NotRegular, errno.ENXIO),
    "changed": (FileChanged, errno.ESTALE),
    "edit_count": (EditMismatch, errno.EINVAL),
}


def from_guest(details: dict[str, Any], path: str | None = None) -> WorkspaceError:
    """The error for an ERROR frame. `path` is what the caller asked for; the guest's own words are not trusted as code."""
    code, message = str(details.get("code", "")), printable(str(details.get("message", "")))
    where = path if path is not None else details.get("path")
    name = str(where) if where is not None else None
    if details.get("what") == "spawn":
        return _cannot_start(code, message, name)
    if code in ("EAGAIN", "ENOMEM", "EMFILE", "ENFILE"):
        return ResourceExhausted(getattr(errno, code), f"{message}: the workspace's limit of processes or memory is reached")
    if code == "ESRCH":
        return CommandNotFound(message)
    if code == "bad_pattern":
        return InvalidArgument(f"pattern {details.get('pattern')!r}: {message}")
    if code in _FILE_ERRORS:
        kind, number = _FILE_ERRORS[code]
        return kind(number, message, name) if name is not None else kind(number, message)
    if code in _NUMBERS:
        return FileError(_NUMBERS[code], message, name)
    return WorkspaceError(f"the guest failed: {message}")


def host_error(error: OSError, path: str) -> FileError:
    """The error of this tree for one of the host's own file system."""
    code = errno.errorcode.get(error.errno or 0, "")
    kind, number = _FILE_ERRORS.get(code, (FileError, error.errno or errno.EIO))
    return kind(number, error.strerror or str(error), error.filename if isinstance(error.filename, str) else path)


def _cannot_start(code: str, message: str, name: str | None) -> WorkspaceError:
    number = _NUMBERS.get(code, errno.EIO)
    if code == "E2BIG":
        message = f"{message}: argv and env together are over the kernel's limit; pass large data by stdin or a file"
        return CannotStart(number, message)
    if code in ("EAGAIN", "ENOMEM"):
        return ResourceExhausted(number, f"{message}: the workspace's limit of processes or memory is reached")
    return CannotStart(number, message, name)


def printable(text: str) -> str:
    """`text` with control characters, bidi overrides and lone surrogates escaped, for messages and terminals."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode() for char in text)


def os_error_text(error: OSError) -> str:
    """`error` in one line, without the class name."""
    return error.strerror or os.strerror(error.errno or errno.EIO)

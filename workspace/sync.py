"""Workspace: the blocking face of `AsyncWorkspace`, one line per method. What a method promises stands there.

A test holds the signatures of the two faces equal.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from types import TracebackType
from typing import IO, Any

from workspace.backend import SandboxRecord
from workspace.commands import DEFAULT, AsyncCommandHandle, AsyncCommands, CommandInfo, Timeout
from workspace.fileinfo import FileEvent, FileInfo, Match
from workspace.fileio import open_file
from workspace.files import AsyncFiles, AsyncWatch
from workspace.link import Progress
from workspace.output import MAX_OUTPUT_BYTES, CommandResult, OutputChunk
from workspace.portal import off_loop, pieces, portal
from workspace.spec import NetworkPolicy, Resources, WorkspaceSpec
from workspace.transfer import Downloaded
from workspace.workspace import AsyncWorkspace, Metrics, WorkspaceInfo

Stdin = str | bytes | Iterable[bytes] | None
Content = str | bytes | bytearray | memoryview | Iterable[bytes] | IO[bytes]
OnText = Callable[[str], object] | None
OnOutput = Callable[[OutputChunk], object] | None


class CommandHandle:
    """The blocking face of `AsyncCommandHandle`."""

    def __init__(self, handle: AsyncCommandHandle) -> None:
        self._async = handle

    @property
    def pid(self) -> int:
        return self._async.pid

    @property
    def running(self) -> bool:
        return self._async.running

    def __iter__(self) -> Iterator[OutputChunk]:
        return portal().iterate(self._async)

    def send_stdin(self, data: str | bytes) -> None:
        portal().call(self._async.send_stdin(data))

    def close_stdin(self) -> None:
        portal().call(self._async.close_stdin())

    def signal(self, number: int) -> None:
        portal().call(self._async.signal(number))

    def kill(self) -> bool:
        return portal().call(self._async.kill())

    def wait(self, check: bool = False) -> CommandResult:
        return portal().call(self._async.wait(check))

    def disconnect(self) -> None:
        portal().call(self._async.disconnect())


class Commands:
    """The blocking face of `AsyncCommands`."""

    def __init__(self, commands: AsyncCommands) -> None:
        self._async = commands

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: Timeout = DEFAULT,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: Stdin = None,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
        on_output: OnOutput = None,
        check: bool = False,
        merge: bool = False,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> CommandResult:
        options: dict[str, Any] = {"env": env, "cwd": cwd, "check": check, "merge": merge, "user": user}
        options |= {"timeout_s": timeout_s, "stdin": pieces(stdin), "max_output_bytes": max_output_bytes}
        options |= {"on_stdout": off_loop(on_stdout), "on_stderr": off_loop(on_stderr), "on_output": off_loop(on_output)}
        return portal().call(self._async.run(command, **options))

    def start(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: Timeout = None,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: bool = False,
        merge: bool = False,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> CommandHandle:
        options: dict[str, Any] = {"env": env, "cwd": cwd, "stdin": stdin, "merge": merge, "user": user}
        return CommandHandle(portal().call(self._async.start(command, timeout_s=timeout_s, max_output_bytes=max_output_bytes, **options)))

    def connect(self, pid: int, max_output_bytes: int = MAX_OUTPUT_BYTES) -> CommandHandle:
        return CommandHandle(portal().call(self._async.connect(pid, max_output_bytes)))

    def list(self) -> builtins.list[CommandInfo]:
        return portal().call(self._async.list())

    def kill(self, pid: int) -> bool:
        return portal().call(self._async.kill(pid))

    def signal(self, pid: int, number: int = 15) -> None:
        portal().call(self._async.signal(pid, number))


class Watch:
    """The blocking face of `AsyncWatch`."""

    def __init__(self, watch: AsyncWatch) -> None:
        self._async = watch

    def __enter__(self) -> Watch:
        portal().call(self._async.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        portal().call(self._async.__aexit__())

    def __iter__(self) -> Iterator[FileEvent]:
        return portal().iterate(self._async)


class Files:
    """The blocking face of `AsyncFiles`."""

    def __init__(self, files: AsyncFiles) -> None:
        self._async = files

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        return portal().call(self._async.read(path, offset, length))

    def read_text(self, path: str, encoding: str = "utf-8", errors: str = "strict") -> str:
        return portal().call(self._async.read_text(path, encoding, errors))

    def read_stream(self, path: str, offset: int = 0, length: int | None = None) -> Iterator[bytes]:
        return portal().iterate(self._async.read_stream(path, offset, length))

    def write(
        self, path: str, content: Content, *, mode: int | None = None, exclusive: bool = False, progress: Progress | None = None
    ) -> FileInfo:
        return portal().call(self._async.write(path, pieces(content), mode=mode, exclusive=exclusive, progress=progress))

    def write_many(self, files: Mapping[str, str | bytes]) -> int:
        return portal().call(self._async.write_many(files))

    def append(self, path: str, content: Content) -> FileInfo:
        return portal().call(self._async.append(path, pieces(content)))

    def patch(self, path: str, offset: int, content: Content, truncate: int | None = None) -> FileInfo:
        return portal().call(self._async.patch(path, offset, pieces(content), truncate))

    def edit(
        self, path: str, old: str | bytes, new: str | bytes, *, expected_version: str | None = None, count: int | None = 1
    ) -> FileInfo:
        return portal().call(self._async.edit(path, old, new, expected_version=expected_version, count=count))

    def list(self, path: str = ".", depth: int | None = 1) -> builtins.list[FileInfo]:
        return portal().call(self._async.list(path, depth))

    def walk(self, path: str = ".", depth: int | None = None) -> Iterator[FileInfo]:
        return portal().iterate(self._async.walk(path, depth))

    def glob(self, pattern: str, path: str = ".") -> builtins.list[FileInfo]:
        return portal().call(self._async.glob(pattern, path))

    def grep(
        self,
        pattern: str,
        path: str = ".",
        *,
        glob: str | None = None,
        fixed: bool = False,
        ignore_case: bool = False,
        max_matches: int | None = 1000,
    ) -> builtins.list[Match]:
        options: dict[str, Any] = {"glob": glob, "fixed": fixed, "ignore_case": ignore_case, "max_matches": max_matches}
        return portal().call(self._async.grep(pattern, path, **options))

    def stat(self, path: str, follow_symlinks: bool = True) -> FileInfo:
        return portal().call(self._async.stat(path, follow_symlinks))

    def exists(self, path: str) -> bool:
        return portal().call(self._async.exists(path))

    def mkdir(self, path: str, *, parents: bool = True, exist_ok: bool = True) -> FileInfo:
        return portal().call(self._async.mkdir(path, parents=parents, exist_ok=exist_ok))

    def move(self, path: str, target: str, *, overwrite: bool = True) -> FileInfo:
        return portal().call(self._async.move(path, target, overwrite=overwrite))

    def copy(self, path: str, target: str, *, overwrite: bool = True) -> FileInfo:
        return portal().call(self._async.copy(path, target, overwrite=overwrite))

    def remove(self, path: str, *, recursive: bool = False, missing_ok: bool = False) -> None:
        portal().call(self._async.remove(path, recursive=recursive, missing_ok=missing_ok))

    def chmod(self, path: str, mode: int) -> FileInfo:
        return portal().call(self._async.chmod(path, mode))

    def symlink(self, path: str, target: str) -> FileInfo:
        return portal().call(self._async.symlink(path, target))

    def upload(
        self, host_path: str | PathLike[str], path: str = ".", *, exclude: Iterable[str] = (), progress: Progress | None = None
    ) -> int:
        return portal().call(self._async.upload(host_path, path, exclude=exclude, progress=progress))

    def download(
        self, path: str, host_path: str | PathLike[str], *, max_bytes: int | None = None, progress: Progress | None = None
    ) -> Downloaded:
        return portal().call(self._async.download(path, host_path, max_bytes=max_bytes, progress=progress))

    def watch(self, path: str = ".", *, recursive: bool = True) -> Watch:
        return Watch(self._async.watch(path, recursive=recursive))

    def open(
        self, path: str, mode: str = "r", *, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> IO[Any]:
        """A file object, as `open` gives it: r, w, x, a, r+, with b or as text.

        With `w` and `x` the new content appears in one step when the file is closed without an error.
        """
        return open_file(self, path, mode, encoding=encoding, errors=errors, newline=newline)

    @contextmanager
    def writer(self, path: str, *, mode: int | None = None, exclusive: bool = False) -> Iterator[Callable[[bytes], Any]]:
        manager = self._async.writer(path, mode=mode, exclusive=exclusive)
        send = portal().call(manager.__aenter__())
        try:
            yield lambda data: portal().call(send(data))
        except BaseException as error:
            portal().call(manager.__aexit__(type(error), error, error.__traceback__))
            raise
        portal().call(manager.__aexit__(None, None, None))


class Workspace:
    """A place to run code that nobody has reviewed: the blocking face of `AsyncWorkspace`."""

    def __init__(self, workspace: AsyncWorkspace) -> None:
        self._async = workspace
        self.commands = Commands(workspace.commands)
        self.files = Files(workspace.files)

    @classmethod
    def create(
        cls,
        backend: str | None = None,
        *,
        profile: str | None = None,
        spec: WorkspaceSpec | None = None,
        name: str | None = None,
        keep: bool | None = None,
        detached: bool | None = None,
        isolation: str | None = None,
        env: Mapping[str, str] | None = None,
        network: str | NetworkPolicy | None = None,
        resources: Resources | None = None,
        ttl_s: float | Any | None = DEFAULT,
        timeout_s: float | Any | None = DEFAULT,
        metadata: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Workspace:
        """Starts a new workspace; use it with `with`. See `AsyncWorkspace.create`."""
        options |= {"profile": profile, "spec": spec, "name": name, "keep": keep, "detached": detached, "isolation": isolation}
        options |= {"env": env, "network": network, "resources": resources, "ttl_s": ttl_s, "timeout_s": timeout_s, "metadata": metadata}

        async def create() -> AsyncWorkspace:
            return await AsyncWorkspace.create(backend, **options)

        return cls(portal().call(create()))

    @classmethod
    def connect(cls, key: str, *, backend: str | None = None, profile: str | None = None) -> Workspace:
        async def connect() -> AsyncWorkspace:
            return await AsyncWorkspace.connect(key, backend=backend, profile=profile)

        return cls(portal().call(connect()))

    @classmethod
    def list(cls, *, backend: str | None = None) -> Sequence[SandboxRecord]:
        return portal().call(AsyncWorkspace.list(backend=backend))

    @property
    def id(self) -> str:
        return self._async.id

    @property
    def name(self) -> str | None:
        return self._async.name

    @property
    def backend(self) -> str:
        return self._async.backend

    @property
    def alive(self) -> bool:
        return self._async.alive

    def run(
        self,
        command: str | Sequence[str],
        *,
        timeout_s: Timeout = DEFAULT,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        stdin: Stdin = None,
        on_stdout: OnText = None,
        on_stderr: OnText = None,
        on_output: OnOutput = None,
        check: bool = False,
        merge: bool = False,
        user: str | None = None,
        max_output_bytes: int = MAX_OUTPUT_BYTES,
    ) -> CommandResult:
        options: dict[str, Any] = {"env": env, "cwd": cwd, "stdin": stdin, "check": check, "merge": merge, "user": user}
        options |= {"timeout_s": timeout_s, "on_stdout": on_stdout, "on_stderr": on_stderr, "on_output": on_output}
        options["max_output_bytes"] = max_output_bytes
        return self.commands.run(command, **options)

    def info(self) -> WorkspaceInfo:
        return portal().call(self._async.info())

    def metrics(self) -> Metrics:
        return portal().call(self._async.metrics())

    def ping(self) -> float:
        return portal().call(self._async.ping())

    def set_timeout(self, ttl_s: float | None) -> None:
        portal().call(self._async.set_timeout(ttl_s))

    def pause(self) -> None:
        portal().call(self._async.pause())

    def resume(self) -> None:
        portal().call(self._async.resume())

    def close(self) -> None:
        portal().call(self._async.close())

    def kill(self) -> None:
        portal().call(self._async.kill())

    def leave(self) -> None:
        portal().call(self._async.leave())

    def __enter__(self) -> Workspace:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.leave()

    def __repr__(self) -> str:
        return repr(self._async).replace("AsyncWorkspace", "Workspace", 1)

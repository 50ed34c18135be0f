"""AsyncWorkspace: what a user holds, and its life."""

from __future__ import annotations

import asyncio
import contextlib
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from types import TracebackType
from typing import Any

from workspace import registry, untrusted
from workspace.backend import Backend, Pausing, Sandbox, SandboxInfo, SandboxRecord
from workspace.commands import DEFAULT, AsyncCommands, OnOutput, OnText, Timeout
from workspace.errors import InvalidArgument, NotSupported, WorkspaceClosed, WorkspaceGone
from workspace.files import AsyncFiles
from workspace.link import Link
from workspace.opening import Opening, resolve
from workspace.output import MAX_OUTPUT_BYTES, CommandResult
from workspace.session import Session
from workspace.spec import NetworkPolicy, Resources, WorkspaceSpec
from workspace.stdin import Stdin

JOIN_TIMEOUT_S = 10.0


class IsolationWarning(UserWarning):
    """Code runs without any isolation, as was asked for."""


@dataclass(frozen=True)
class WorkspaceInfo:
    """What is known about a workspace."""

    id: str
    name: str | None
    backend: str
    spec: WorkspaceSpec
    sandbox: SandboxInfo
    """Where it runs, its walls and limits in force."""
    guest_python: str
    owned: bool
    """Whether this process keeps the sandbox alive."""

    @property
    def walls(self) -> Mapping[str, str]:
        """Walls in force; each is proved by a test."""
        return self.sandbox.walls

    @property
    def limits(self) -> Mapping[str, str]:
        """Limits in force and how each is enforced."""
        return self.sandbox.limits


@dataclass(frozen=True)
class Metrics:
    """What a workspace uses now, as seen from inside."""

    at: float
    processes: int
    cpu_s: float
    memory_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    inodes_total: int
    inodes_free: int


class AsyncWorkspace:
    """A place to run code that nobody has reviewed. Make one with `create`, take one up with `connect`.

    Bound to the event loop it was opened in. Leaving `async with` removes an unnamed workspace and closes a kept one.
    """

    def __init__(self, sandbox: Sandbox, session: Session) -> None:
        self.commands = AsyncCommands(session)
        self.files = AsyncFiles(session)
        self._sandbox = sandbox
        self._session = session
        self._ended = False
        self._watch = asyncio.ensure_future(self._clean_up_after_end())

    # Opening

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
    ) -> Opening:
        """Starts a new workspace: `await AsyncWorkspace.create()` or `async with AsyncWorkspace.create() as ws`.

        `backend` (default: the profile's, `WORKSPACE_BACKEND`, else local). The fields are those of `WorkspaceSpec`;
        what is not given comes from the profile. `options` are the backend's own (`image=…`). Raises
        `InvalidArgument`, `BackendNotFound`, `IsolationUnavailable`, `NotSupported`, `StartFailed`; then nothing is left.
        """
        given: dict[str, Any] = {
            "name": name,
            "keep": keep,
            "detached": detached,
            "isolation": isolation,
            "env": dict(env) if env is not None else None,
            "network": network,
            "resources": resources,
            "metadata": dict(metadata) if metadata is not None else None,
            **options,
        }
        chosen_fields = {key: value for key, value in given.items() if value is not None}
        for key, value in (("ttl_s", ttl_s), ("timeout_s", timeout_s)):
            if value is not DEFAULT:
                chosen_fields[key] = value

        async def open_it() -> AsyncWorkspace:
            chosen, request = await asyncio.to_thread(resolve, backend, profile, spec, chosen_fields)
            return await cls._create(chosen, request)

        return Opening(open_it)

    @classmethod
    async def _create(cls, backend: str, spec: WorkspaceSpec) -> AsyncWorkspace:
        chosen = await asyncio.to_thread(registry.load, backend)
        if spec.detached:
            from workspace import supervisor

            sandbox = await supervisor.create(chosen, spec)
        else:
            sandbox = await chosen.create(spec)
        if spec.isolation == "none":
            warnings.warn(
                f"this workspace has NO ISOLATION: its code runs as {backend} processes with your rights", IsolationWarning, stacklevel=2
            )
        return await cls._dial(sandbox, new=True)

    @classmethod
    def connect(cls, key: str, *, backend: str | None = None, profile: str | None = None) -> Opening:
        """Takes up a workspace by id or name: joins its sandbox where one runs, else starts one on its files.

        Without `backend` every installed one is asked. Raises `WorkspaceNotFound`.
        """

        async def open_it() -> AsyncWorkspace:
            from workspace import directory

            chosen = await directory.find(key, backend, profile)
            return await cls._join(chosen, key)

        return Opening(open_it)

    @classmethod
    async def list(cls, *, backend: str | None = None) -> Sequence[SandboxRecord]:
        """Every workspace of the installed backends (or of one), running or not."""
        from workspace import directory

        return await directory.records(backend)

    @classmethod
    async def _join(cls, backend: Backend, key: str) -> AsyncWorkspace:
        """Attaches; a sandbox that ends in the same moment is started anew."""
        deadline = time.monotonic() + JOIN_TIMEOUT_S
        while True:
            try:
                return await cls._dial(await backend.attach(key), new=False)
            except WorkspaceGone:
                if time.monotonic() > deadline:
                    raise

    @classmethod
    async def _dial(cls, sandbox: Sandbox, new: bool) -> AsyncWorkspace:
        try:
            link = await Link.open(await sandbox.dial(), sandbox.greeting)
        except BaseException as error:
            reason = await sandbox.why_gone() if isinstance(error, WorkspaceGone) else None
            await _give_up(sandbox, new)
            if reason is not None:
                raise WorkspaceGone(reason[1], reason[0]) from error
            raise
        return cls(sandbox, Session(sandbox, link))

    # Using

    @property
    def id(self) -> str:
        return self._sandbox.id

    @property
    def name(self) -> str | None:
        return self._sandbox.spec.name

    @property
    def backend(self) -> str:
        return self._sandbox.backend

    @property
    def alive(self) -> bool:
        """Whether the sandbox can be used through this handle."""
        return not self._session.closed and not self._session.lost.done()

    async def run(
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
        """`commands.run`."""
        return await self.commands.run(
            command,
            timeout_s=timeout_s,
            env=env,
            cwd=cwd,
            stdin=stdin,
            on_stdout=on_stdout,
            on_stderr=on_stderr,
            on_output=on_output,
            check=check,
            merge=merge,
            user=user,
            max_output_bytes=max_output_bytes,
        )

    async def info(self) -> WorkspaceInfo:
        """Where it runs, which walls stand, which limits are in force."""
        hello = self._session.hello
        walls = hello.get("walls")
        described = self._sandbox.describe(walls if isinstance(walls, dict) else {})
        return WorkspaceInfo(
            self.id, self.name, self.backend, self._sandbox.spec, described, str(hello.get("python"))[:40], self._sandbox.owned
        )

    async def metrics(self) -> Metrics:
        """What it uses now."""
        reply = await self._session.call("metrics.read")
        times = {name: untrusted.seconds(reply.get(name)) for name in ("at", "cpu_s")}
        rest = [field.name for field in fields(Metrics) if field.name not in times]
        return Metrics(**times, **{name: untrusted.number(reply.get(name)) for name in rest})  # type: ignore[arg-type]

    async def ping(self) -> float:
        """Seconds that one round trip to the guest takes."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        await self._session.call("guest.use")
        return loop.time() - begun

    async def set_timeout(self, ttl_s: float | None) -> None:
        """The sandbox ends `ttl_s` seconds after its last use (this call is one); None: never."""
        if ttl_s is not None and not 0 < ttl_s <= 366 * 86400:
            raise InvalidArgument(f"ttl_s={ttl_s!r} is not between 0 and {366 * 86400} seconds; None means never")
        await self._session.call("guest.expire", ttl_s=ttl_s)
        await self._sandbox.touch(self._sandbox.spec.model_copy(update={"ttl_s": ttl_s}))

    async def pause(self) -> None:
        """Freezes every process; `resume` lets them go on. Raises `NotSupported` where the backend cannot."""
        await self._pausing().pause()

    async def resume(self) -> None:
        await self._pausing().resume()

    def _pausing(self) -> Pausing:
        if not isinstance(self._sandbox, Pausing):
            raise NotSupported(f"the backend {self.backend!r} cannot pause")
        return self._sandbox

    # Ending

    async def close(self) -> None:
        """Ends the processes (where this process owns the sandbox) and keeps the files. Idempotent."""
        if self._session.closed or self._session.foreign:
            return
        self._ended = True
        await self._sandbox.touch()
        if self._sandbox.owned:
            await self._ask_to_stop()
        await self._session.close()
        if self._sandbox.owned:
            await self._sandbox.stop()
        await self._stop_watching()

    async def kill(self) -> None:
        """Ends all processes and removes everything, whoever owns the sandbox. Idempotent."""
        if self._session.foreign:
            await self._session.link()  # says whose it is
        if self._session.closed and self._ended:
            with contextlib.suppress(LookupError):
                await self._sandbox.destroy()
            return
        self._ended = True
        await self._ask_to_stop()
        await self._session.close()
        await self._sandbox.destroy()
        await self._stop_watching()

    async def leave(self) -> None:
        """What leaving the `with` block does: `close()` for a workspace that is kept, `kill()` for a temporary one."""
        if self._session.foreign or self._sandbox.spec.persistent or not self._sandbox.owned:
            await self.close()
        else:
            await self.kill()

    async def _ask_to_stop(self) -> None:
        """In order first: the guest kills what runs and exits; what does not obey is killed from outside."""
        if self._session.lost.done():
            return
        with contextlib.suppress(WorkspaceGone, WorkspaceClosed, TimeoutError):
            await asyncio.wait_for(self._session.call("guest.stop"), 5)

    async def _stop_watching(self) -> None:
        self._watch.cancel()
        await asyncio.gather(self._watch, return_exceptions=True)

    async def _clean_up_after_end(self) -> None:
        """An owned sandbox that ends by itself (expired, killed) is taken down; a temporary one with its files."""
        await asyncio.shield(self._session.lost)
        if self._ended or not self._sandbox.owned:
            return
        await end_of_life(self._sandbox, self._session.lost.result())

    async def __aenter__(self) -> AsyncWorkspace:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.leave()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} on {self.backend}{'' if self.alive else ', ended'}>"


async def end_of_life(sandbox: Sandbox, why: WorkspaceGone) -> None:
    """For the owner of a sandbox that ended by itself: what is over is removed, what is kept is only taken down."""
    if why.reason == "expired" and not sandbox.spec.kept:
        await sandbox.destroy()
    else:
        await sandbox.stop()


async def _give_up(sandbox: Sandbox, new: bool) -> None:
    """After a failed start: nothing of a new sandbox stays, the files of an old one do."""
    if new:
        await asyncio.shield(sandbox.destroy())
    elif sandbox.owned:
        await asyncio.shield(sandbox.stop())

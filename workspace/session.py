"""What the parts of a workspace share: its link, its defaults, and how a lost link is explained."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any

from workspace import untrusted
from workspace.backend import Sandbox
from workspace.errors import WorkspaceClosed, WorkspaceGone
from workspace.link import Link, Stream

TOUCH_S = 60.0
CANCEL_GRACE_S = 10.0
"""How long a cancelled request may take to stop inside before the caller is let go."""


class Session:
    """One handle's connection to a sandbox."""

    def __init__(self, sandbox: Sandbox, link: Link) -> None:
        self.sandbox = sandbox
        self.closed = False
        self._pid = os.getpid()
        seen = link.hello.get("memory_kills")
        self.memory_kills = untrusted.number(seen, 0) if seen is not None else sandbox.memory_kills()
        self._link = link
        self._touched = time.monotonic()

    @property
    def foreign(self) -> bool:
        """Whether this process is a fork of the one that opened it: neither the loop nor the sandbox is ours."""
        return os.getpid() != self._pid

    @property
    def hello(self) -> dict[str, Any]:
        """What the guest said about itself."""
        return self._link.hello

    @property
    def lost(self) -> asyncio.Future[WorkspaceGone]:
        """Done when the link is closed, for whatever reason."""
        return self._link.closed

    async def link(self) -> Link:
        """The link, for one request; raises `WorkspaceClosed`."""
        if self.foreign:
            raise WorkspaceClosed(
                f"this handle of workspace {self.sandbox.id} belongs to the process that was forked; connect again in this one"
            )
        if self.closed:
            raise WorkspaceClosed(f"this handle of workspace {self.sandbox.id} was closed; connect again")
        if time.monotonic() - self._touched > TOUCH_S:
            self._touched = time.monotonic()
            await self.sandbox.touch()
        return self._link

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Link]:
        """The link, for one request; a lost link is raised as `WorkspaceGone` with its cause."""
        try:
            yield await self.link()
        except WorkspaceGone as error:
            raise await self.explain(error) from error

    async def explain(self, error: WorkspaceGone) -> WorkspaceGone:
        """`error`, or a better one where the environment knows more."""
        if self.closed:
            return WorkspaceGone(f"workspace {self.sandbox.id} was closed while the request was under way", "closed")
        if error.reason != "killed":
            return error
        reason, message = await self.sandbox.why_gone()
        return WorkspaceGone(message, reason)

    async def call(self, method: str, path: str | None = None, **params: Any) -> dict[str, Any]:
        """One request without DATA."""
        link = await self.link()
        try:
            return await link.call(method, path, **params)
        except WorkspaceGone as error:
            raise await self.explain(error) from error

    def stream(self, method: str, path: str | None = None, **params: Any) -> Request:
        """A request with DATA; left early, it is cancelled inside and that is waited for."""
        return Request(self, method, path, params)

    async def close(self) -> None:
        self.closed = True
        await self._link.close()


class Request:
    """`async with` around one request with DATA. A class, not a generator: it is on the path of every command."""

    def __init__(self, session: Session, method: str, path: str | None, params: dict[str, Any]) -> None:
        self._session = session
        self._request = method, path, params
        self._stream: Stream | None = None

    async def __aenter__(self) -> Stream:
        method, path, params = self._request
        link = await self._session.link()
        try:
            self._stream = link.request(method, path, **params)
        except WorkspaceGone as error:
            raise await self._session.explain(error) from error
        return self._stream

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._stream is not None and not self._stream.done:
            await stop(self._stream)
        if isinstance(error, WorkspaceGone):
            raise await self._session.explain(error) from error


async def stop(stream: Stream) -> None:
    """Cancels a request and waits until the guest has stopped it, so that nothing of it runs on."""
    stream.cancel()
    ended = asyncio.ensure_future(_ended(stream))
    try:
        await asyncio.wait([ended], timeout=CANCEL_GRACE_S)
    finally:
        ended.cancel()


async def _ended(stream: Stream) -> None:
    async for _ in stream:
        pass

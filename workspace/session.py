"""What the parts of a workspace share: its link, its defaults, and how a lost link is explained."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

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
        self.memory_kills = sandbox.memory_kills()
        self._link = link
        self._touched = time.monotonic()

    @property
    def hello(self) -> dict[str, Any]:
        """What the guest said about itself."""
        return self._link.hello

    @property
    def lost(self) -> asyncio.Future[WorkspaceGone]:
        """Done when the link is closed, for whatever reason."""
        return self._link.closed

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Link]:
        """The link, for one request; a lost link is raised as `WorkspaceGone` with its cause."""
        if self.closed:
            raise WorkspaceClosed(f"this handle of workspace {self.sandbox.id} was closed; connect again")
        if time.monotonic() - self._touched > TOUCH_S:
            self._touched = time.monotonic()
            await self.sandbox.touch()
        try:
            yield self._link
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
        async with self.use() as link:
            return await link.call(method, path, **params)

    @asynccontextmanager
    async def stream(self, method: str, path: str | None = None, **params: Any) -> AsyncIterator[Stream]:
        """A request with DATA; left early, it is cancelled inside and that is waited for."""
        async with self.use() as link:
            stream = link.request(method, path, **params)
            try:
                yield stream
            finally:
                if not stream.done:
                    await stop(stream)

    async def close(self) -> None:
        self.closed = True
        await self._link.close()


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

"""Detached sandboxes: a small process of their own owns them, so that they outlive the one that asked for them.

`python -m workspace.supervisor BACKEND` reads a spec as JSON from standard input, starts the sandbox, prints one line
of JSON (`{"id": …}` or `{"error": …}`) and stays until the sandbox ends: by its TTL, by `kill`, or by SIGTERM.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from typing import Any

from workspace import errors, registry
from workspace.backend import Backend, Sandbox
from workspace.errors import StartFailed, WorkspaceError, WorkspaceGone
from workspace.link import Link
from workspace.spec import WorkspaceSpec
from workspace.workspace import end_of_life

START_TIMEOUT_S = 120.0


async def create(backend: Backend, spec: WorkspaceSpec) -> Sandbox:
    """Starts a supervisor with a new sandbox and attaches to it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *["-m", "workspace.supervisor", backend.name],
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONSAFEPATH": "1"},
    )
    try:
        said, complained = await asyncio.wait_for(process.communicate(json.dumps(spec.as_json()).encode()), START_TIMEOUT_S)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        raise
    answer = _answer(said, complained.decode("utf-8", "replace").strip())
    return await backend.attach(answer["id"])


def _answer(said: bytes, complained: str) -> dict[str, Any]:
    if not said:
        raise StartFailed(f"the supervisor did not start: {complained[-500:]}")
    answer: dict[str, Any] = json.loads(said)
    if "error" in answer:
        kind = getattr(errors, answer["error"], StartFailed)
        raise kind(*answer["args"])
    return answer


async def _supervise(backend: str, spec: WorkspaceSpec) -> None:
    try:
        sandbox = await registry.load(backend).create(spec)
        link = await Link.open(await sandbox.dial(), sandbox.greeting)
    except WorkspaceError as error:
        _say({"error": type(error).__name__, "args": [arg if isinstance(arg, int) else str(arg) for arg in error.args]})
        return
    stopping: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, _set_once, stopping)
    _say({"id": sandbox.id})
    _detach()
    waiting: list[asyncio.Future[Any]] = [stopping, link.closed]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    if not link.closed.done():
        link.abort(WorkspaceGone("the supervisor was told to stop", "closed"))
    await end_of_life(sandbox, link.closed.result())


def _set_once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def _detach() -> None:
    """Lets go of the caller's pipes and directory."""
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


def main() -> None:
    request = sys.stdin.read()
    if os.fork():  # the caller's child ends at once; nobody has to wait for the supervisor
        os._exit(0)
    asyncio.run(_supervise(sys.argv[1], WorkspaceSpec.model_validate(json.loads(request))))


if __name__ == "__main__":
    main()

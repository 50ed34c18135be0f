"""The engine: one client per address, its calls in a bounded pool of threads, its errors mapped in one place."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import docker
import docker.errors
import requests.exceptions

from workspace.errors import BackendError, BackendUnavailable, WorkspaceError, WorkspaceExists, WorkspaceNotFound, printable

T = TypeVar("T")
CALL_TIMEOUT_S = 120
THREADS = 16

_pool = ThreadPoolExecutor(THREADS, thread_name_prefix="workspace-docker")
_clients: dict[str | None, docker.DockerClient] = {}
_guard = threading.Lock()


def address() -> str | None:
    """What DOCKER_HOST says; None: the engine's usual place."""
    return os.environ.get("DOCKER_HOST") or None


def client(host: str | None) -> docker.DockerClient:
    """The client for an engine; connects lazily. Raises `BackendUnavailable`."""
    path = (host or "").removeprefix("unix://")
    if host and path != host and not os.path.exists(path):
        raise BackendUnavailable(f"no container engine answers at {host}: there is no such socket; start the engine, or set DOCKER_HOST")
    with _guard:
        if host not in _clients:
            with mapped(host):
                options: dict[str, Any] = {"base_url": host} if host else {}
                made = (
                    docker.DockerClient(timeout=CALL_TIMEOUT_S, max_pool_size=THREADS, **options)
                    if host
                    else docker.from_env(timeout=CALL_TIMEOUT_S, max_pool_size=THREADS)
                )
                _clients[host] = made
        return _clients[host]


class mapped:
    """Maps the SDK's errors to ours: the one edge where it is done."""

    def __init__(self, host: str | None) -> None:
        self._host = host

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, WorkspaceError):
            return
        found = translate(error, self._host)
        if found is not None:
            raise found from error


def translate(error: BaseException, host: str | None) -> WorkspaceError | None:
    """Our error for one of the SDK's, None for others."""
    if isinstance(error, docker.errors.APIError):
        text = printable(str(error.explanation or error)[:500])
        status = error.response.status_code if error.response is not None else 0
        if isinstance(error, docker.errors.NotFound):
            return WorkspaceNotFound(f"the engine does not know it: {text}")
        if status == 409 or "is already in use" in text:
            return WorkspaceExists(17, f"the engine refuses: {text}")
        return BackendError(f"the engine refuses: {text}")
    if isinstance(error, (docker.errors.DockerException, requests.exceptions.RequestException)):
        where = host or "its usual socket"
        return BackendUnavailable(
            f"no container engine answers at {where}: {printable(str(error)[:300])}; start dockerd, or set DOCKER_HOST"
        )
    return None


async def call(host: str | None, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Runs a blocking function of the SDK in the pool, with its errors mapped."""

    def run() -> T:
        with mapped(host):
            return function(*args, **kwargs)

    return await asyncio.get_running_loop().run_in_executor(_pool, run)


def blocking(host: str | None, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """The same, without the pool, for code that is in a thread already."""
    with mapped(host):
        return function(*args, **kwargs)


@functools.lru_cache(maxsize=8)
def version(host: str | None) -> dict[str, Any]:
    """What the engine says about itself."""
    found: dict[str, Any] = blocking(host, client(host).version)
    return found


def is_podman(host: str | None) -> bool:
    components = version(host).get("Components") or []
    return any("podman" in str(part.get("Name", "")).lower() for part in components)


def name(host: str | None) -> str:
    """The engine in words."""
    found = version(host)
    return f"{'podman' if is_podman(host) else 'docker'} {found.get('Version')}"

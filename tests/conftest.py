"""Which backends the contract is tried on, and the workspaces that tests get."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from workspace import AsyncWorkspace, BackendError, registry

ENGINES = {"docker": None, "podman": os.environ.get("WORKSPACE_PODMAN", "unix:///run/podman/podman.sock")}
"""Backends that are container engines: name → DOCKER_HOST. Podman is the docker backend on Podman's socket."""
BACKENDS = ["local", *ENGINES]
IMAGE = "workspace-test:latest"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", choices=BACKENDS, help="require this backend; may be given several times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend") or BACKENDS
        metafunc.parametrize("backend", chosen, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests' own state directory; the developer's is not touched."""
    home = tmp_path_factory.mktemp("state") / "home"
    with environment(WORKSPACE_HOME=str(home), WORKSPACE_IMAGE=IMAGE):
        yield home


class environment:
    """Environment variables for a while; loaded backends are forgotten at both ends."""

    def __init__(self, **values: str) -> None:
        self._values = values
        self._before = {name: os.environ.get(name) for name in values}

    def __enter__(self) -> None:
        os.environ.update(self._values)
        registry.forget()

    def __exit__(self, *_: object) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        registry.forget()


def why_not(host: str | None) -> str:
    """Why this engine cannot run the tests; empty where it can."""
    import docker
    import docker.errors

    try:
        client = docker.DockerClient(base_url=host) if host else docker.from_env()
        client.images.get(IMAGE)
        client.close()
    except docker.errors.ImageNotFound:
        return f"the image {IMAGE} is missing; build it with tests/images/build.sh"
    except (docker.errors.DockerException, BackendError) as error:
        return f"no engine answers: {error}"
    return ""


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest, state_home: Path) -> Iterator[str]:
    """The name for `create`. An engine that is absent is a skip with its reason, a failure where it is required (CI, --backend)."""
    name: str = request.param
    if name not in ENGINES:
        yield name
        return
    reason = why_not(ENGINES[name])
    if reason:
        required = os.environ.get("CI") or request.config.getoption("--backend")
        (pytest.fail if required else pytest.skip)(f"{name}: {reason}")
    with environment(**({"DOCKER_HOST": ENGINES[name]} if ENGINES[name] else {})):
        yield "docker"


@pytest.fixture
async def ws(backend: str) -> AsyncIterator[AsyncWorkspace]:
    """A fresh temporary workspace on the backend under test."""
    async with AsyncWorkspace.create(backend) as workspace:
        yield workspace

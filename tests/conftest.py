"""Which backends the contract is tried on, and the workspaces that tests get."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from workspace import AsyncWorkspace, registry

BACKENDS = ["local"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", action="append", choices=BACKENDS, help="require this backend; may be given several times")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend") or BACKENDS
        metafunc.parametrize("backend", chosen, scope="session")


@pytest.fixture(scope="session", autouse=True)
def state_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tests' own state directory; the developer's is not touched."""
    home = tmp_path_factory.mktemp("state") / "home"
    before = os.environ.get("WORKSPACE_HOME")
    os.environ["WORKSPACE_HOME"] = str(home)
    registry.forget()
    yield home
    if before is None:
        del os.environ["WORKSPACE_HOME"]
    else:
        os.environ["WORKSPACE_HOME"] = before
    registry.forget()


@pytest.fixture
async def ws(backend: str) -> AsyncIterator[AsyncWorkspace]:
    """A fresh temporary workspace on the backend under test."""
    async with AsyncWorkspace.create(backend) as workspace:
        yield workspace

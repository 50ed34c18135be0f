"""What a spec refuses, and what the registry and the state directory say when they cannot go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workspace import BackendNotFound, BackendUnavailable, InvalidArgument, Workspace, registry
from workspace.spec import NetworkPolicy, make_spec

OUT_OF_RANGE: list[tuple[dict[str, Any], str, str]] = [
    ({"resources": {"memory_bytes": 32 * 1024**2 - 1}}, "resources.memory_bytes", "33554431"),
    ({"resources": {"cpus": 0}}, "resources.cpus", "0"),
    ({"resources": {"cpus": 4097}}, "resources.cpus", "4097"),
    ({"resources": {"cpus": float("nan")}}, "resources.cpus", "nan"),
    ({"resources": {"pids": 7}}, "resources.pids", "7"),
    ({"resources": {"disk_bytes": 1}}, "resources.disk_bytes", "1"),
    ({"resources": {"open_files": 255}}, "resources.open_files", "255"),
    ({"resources": {"file_bytes": 0}}, "resources.file_bytes", "0"),
    ({"resources": {"tmp_bytes": -1}}, "resources.tmp_bytes", "-1"),
    ({"resources": {"shm_bytes": 5}}, "resources.shm_bytes", "5"),
    ({"resources": {"accept_weaker": ["open_files"]}}, "resources.accept_weaker", "open_files"),
    ({"ttl_s": 0}, "ttl_s", "0"),
    ({"ttl_s": 366 * 86400 + 1}, "ttl_s", "31622401"),
    ({"timeout_s": float("nan")}, "timeout_s", "nan"),
    ({"name": "-x"}, "name", "-x"),
    ({"name": "x\n"}, "name", r"x\\n"),
    ({"name": "a" * 64}, "name", "a" * 60),
    ({"network": "everything"}, "network.mode", "everything"),
    ({"isolation": "maybe"}, "isolation", "maybe"),
    ({"metadata": {"a": 1}}, "metadata.a", "1"),
]


@pytest.mark.parametrize(("fields", "field", "value"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_refused_with_field_and_value(fields: dict[str, Any], field: str, value: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"(?s){field}.*{value}"):
        make_spec(**fields)


@pytest.mark.parametrize("name", ["memory_bytes", "disk_bytes", "file_bytes", "tmp_bytes", "shm_bytes"])
def test_a_limit_that_no_kernel_can_hold_is_refused_with_field_and_value(name: str) -> None:
    with pytest.raises(InvalidArgument, match=name):
        make_spec(resources={name: 2**63})


def test_the_network_may_be_given_by_its_mode() -> None:
    assert make_spec(network="open").network == NetworkPolicy(mode="open")


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "x\0"}, {"A": "\ud800"}, {"A": 1}])
def test_an_environment_that_no_process_can_have_is_refused(env: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="env"):
        make_spec(env=env)


def test_a_name_of_a_variable_that_is_no_text_for_the_kernel_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="env"):
        make_spec(env={"\ud800": "x"})


@pytest.mark.parametrize("detached", [False, True])
def test_a_value_that_is_not_utf8_reaches_the_command(detached: bool) -> None:
    ws = Workspace.create("local", env={"A": "\udcff"}, detached=detached)
    try:
        assert ws.run("printenv A | od -An -tx1").stdout.split() == ["ff", "0a"]
    finally:
        ws.kill()


def test_an_unknown_backend_names_the_nearest_or_all() -> None:
    with pytest.raises(BackendNotFound, match="did you mean 'local'"):
        registry.load("lcal")
    with pytest.raises(BackendNotFound, match="installed: .*local"):
        registry.load("zzz")


@pytest.fixture
def backend_without_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed distribution whose backend imports what is not there."""
    info = tmp_path / "halfthere-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: halfthere\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[workspace.backends]\nhalfthere = halfthere_backend:Backend\n")
    (tmp_path / "halfthere_backend.py").write_text("import a_module_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry.forget()
    yield "halfthere"
    registry.forget()


def test_a_backend_whose_extra_is_missing_says_what_to_install(backend_without_its_extra: str) -> None:
    assert backend_without_its_extra in registry.names()
    with pytest.raises(BackendNotFound, match=r"a_module_nobody_has.*pip install 'workspace-runtime\[halfthere\]'"):
        registry.load(backend_without_its_extra)


def test_a_backend_whose_extra_is_missing_does_not_hide_the_others(backend_without_its_extra: str) -> None:
    with Workspace.create("local") as ws:
        assert ws.id in [record.id for record in Workspace.list()]


@pytest.mark.parametrize("where", ["/proc/nowhere", "below-a-file", "a-file"])
def test_a_state_directory_that_cannot_be_made_is_backend_unavailable(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    home = {"below-a-file": str(tmp_path / "file" / "below"), "a-file": str(tmp_path / "file")}.get(where, where)
    monkeypatch.setenv("WORKSPACE_HOME", home)
    registry.forget()
    try:
        with pytest.raises(BackendUnavailable, match="WORKSPACE_HOME"):
            Workspace.create("local")
    finally:
        registry.forget()

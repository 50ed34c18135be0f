"""Settings: where they come from, which wins, what a mistake is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from workspace import BackendNotFound, InvalidArgument, Resources, SettingsError, Workspace, registry, settings
from workspace.opening import resolve
from workspace.spec import make_spec

FILE = """
backend = "local"
timeout_s = 5
image = "common"

[profiles.prod]
backend = "docker"
image = "python:3.12-slim"
resources = { memory_bytes = 1073741824 }

[profiles.tight]
timeout_s = 1
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with no settings above it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("WORKSPACE_BACKEND", "WORKSPACE_PROFILE", "WORKSPACE_IMAGE"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_without_a_file_everything_is_default(project: Path) -> None:
    found = settings.load()
    assert (found.backend, found.fields) == ("local", {"options": {}})


def test_a_profile_adds_to_what_is_common(project: Path) -> None:
    (project / "workspace.toml").write_text(FILE)
    assert settings.load().fields["timeout_s"] == 5
    found = settings.load("prod")
    assert found.backend == "docker"
    assert found.fields["options"]["image"] == "python:3.12-slim"
    assert found.fields["timeout_s"] == 5
    assert settings.load("tight").fields["timeout_s"] == 1


def test_the_file_is_found_from_below_and_in_pyproject(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "pyproject.toml").write_text("[tool.workspace]\ntimeout_s = 7\n")
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert settings.load().fields["timeout_s"] == 7


def test_the_environment_wins_over_the_file_and_arguments_over_both(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "workspace.toml").write_text(FILE)
    monkeypatch.setenv("WORKSPACE_PROFILE", "prod")
    monkeypatch.setenv("WORKSPACE_IMAGE", "other")
    assert resolve(None, None, None, {})[0] == "docker"
    assert resolve(None, None, None, {})[1].options["image"] == "other"
    monkeypatch.setenv("WORKSPACE_BACKEND", "local")
    assert resolve(None, None, None, {})[0] == "local"
    assert resolve("docker", None, None, {"image": "mine", "timeout_s": 9})[1].options["image"] == "mine"


def test_options_of_other_backends_are_left_out_so_that_one_flag_switches(project: Path) -> None:
    (project / "workspace.toml").write_text(FILE)
    assert "image" not in resolve("local", "prod", None, {})[1].options
    with Workspace.create("local", profile="prod") as ws:
        assert ws.run("echo ok").stdout == "ok\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bakend = 'local'", "did you mean 'backend'"),
        ("[profiles.prod]\nimgae = 'x'", "did you mean 'image'"),
        ("backend = ", "workspace.toml"),
        ("timeout_s = -1", "timeout_s"),
        ("resources = { memory = 1 }", "resources.memory"),
    ],
)
def test_a_mistake_in_the_file_is_named(project: Path, text: str, said: str) -> None:
    (project / "workspace.toml").write_text(text)
    with pytest.raises(SettingsError, match=said):
        resolve(None, "prod" if "profiles" in text else None, None, {})


def test_an_unknown_profile_names_the_nearest(project: Path) -> None:
    (project / "workspace.toml").write_text(FILE)
    with pytest.raises(SettingsError, match="did you mean 'prod'"):
        settings.load("prd")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "Not A Name"}, "name"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"env": {"A=B": "x"}}, "env"),
        ({"env": {"A": "x\0y"}}, "env"),
        ({"network": "everything"}, "network"),
        ({"resources": {"memory_bytes": 1}}, "memory_bytes"),
        ({"resources": {"pids": 0}}, "pids"),
        ({"isolation": "maybe"}, "isolation"),
    ],
)
def test_a_spec_out_of_range_names_field_and_value(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        make_spec(**fields)


def test_unknown_and_missing_backends_say_what_to_do() -> None:
    with pytest.raises(BackendNotFound, match="did you mean 'docker'"):
        registry.load("dokcer")
    with pytest.raises(BackendNotFound, match=r"workspace-runtime\[e2b\]"):
        registry.load("e2b")


def test_an_unknown_keyword_of_create_names_the_nearest() -> None:
    with pytest.raises(SettingsError, match="did you mean 'timeout_s'"):
        Workspace.create(timeout=5)


def test_spec_and_fields_exclude_each_other() -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        Workspace.create("local", spec=make_spec(), resources=Resources())


@pytest.mark.parametrize("home", ["/proc/nowhere", "/dev/null/below"])
def test_a_state_directory_that_cannot_be_used_is_a_clear_error(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSPACE_HOME", home)
    registry.forget()
    try:
        with pytest.raises(Exception, match="WORKSPACE_HOME"):
            Workspace.create("local")
    finally:
        monkeypatch.undo()
        registry.forget()


@pytest.mark.parametrize(
    "text",
    ["backend = 5", "profile = 3", 'profile = ["prod"]', "options = 5", "profiles = 3", "[profiles]\nprod = 1", 'env = "A=1"'],
)
def test_a_value_of_the_wrong_type_is_an_error_that_names_the_file(project: Path, text: str) -> None:
    (project / "workspace.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"workspace\.toml"):
        resolve(None, "prod" if text.startswith(("profiles", "[profiles")) else None, None, {})


@pytest.mark.parametrize("text", ["tool = 5", "[tool]\nworkspace = 5"])
def test_a_table_that_is_none_in_pyproject_is_a_settings_error(project: Path, text: str) -> None:
    (project / "pyproject.toml").write_text(text)
    with pytest.raises(SettingsError, match=r"pyproject\.toml"):
        resolve(None, None, None, {})


def test_a_mistake_in_the_file_is_named_although_arguments_are_given(project: Path) -> None:
    (project / "workspace.toml").write_text("timeout_s = -1")
    with pytest.raises(SettingsError, match=r"workspace\.toml.*timeout_s"):
        resolve(None, None, None, {"name": "x"})


def test_the_file_may_choose_the_profile_and_the_environment_another(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "workspace.toml").write_text('profile = "tight"\n' + FILE)
    assert settings.load().fields["timeout_s"] == 1
    monkeypatch.setenv("WORKSPACE_PROFILE", "prod")
    assert (settings.load().backend, settings.load().fields["timeout_s"]) == ("docker", 5)
    assert settings.load("tight").fields["timeout_s"] == 1


def test_a_profile_without_a_file_is_a_settings_error(project: Path) -> None:
    with pytest.raises(SettingsError, match="'prod'"):
        settings.load("prod")


def test_a_working_directory_that_was_removed_is_no_crash(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        assert resolve("local", None, None, {})[0] == "local"
    finally:
        monkeypatch.chdir(project)

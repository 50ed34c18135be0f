"""Settings: `workspace.toml`, `[tool.workspace]` in pyproject.toml, environment variables. The only reader of these.

The nearest `workspace.toml` (or pyproject.toml with a `[tool.workspace]` table) at or above the working directory is
read. Top-level keys are common to all profiles, `[profiles.NAME]` adds to them::

    backend = "local"
    [profiles.prod]
    backend = "docker"
    image = "python:3.12-slim"
    resources = { memory_bytes = 2147483648 }

Later wins: common keys, the profile, environment variables (`WORKSPACE_BACKEND`, `WORKSPACE_IMAGE`), arguments in code.
Options that the chosen backend does not know (`image` for local) are other backends' and left out, so that one flag
switches the environment.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workspace.errors import SettingsError
from workspace.spec import WorkspaceSpec

SPEC_KEYS = frozenset(WorkspaceSpec.model_fields) - {"options"}
COMMON_KEYS = SPEC_KEYS | {"backend", "options", "profile", "profiles"}
OPTION_KEYS = frozenset(
    {"image", "toolchains", "runtime", "user", "read_only_root", "template", "domain", "api_url", "sandbox_url", "docker_host"}
)
"""Options of single backends that may stand at the top of a profile; each backend checks its own."""


@dataclass(frozen=True)
class Settings:
    """What a profile comes to: a backend's name and fields for `WorkspaceSpec`."""

    backend: str = "local"
    fields: dict[str, Any] = field(default_factory=dict)
    source: str = "defaults"


def state_home() -> Path:
    """Where local state is kept."""
    if os.environ.get("WORKSPACE_HOME"):
        return Path(os.environ["WORKSPACE_HOME"]).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser().absolute() / "workspace"


def uid_range() -> str | None:
    """`FIRST-LAST`: the host uids that sandboxes may have where we are root."""
    return os.environ.get("WORKSPACE_UID_RANGE")


def find_file(start: Path | None = None) -> tuple[Path, dict[str, Any]] | None:
    """The settings file that applies at `start` (default: the working directory) and its contents."""
    try:
        folder = (start or Path.cwd()).absolute()
    except FileNotFoundError:  # the working directory was removed: nothing applies there
        return None
    for candidate in (folder, *folder.parents):
        own = candidate / "workspace.toml"
        if own.is_file():
            return own, _read(own)
        project = candidate / "pyproject.toml"
        if project.is_file():
            tool = _table(_read(project).get("tool", {}), f"{project}, tool")
            if "workspace" in tool:
                return project, _table(tool["workspace"], f"{project}, tool.workspace")
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"{path}: {error}") from error


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise SettingsError(f"{where} has to be a table, not {value!r:.60}")
    return value


def _word(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise SettingsError(f"{where} has to be text, not {value!r:.60}")
    return value


def _check_keys(table: dict[str, Any], where: str) -> None:
    known = COMMON_KEYS | OPTION_KEYS
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(known))}"
            raise SettingsError(f"{where}: unknown key {key!r}{hint}")


def _profile(table: dict[str, Any], name: str | None, where: str) -> dict[str, Any]:
    profiles = _table(table.get("profiles", {}), f"{where}, profiles")
    merged = {key: value for key, value in table.items() if key not in ("profiles", "profile")}
    if name is None:
        return merged
    if name not in profiles:
        near = difflib.get_close_matches(name, profiles, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sorted(profiles)) or 'none'}"
        raise SettingsError(f"{where}: no profile {name!r}; {hint}")
    _check_keys(_table(profiles[name], f"{where}, profile {name!r}"), f"{where}, profile {name!r}")
    return {key: _joined(merged.get(key), value) for key, value in {**merged, **profiles[name]}.items()}


def _joined(common: Any, own: Any) -> Any:
    """Tables (`env`, `resources`, …) add up, anything else of the profile replaces what is common."""
    return {**common, **own} if isinstance(common, dict) and isinstance(own, dict) else own


def load(profile: str | None = None, start: Path | None = None) -> Settings:
    """The settings in force for `profile` (default: `WORKSPACE_PROFILE`, else the file's `profile` key, else none)."""
    found = find_file(start)
    path, table = found if found else (None, {})
    where = str(path) if path else "no settings file"
    _check_keys(table, where)
    name = profile or os.environ.get("WORKSPACE_PROFILE") or table.get("profile")
    if name is not None:
        _word(name, f"{where}, profile")
        if path is None:
            raise SettingsError(f"profile {name!r}: there is no workspace.toml and no [tool.workspace] here or above")
    merged = _profile(table, name, where)
    _table(merged.get("options", {}), f"{where}, options")
    backend = os.environ.get("WORKSPACE_BACKEND") or _word(merged.get("backend", "local"), f"{where}, backend")
    merged.pop("backend", None)
    fields = split_options(merged)
    if os.environ.get("WORKSPACE_IMAGE"):
        fields["options"]["image"] = os.environ["WORKSPACE_IMAGE"]
    return Settings(backend, fields, where)


def split_options(fields: dict[str, Any]) -> dict[str, Any]:
    """Moves keys that only one backend understands into `options`."""
    spec = {key: value for key, value in fields.items() if key in SPEC_KEYS}
    options = {key: value for key, value in fields.items() if key not in SPEC_KEYS and key != "options"}
    return {**spec, "options": {**fields.get("options", {}), **options}}


def check_argument_keys(fields: dict[str, Any]) -> None:
    """Raises `SettingsError` for a keyword that neither the spec nor any backend knows."""
    _check_keys(fields, "create()")

"""What a caller asks of a workspace, validated: `WorkspaceSpec`, `Resources`, `NetworkPolicy`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from workspace.errors import InvalidArgument

MIB = 1024 * 1024
GIB = 1024 * MIB
MOST = 2**60
"""More than any kernel counts in; keeps limits apart from its word for unlimited."""
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_ENV_NAME = re.compile(r"[^=\0]+")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Frozen):
    """Limits of one workspace. Each is enforced by the kernel or the start is refused.

    A host that cannot enforce a limit you set refuses it with `NotSupported`, unless its name is in `accept_weaker`
    (`info().limits` tells what is in force). Limits you do not set use these defaults in the strongest form the
    host has.
    """

    memory_bytes: Annotated[int, Field(ge=32 * MIB, le=MOST)] = 4 * GIB
    """Memory of all processes together with what lies in /tmp and /dev/shm; no swap."""
    cpus: Annotated[float, Field(gt=0, le=4096)] | None = None
    """CPU time per second of wall time; None: all of the host's."""
    pids: Annotated[int, Field(ge=8, le=4_194_304)] = 512
    """Processes and threads."""
    disk_bytes: Annotated[int, Field(ge=16 * MIB, le=MOST)] = 10 * GIB
    """What /workspace and /home/user hold together."""
    open_files: Annotated[int, Field(ge=256, le=1_048_576)] = 4096
    """Descriptors of one process."""
    file_bytes: Annotated[int, Field(ge=MIB, le=MOST)] = 10 * GIB
    """Size of one file."""
    tmp_bytes: Annotated[int, Field(ge=MIB, le=MOST)] = GIB
    """Size of /tmp, which lies in memory."""
    shm_bytes: Annotated[int, Field(ge=MIB, le=MOST)] = 64 * MIB
    """Size of /dev/shm, which lies in memory."""
    accept_weaker: frozenset[Literal["memory_bytes", "cpus", "pids", "disk_bytes"]] = frozenset()
    """Names of limits that may be enforced in a weaker form (per process instead of together) or not at all."""


class NetworkPolicy(_Frozen):
    """What a workspace may reach. `mode="none"` (default): nothing but itself. `"open"`: everything its host can route."""

    mode: Literal["none", "open"] = "none"


class WorkspaceSpec(_Frozen):
    """Everything that decides what a new workspace is like."""

    name: str | None = None
    """Unique among the workspaces of a backend: lower case letters, digits, `.`, `_`, `-`."""
    keep: bool = False
    """The files outlive `with` and `close()`; a name implies it."""
    detached: bool = False
    """The sandbox outlives the process that creates it."""
    isolation: Literal["required", "none"] = "required"
    """`none` runs code as the calling user, without any wall. Never use it for code you have not read."""
    env: dict[str, str] = Field(default_factory=dict)
    """Added to the clean environment of every command."""
    network: NetworkPolicy = NetworkPolicy()
    resources: Resources = Resources()
    ttl_s: Annotated[float, Field(gt=0, le=366 * 86400)] | None = 86400.0
    """Seconds after the last use at which the sandbox ends; None: never."""
    timeout_s: Annotated[float, Field(gt=0)] | None = None
    """Default time limit of a command in seconds; None: none."""
    metadata: dict[str, str] = Field(default_factory=dict)
    """Yours, shown by `list` and `info`. Not for secrets."""
    options: dict[str, Any] = Field(default_factory=dict)
    """What only one backend understands; it validates them."""

    @field_validator("name")
    @classmethod
    def _check_name(cls, value: str | None) -> str | None:
        if value is not None and not NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} is not a name: 1 to 63 lower case letters, digits, '.', '_' or '-', starting with a letter or digit"
            )
        return value

    @field_validator("env")
    @classmethod
    def _check_env(cls, value: dict[str, str]) -> dict[str, str]:
        return check_env(value)

    @field_validator("network", mode="before")
    @classmethod
    def _network_by_mode(cls, value: object) -> object:
        return {"mode": value} if isinstance(value, str) else value

    def as_json(self) -> dict[str, Any]:
        """What was asked for, and only that: a default that is written down would count as a demand when it is read."""
        return self.model_dump(mode="json", exclude_unset=True)

    @property
    def kept(self) -> bool:
        """Whether the files stay until somebody removes them; those of others go when their time is over."""
        return self.keep or self.name is not None

    @property
    def persistent(self) -> bool:
        """Whether the files stay after `with` or `close()`."""
        return self.kept or self.detached


def _stands_for_no_byte(text: str) -> bool:
    """A lone surrogate other than those that PEP 383 has for bytes which are not UTF-8."""
    return any(0xD800 <= ord(char) < 0xDC80 or 0xDCFF < ord(char) < 0xE000 for char in text)


def check_env(env: dict[str, str]) -> dict[str, str]:
    """`env` unchanged; raises `ValueError` for a name or value that no process can be given."""
    for name, value in env.items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name) or _stands_for_no_byte(name):
            raise ValueError(f"{name!r} is not a name for an environment variable: no '=', no NUL, not empty")
        if not isinstance(value, str) or "\0" in value or _stands_for_no_byte(value):
            raise ValueError(f"environment variable {name!r} must be text without NUL, not {value!r:.80}")
    return env


def make_spec(**fields: Any) -> WorkspaceSpec:
    """A validated spec; raises `InvalidArgument` that names each wrong field and its value."""
    try:
        return WorkspaceSpec(**fields)
    except ValidationError as error:
        raise InvalidArgument(explain(error)) from None


def explain(error: ValidationError) -> str:
    """Pydantic's findings in one line each: where, what is wrong, the value."""
    lines = []
    for finding in error.errors(include_url=False):
        where = ".".join(str(part) for part in finding["loc"])
        lines.append(f"{where}: {finding['msg']} (got {finding['input']!r:.120})")
    return "; ".join(lines)

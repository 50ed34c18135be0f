"""What the Docker backend understands beyond the common spec."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from workspace.errors import InvalidArgument, NotSupported
from workspace.spec import Resources, explain

DEFAULT_IMAGE = "python:3.12-slim"
REFUSED = ("disk_bytes",)


class DockerOptions(BaseModel):
    """`options` of a spec for the Docker backend."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image: str = DEFAULT_IMAGE
    """Any image with Python 3.8 or newer; pulled where it is missing."""
    runtime: str | None = None
    """The engine's runtime: `runsc`, `crun`, `kata`, …; None: the engine's default."""
    user: Literal["user", "root"] = "user"
    """Who commands run as. `root` is root inside these walls: few capabilities, no new ones, the same filters."""
    read_only_root: bool = False
    """Only /workspace, /home/user, /tmp and /dev/shm may be written."""
    docker_host: str | None = None
    """The engine's address, as in DOCKER_HOST; Podman's Docker-compatible socket serves as well."""

    @classmethod
    def parse(cls, values: Mapping[str, object]) -> DockerOptions:
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise InvalidArgument(f"options of the docker backend: {explain(error)}") from None


def check(resources: Resources) -> None:
    """Raises `NotSupported` for a limit that was asked for and that the engine cannot hold."""
    for name in REFUSED:
        if name in resources.model_fields_set and name not in resources.accept_weaker:
            raise NotSupported(
                f"{name}={getattr(resources, name)} is not enforced by the engine's volumes; "
                f"accept that with Resources(accept_weaker={{{name!r}}})"
            )

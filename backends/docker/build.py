"""Images made from a Dockerfile, or from a base image and packages."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docker.errors

from workspace.errors import BackendError, FileMissing, InvalidArgument, printable

from . import engine
from .images import tar

PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+:=~<>!\[\],-]*")
BASE = re.compile(r"[A-Za-z0-9][\w./:@-]*")
INSTALL = (
    "if command -v apt-get >/dev/null; then apt-get update && apt-get install -y --no-install-recommends {0} && "
    "rm -rf /var/lib/apt/lists/*; elif command -v apk >/dev/null; then apk add --no-cache {0}; "
    "elif command -v dnf >/dev/null; then dnf install -y {0}; else echo no package manager is known here >&2; exit 1; fi"
)
Progress = Callable[[str], None]


def dockerfile(base: str, packages: list[str], pip: list[str]) -> str:
    """A Dockerfile for `base` with packages of its distribution and of Python; raises `InvalidArgument` for odd names."""
    if not BASE.fullmatch(base):
        raise InvalidArgument(f"{base!r} is not the name of an image")
    for name in [*packages, *pip]:
        if not PACKAGE.fullmatch(name):
            raise InvalidArgument(f"{name!r} is not the name of a package")
    lines = [f"FROM {base}"]
    if packages:
        lines.append("RUN " + INSTALL.format(" ".join(packages)))
    if pip:
        lines.append("RUN " + json.dumps(["python3", "-m", "pip", "install", "--no-cache-dir", *pip]))
    return "\n".join(lines) + "\n"


def from_text(host: str | None, tag: str, text: str, progress: Progress) -> str:
    """Builds from a Dockerfile without a context; the new image's id."""
    archive = io.BytesIO(tar({"Dockerfile": text.encode()}, 0o644))
    return _build(host, progress, fileobj=archive, custom_context=True, tag=tag, rm=True, forcerm=True, decode=True)


def from_folder(host: str | None, tag: str, folder: Path, file: str | None, progress: Progress) -> str:
    """Builds from a directory with a Dockerfile in it; the new image's id."""
    if not (folder / (file or "Dockerfile")).is_file():
        raise FileMissing(2, "there is no Dockerfile", str(folder / (file or "Dockerfile")))
    return _build(host, progress, path=str(folder), dockerfile=file, tag=tag, rm=True, forcerm=True, decode=True)


def _build(host: str | None, progress: Progress, **options: Any) -> str:
    api = engine.client(host).api
    try:
        for step in api.build(**options):
            if "error" in step:
                raise BackendError(f"the image {options['tag']!r} cannot be built: {printable(str(step['error'])[:500])}")
            line = printable(str(step.get("stream") or step.get("status") or "").strip())
            if line:
                progress(line)
        return str(api.inspect_image(options["tag"])["Id"])
    except docker.errors.DockerException as error:
        raise engine.translate(error, host) or error from error

"""`workspace image pull` and `workspace image build`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from workspace import registry, settings
from workspace.backend import ImageSource, Imaging
from workspace.cli import options
from workspace.cli.console import errors
from workspace.errors import InvalidArgument, NotSupported

app = typer.Typer(help="Images, for backends that have them.", no_args_is_help=True, rich_markup_mode=None)


def _backend(name: str | None) -> Imaging:
    chosen = name or settings.load().backend
    found = registry.load("docker" if name is None and chosen == "local" else chosen)
    if not isinstance(found, Imaging):
        raise NotSupported(f"the backend {chosen!r} has no images")
    return found


def _tell(line: str) -> None:
    errors.print(line, markup=False, soft_wrap=True)


@app.command("pull")
def pull(image: str, backend: options.Backend = None) -> None:
    """Pull an image, with credentials from Docker's own configuration."""
    asyncio.run(_backend(backend).pull_image(image, _tell))


@app.command("build")
def build(
    context: Annotated[Path | None, typer.Argument(help="Directory with a Dockerfile.")] = None,
    tag: Annotated[str, typer.Option("--tag", "-t", help="Name of the new image.")] = "workspace:latest",
    file: Annotated[str | None, typer.Option("--file", "-f", help="Name of the Dockerfile in the directory.")] = None,
    base: Annotated[str | None, typer.Option("--from", help="Base image, instead of a Dockerfile.")] = None,
    package: Annotated[list[str] | None, typer.Option("--package", help="Package of the base's distribution.")] = None,
    pip: Annotated[list[str] | None, typer.Option("--pip", help="Python package.")] = None,
    backend: options.Backend = None,
) -> None:
    """Build an image from a Dockerfile, or from a base image and packages, and print its id."""
    if (context is None) == (base is None):
        raise InvalidArgument("give either a directory with a Dockerfile or --from IMAGE")
    source = ImageSource(context, file, base, tuple(package or ()), tuple(pip or ()))
    typer.echo(asyncio.run(_backend(backend).build_image(tag, source, _tell)))

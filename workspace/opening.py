"""How a workspace comes to be: what was asked for, put together, and the object that is awaited for it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from workspace import registry, settings
from workspace.errors import InvalidArgument, SettingsError
from workspace.spec import WorkspaceSpec, make_spec

if TYPE_CHECKING:
    from workspace.workspace import AsyncWorkspace


class Opening:
    """A workspace on its way: `await` it, or use it with `async with`."""

    def __init__(self, open_it: Callable[[], Coroutine[Any, Any, AsyncWorkspace]]) -> None:
        self._open = open_it
        self._workspace: AsyncWorkspace | None = None

    def __await__(self) -> Generator[Any, None, AsyncWorkspace]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncWorkspace:
        self._workspace = await self._open()
        return self._workspace

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._workspace is not None:
            await self._workspace.leave()


def resolve(backend: str | None, profile: str | None, spec: WorkspaceSpec | None, given: dict[str, Any]) -> tuple[str, WorkspaceSpec]:
    """The backend's name and the spec that arguments, profile, environment and defaults come to."""
    if spec is not None:
        if given:
            raise InvalidArgument(f"give either spec= or single fields, not both: {', '.join(sorted(given))}")
        return backend or settings.load(profile).backend, spec
    settings.check_argument_keys(given)
    found = settings.load(profile)
    wanted = settings.split_options(given)
    chosen = backend or found.backend
    known = registry.load(chosen).option_names
    options = {name: value for name, value in found.fields.get("options", {}).items() if name in known}
    try:
        make_spec(**found.fields)
    except InvalidArgument as error:
        raise SettingsError(f"{found.source}: {error}") from None
    return chosen, make_spec(**{**found.fields, **wanted, "options": {**options, **wanted["options"]}})

"""What a backend declares it cannot do is skipped, and nothing else."""

from __future__ import annotations

import pytest

from workspace import AsyncWorkspace, Capabilities, registry


async def capabilities(backend: str) -> Capabilities:
    """What the backend declares on this machine."""
    return await registry.load(backend).capabilities()


async def needs_hard(ws_or_backend: AsyncWorkspace | str, limit: str) -> None:
    """Skips where the backend declares that it does not enforce `limit` for all processes together."""
    backend = ws_or_backend if isinstance(ws_or_backend, str) else ws_or_backend.backend
    how = (await capabilities(backend)).limits[limit]
    if how != "hard":
        pytest.skip(f"{backend} declares {limit} as {how!r}")

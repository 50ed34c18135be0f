"""`isolation="none"`: asked for by name, told loudly, and still tidy."""

from __future__ import annotations

import os

import pytest
from outside import appears, new_marker, vanishes

from workspace import AsyncWorkspace, CommandTimeout, IsolationWarning


async def unisolated() -> AsyncWorkspace:
    with pytest.warns(IsolationWarning, match="NO ISOLATION"):
        return await AsyncWorkspace.create("local", isolation="none")


async def test_it_runs_as_the_caller_and_claims_no_wall() -> None:
    async with await unisolated() as ws:
        await ws.files.write("a/b", "hello")
        assert (await ws.run("cat a/b; id -u")).stdout == f"hello{os.getuid()}\n"
        assert await ws.files.read_text("/workspace/a/b") == "hello"
        info = await ws.info()
        assert not info.walls
        assert not info.limits
        assert "no isolation" in info.sandbox.environment


async def test_a_timeout_and_the_end_leave_no_process() -> None:
    marker, other = new_marker(), new_marker()
    async with await unisolated() as ws:
        with pytest.raises(CommandTimeout):
            await ws.run(f"setsid sleep {marker} & sleep {marker}", timeout_s=0.5)
        assert await vanishes(marker)
        await ws.run(f"setsid nohup sleep {other} >/dev/null 2>&1 & true")
        assert await appears(other)
    assert await vanishes(other)


async def test_two_of_them_do_not_kill_each_other() -> None:
    marker = new_marker()
    async with await unisolated() as one:
        handle = await one.commands.start(f"sleep {marker}")
        async with await unisolated() as two:
            with pytest.raises(CommandTimeout):
                await two.run("sleep 60", timeout_s=0.2)
        assert await appears(marker)
        assert handle.running

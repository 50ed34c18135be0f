"""The life of a workspace: what stays, what goes, and what happens when somebody else ends it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from outside import appears, first_process_of_sandbox, host_processes, new_marker, until, vanishes

from workspace import AsyncWorkspace, InvalidArgument, WorkspaceClosed, WorkspaceExists, WorkspaceGone, WorkspaceNotFound, registry

HOST = """
import asyncio, os
from workspace import AsyncWorkspace
async def main():
    ws = await AsyncWorkspace.create(os.environ["T_BACKEND"], keep=os.environ["T_KEEP"] == "1")
    await ws.files.write("kept", "x")
    await ws.commands.start(["sleep", os.environ["T_MARKER"]])
    await ws.run("setsid sleep $M & ( nohup sleep $M & ) ", env={"M": os.environ["T_MARKER"]})
    print(ws.id, flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def start_host(backend: str, marker: str, keep: bool = False) -> tuple[subprocess.Popen[str], str]:
    """Another program that makes a workspace, in which `marker` sleeps, and does not end by itself; and the workspace's id."""
    env = {**os.environ, "T_BACKEND": backend, "T_MARKER": marker, "T_KEEP": str(int(keep))}
    host = subprocess.Popen([sys.executable, "-c", HOST], env=env, stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    return host, host.stdout.readline().strip()


def end(host: subprocess.Popen[str], number: int) -> None:
    host.send_signal(number)
    host.wait(10)
    assert host.stdout is not None
    host.stdout.close()


async def is_known(id: str) -> bool:
    return id in {record.id for record in await AsyncWorkspace.list()}


async def stays_unknown(id: str, within_s: float = 5.0) -> bool:
    deadline = time.monotonic() + within_s
    while await is_known(id):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def kill_from_outside(marker: str) -> None:
    """SIGKILL to process 1 of the sandbox in which `marker` sleeps."""
    os.kill(first_process_of_sandbox(host_processes(marker)[0]), signal.SIGKILL)


async def descriptors_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# Closing and connecting


async def test_files_are_as_they_were_after_close_and_connect(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend, keep=True, env={"KEPT": "yes"}, metadata={"who": "me"})
    try:
        await ws.files.write("tool", "#!/bin/sh\necho tool\n", mode=0o755)
        await ws.files.symlink("link", "tool")
        await ws.run("mkdir -p ~/.local/bin && cp tool ~/.local/bin/mytool && touch -d @1.5 tool")
        before = await ws.files.list(depth=None)
        await ws.close()
        ws = await AsyncWorkspace.connect(ws.id)
        assert [entry[:5] for entry in await ws.files.list(depth=None)] == [entry[:5] for entry in before]
        assert (await ws.run("mytool; echo $KEPT; ./link")).stdout == "tool\nyes\ntool\n"
        (record,) = [record for record in await AsyncWorkspace.list() if record.id == ws.id]
        assert record.spec.metadata == {"who": "me"}
        assert record.running
    finally:
        await ws.kill()


async def test_files_are_kept_when_close_follows_a_write_at_once(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend, keep=True)
    try:
        for number in range(3):
            await ws.files.write(f"f{number}", os.urandom(300_000))
            await ws.run(f"head -c 300000 /dev/urandom >g{number}; cat f{number} g{number} | sha256sum >sum{number}")
            await ws.close()
            ws = await AsyncWorkspace.connect(ws.id)
            assert (await ws.run(f"cat f{number} g{number} | sha256sum | cmp - sum{number}")).ok
    finally:
        await ws.kill()


async def test_close_ends_every_process(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend, keep=True)
    try:
        await ws.commands.start(["sleep", marker])
        await ws.run(f"setsid sleep {marker} & ( ( nohup sleep {marker} & ) & ) ; trap '' TERM; sleep {marker} &")
        assert await appears(marker, 4)
        await ws.close()
        assert host_processes(marker) == []
        assert not ws.alive
    finally:
        await ws.kill()


async def test_kill_removes_everything(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend, keep=True)
    await ws.files.write("f", "x")
    await ws.run(f"mkdir -p shut/d; chmod 0 shut; setsid sleep {marker} &")
    await ws.kill()
    assert host_processes(marker) == []
    assert not await is_known(ws.id)
    with pytest.raises(WorkspaceNotFound):
        await AsyncWorkspace.connect(ws.id)
    await ws.kill()
    await ws.close()


async def test_kill_after_close_removes_the_files(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend, keep=True)
    await ws.close()
    assert await is_known(ws.id)
    await ws.kill()
    assert not await is_known(ws.id)


async def test_kill_through_a_second_handle_removes_everything(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend, keep=True)
    await ws.commands.start(["sleep", marker])
    other = await AsyncWorkspace.connect(ws.id)
    await other.kill()
    assert await vanishes(marker)
    assert await until(lambda: not ws.alive)
    with pytest.raises(WorkspaceGone):
        await asyncio.wait_for(ws.run("true"), 5)
    assert await stays_unknown(ws.id)
    await ws.kill()


async def test_kill_through_a_second_handle_removes_a_temporary_one(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend)
    other = await AsyncWorkspace.connect(ws.id)
    await other.kill()
    assert await stays_unknown(ws.id)
    await ws.kill()


async def test_leaving_with_removes_a_temporary_workspace_and_keeps_a_named_one(backend: str) -> None:
    async with AsyncWorkspace.create(backend) as temporary:
        pass
    assert not await is_known(temporary.id)
    name = f"t-{new_marker()}"
    async with AsyncWorkspace.create(backend, name=name) as named:
        await named.files.write("f", "x")
    async with AsyncWorkspace.connect(name) as again:
        assert again.id == named.id
        assert again.name == name
        assert await again.files.read("f") == b"x"
        with pytest.raises(WorkspaceExists):
            await AsyncWorkspace.create(backend, name=name)
        await again.kill()
    await (await AsyncWorkspace.create(backend, name=name)).kill()


async def test_an_error_in_the_with_block_still_removes(backend: str) -> None:
    with pytest.raises(RuntimeError, match="mine"):
        async with AsyncWorkspace.create(backend) as ws:
            raise RuntimeError("mine")
    assert not await is_known(ws.id)


async def test_a_closed_handle_says_so(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend)
    await ws.kill()
    for attempt in (ws.run("true"), ws.files.read("x"), ws.metrics(), ws.commands.list(), ws.files.write("x", "y"), ws.ping()):
        with pytest.raises(WorkspaceClosed):
            await asyncio.wait_for(attempt, 5)
    assert not ws.alive
    assert "ended" in repr(ws)


async def test_closing_while_commands_run_ends_them_with_an_error(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend)
    running = [asyncio.ensure_future(ws.run("sleep 60")) for _ in range(5)]
    handle = await ws.commands.start("sleep 60")
    await ws.kill()
    for task in [*running, asyncio.ensure_future(handle.wait())]:
        with pytest.raises((WorkspaceGone, WorkspaceClosed)):
            await asyncio.wait_for(task, 5)


async def test_two_closes_and_kills_at_once(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend)
    await asyncio.wait_for(asyncio.gather(ws.kill(), ws.close(), ws.kill(), ws.close()), 20)
    assert not await is_known(ws.id)


async def test_cancelling_a_kill_leaves_no_process_after_a_second_one(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend)
    await ws.commands.start(["sleep", marker])
    killing = asyncio.ensure_future(ws.kill())
    await asyncio.sleep(0)
    killing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await killing
    await asyncio.wait_for(ws.kill(), 10)
    assert await vanishes(marker)
    assert not await is_known(ws.id)


# Two handles


async def test_two_handles_on_one_workspace_both_work(ws: AsyncWorkspace) -> None:
    other = await AsyncWorkspace.connect(ws.id)
    await asyncio.gather(ws.files.write("a", "1"), other.files.write("b", "2"))
    assert (await ws.run("cat a b")).stdout == (await other.run("cat a b")).stdout == "12"
    results = await asyncio.gather(*(handle.run(f"echo {number}") for number, handle in enumerate([ws, other] * 20)))
    assert [result.stdout for result in results] == [f"{number}\n" for number in range(40)]
    await other.close()
    assert ws.alive
    assert not other.alive
    assert (await ws.run("cat a")).stdout == "1"


async def test_leaving_a_second_handle_does_not_end_the_workspace(ws: AsyncWorkspace) -> None:
    for _ in range(3):
        async with AsyncWorkspace.connect(ws.id) as other:
            assert other.id == ws.id
            assert not (await other.info()).owned
    assert (await ws.run("echo on")).stdout == "on\n"


async def test_the_owners_close_is_told_to_the_second_handle(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend)
    other = await AsyncWorkspace.connect(ws.id)
    running = asyncio.ensure_future(other.run("sleep 60"))
    await other.ping()
    await ws.kill()
    with pytest.raises(WorkspaceGone):
        await asyncio.wait_for(running, 5)
    assert not other.alive
    with pytest.raises(WorkspaceGone):
        await asyncio.wait_for(other.run("true"), 5)
    await other.close()


async def test_many_handles_at_once(ws: AsyncWorkspace) -> None:
    others = [await AsyncWorkspace.connect(ws.id) for _ in range(20)]
    results = await asyncio.gather(*(other.run("echo x") for other in others))
    assert all(result.stdout == "x\n" for result in results)
    await asyncio.gather(*(other.close() for other in others))
    assert (await ws.run("echo on")).stdout == "on\n"


async def test_connecting_to_a_kept_workspace_twice_at_once_starts_one_sandbox(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend, keep=True)
    await ws.close()
    one, two = await asyncio.gather(AsyncWorkspace.connect(ws.id), AsyncWorkspace.connect(ws.id))
    try:
        await one.run("echo shared >/tmp/f")
        assert (await two.run("cat /tmp/f")).stdout == "shared\n"
    finally:
        await (one if (await one.info()).owned else two).kill()
        await one.close()
        await two.close()


async def test_connect_to_nothing_is_workspace_not_found(backend: str) -> None:
    for key in ("ws-" + "0" * 32, "no-such-name", "", "../etc", "a/b", "\0", "\ud800"):
        with pytest.raises(WorkspaceNotFound) as caught:
            await AsyncWorkspace.connect(key, backend=backend)
        assert isinstance(caught.value, LookupError)


# Ends from outside


async def test_a_killed_sandbox_is_workspace_gone_at_once(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend)
    running = [asyncio.ensure_future(ws.run(["sleep", marker])) for _ in range(3)]
    handle = await ws.commands.start(["sleep", marker])
    waiting = asyncio.ensure_future(handle.wait())
    reading = asyncio.ensure_future(ws.files.write("f", _endless()))  # type: ignore[arg-type]
    assert await appears(marker, 4)
    begun = time.monotonic()
    kill_from_outside(marker)
    for task in (*running, waiting, reading):
        with pytest.raises(WorkspaceGone):
            await asyncio.wait_for(task, 5)
    with pytest.raises(WorkspaceGone) as caught:
        await asyncio.wait_for(ws.run("true"), 5)
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.reason == "killed"
    assert not ws.alive
    assert time.monotonic() - begun < 4
    for attempt in (ws.files.read("x"), ws.metrics(), ws.commands.list(), handle.kill()):
        with pytest.raises(WorkspaceGone):
            await asyncio.wait_for(attempt, 5)
    assert await vanishes(marker)
    await asyncio.wait_for(ws.kill(), 10)
    assert not await is_known(ws.id)


async def _endless():  # type: ignore[no-untyped-def]
    while True:
        yield b"x" * 1000
        await asyncio.sleep(0.01)


async def test_iterating_a_handle_and_a_watch_ends_when_the_sandbox_is_killed(backend: str) -> None:
    marker = new_marker()
    async with AsyncWorkspace.create(backend) as ws:
        handle = await ws.commands.start(["sleep", marker])

        async def listen() -> None:
            async for _ in handle:
                pass

        async def watch() -> None:
            async with ws.files.watch() as changes:
                async for _ in changes:
                    pass

        listening, watching = asyncio.ensure_future(listen()), asyncio.ensure_future(watch())
        assert await appears(marker)
        await ws.ping()
        kill_from_outside(marker)
        await asyncio.wait([listening, watching], timeout=5)
        assert listening.done()
        assert watching.done()
        assert isinstance(watching.exception(), WorkspaceGone)
        with pytest.raises(WorkspaceGone):
            await handle.wait()


async def test_files_of_a_kept_workspace_survive_a_killed_sandbox(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend, keep=True)
    await ws.files.write("f", "x")
    await ws.commands.start(["sleep", marker])
    assert await appears(marker)
    kill_from_outside(marker)
    assert await until(lambda: not ws.alive)
    again = await asyncio.wait_for(AsyncWorkspace.connect(ws.id), 20)  # type: ignore[arg-type]
    assert await again.files.read("f") == b"x"
    assert await again.run("echo on")
    await again.kill()
    await ws.close()
    assert not await is_known(ws.id)


async def test_a_stopped_sandbox_does_not_block_kill(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend)
    await ws.commands.start(["sleep", marker])
    assert await appears(marker)
    os.kill(first_process_of_sandbox(host_processes(marker)[0]), signal.SIGSTOP)
    await asyncio.wait_for(ws.kill(), 15)
    assert await vanishes(marker)
    assert not await is_known(ws.id)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_killed_host_process_leaves_nothing_running_and_prune_reclaims(backend: str, number: signal.Signals) -> None:
    marker = new_marker()
    host, id = await asyncio.to_thread(start_host, backend, marker)
    try:
        assert id
        assert await appears(marker, 3)
    finally:
        end(host, number)
    assert await vanishes(marker, 10)
    if await is_known(id):
        deadline = time.monotonic() + 10
        while id not in await registry.load(backend).prune():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    assert not await is_known(id)
    assert not [mount for mount in Path("/proc/mounts").read_text().splitlines() if id in mount]
    assert not list(Path("/sys/fs/cgroup").rglob(id))


async def test_a_kept_workspace_of_a_killed_host_process_can_be_taken_up(backend: str) -> None:
    marker = new_marker()
    host, id = await asyncio.to_thread(start_host, backend, marker, True)
    assert await appears(marker, 3)
    other = await AsyncWorkspace.connect(id)
    assert (await other.run("cat kept")).stdout == "x"
    end(host, signal.SIGKILL)
    with pytest.raises(WorkspaceGone):
        await asyncio.wait_for(other.run("sleep 30"), 10)
    assert not other.alive
    assert await vanishes(marker)
    assert id not in await registry.load(backend).prune()
    async with AsyncWorkspace.connect(id) as again:
        assert await again.files.read("kept") == b"x"
        await again.kill()
    await other.close()


async def test_prune_leaves_what_is_in_use(ws: AsyncWorkspace, backend: str) -> None:
    kept = await AsyncWorkspace.create(backend, keep=True)
    await kept.close()
    removed = await registry.load(backend).prune()
    assert ws.id not in removed
    assert kept.id not in removed
    assert (await ws.run("echo on")).stdout == "on\n"
    async with AsyncWorkspace.connect(kept.id) as again:
        await again.kill()


async def test_nothing_of_ours_stays_after_many_lives(backend: str) -> None:
    async with AsyncWorkspace.create(backend) as first:
        await first.run("true")
    before = await descriptors_of(os.getpid())
    ids = []
    for _ in range(5):
        async with AsyncWorkspace.create(backend) as ws:
            ids.append(ws.id)
            await ws.run("sleep 60 & true")
    assert await descriptors_of(os.getpid()) <= before + 1
    mounts = Path("/proc/mounts").read_text()
    for id in ids:
        assert id not in mounts
        assert await until(lambda id=id: host_processes(id) == [], 5)  # Podman's monitor leaves a moment later
        assert not list(Path("/sys/fs/cgroup").rglob(id))
        assert not list(Path("/tmp").glob(f"*{id}*"))
        assert not list(Path(os.environ["WORKSPACE_HOME"]).rglob(f"{id}*"))


# Time to live


async def test_a_workspace_expires_after_its_last_use(backend: str) -> None:
    marker = new_marker()
    ws = await AsyncWorkspace.create(backend, ttl_s=1)
    await ws.commands.start(["sleep", marker])
    assert await appears(marker)
    assert await until(lambda: not ws.alive, 6)
    assert await vanishes(marker)
    with pytest.raises(WorkspaceGone) as caught:
        await ws.run("true")
    assert caught.value.reason == "expired"
    assert await stays_unknown(ws.id)
    await ws.kill()


async def test_use_puts_the_expiry_off(backend: str) -> None:
    async with AsyncWorkspace.create(backend, ttl_s=1) as ws:
        end_at = time.monotonic() + 2
        while time.monotonic() < end_at:
            await ws.run("true")
            await asyncio.sleep(0.2)
        assert ws.alive
        await ws.set_timeout(60)
        await asyncio.sleep(1.3)
        assert (await ws.run("echo on")).stdout == "on\n"
        for wrong in (0, -1, float("nan"), 1e12):
            with pytest.raises(InvalidArgument):
                await ws.set_timeout(wrong)


async def test_a_command_that_is_awaited_is_use(backend: str) -> None:
    async with AsyncWorkspace.create(backend, ttl_s=1) as ws:
        assert (await ws.run("sleep 2; echo done")).stdout == "done\n"


async def test_a_kept_workspace_that_expired_keeps_its_files(backend: str) -> None:
    ws = await AsyncWorkspace.create(backend, keep=True, ttl_s=0.5)
    await ws.files.write("f", "x")
    assert await until(lambda: not ws.alive, 5)
    again = await AsyncWorkspace.connect(ws.id)
    assert await again.files.read("f") == b"x"
    await again.set_timeout(None)
    await again.kill()
    await ws.close()


# Starting


async def test_a_cancelled_start_leaves_nothing(backend: str) -> None:
    before = {record.id for record in await AsyncWorkspace.list()}
    for delay in (0, 0, 0.001, 0.005, 0.02, 0.05):
        starting = asyncio.ensure_future(_open(backend))
        await asyncio.sleep(delay)
        starting.cancel()
        done = (await asyncio.gather(starting, return_exceptions=True))[0]
        if isinstance(done, AsyncWorkspace):
            await done.kill()
    deadline = time.monotonic() + 10
    while {record.id for record in await AsyncWorkspace.list()} - before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def _open(backend: str) -> AsyncWorkspace:
    return await AsyncWorkspace.create(backend)


async def test_twenty_workspaces_at_once_are_apart(backend: str) -> None:
    workspaces = await asyncio.gather(*(_open(backend) for _ in range(20)))
    try:
        assert len({ws.id for ws in workspaces}) == 20
        await asyncio.gather(*(ws.files.write("me", ws.id) for ws in workspaces))
        seen = await asyncio.gather(*(ws.run("cat me; ls /tmp | wc -l") for ws in workspaces))
        assert [result.stdout for result in seen] == [f"{ws.id}0\n" for ws in workspaces]
    finally:
        await asyncio.gather(*(ws.kill() for ws in workspaces))


async def test_a_hung_workspace_delays_nobody_else(backend: str) -> None:
    marker = new_marker()
    async with AsyncWorkspace.create(backend) as hung:
        await hung.commands.start(["sleep", marker])
        assert await appears(marker)
        os.kill(first_process_of_sandbox(host_processes(marker)[0]), signal.SIGSTOP)
        waiting = asyncio.ensure_future(hung.run("true"))
        begun = time.monotonic()
        async with AsyncWorkspace.create(backend) as ws:
            assert (await ws.run("echo on")).stdout == "on\n"
        assert time.monotonic() - begun < 3
        os.kill(first_process_of_sandbox(host_processes(marker)[0]), signal.SIGCONT)
        assert (await asyncio.wait_for(waiting, 5)).ok


async def test_info_metrics_ping_and_list(ws: AsyncWorkspace, backend: str) -> None:
    info = await ws.info()
    assert (info.id, info.backend, info.owned, info.name) == (ws.id, backend, True, None)
    assert 0 < await ws.ping() < 1
    metrics = await ws.metrics()
    assert metrics.processes >= 1
    assert 0 < metrics.memory_bytes < 1024**3
    assert metrics.disk_total_bytes >= metrics.disk_free_bytes > 0
    (record,) = [record for record in await AsyncWorkspace.list(backend=backend) if record.id == ws.id]
    assert record.running
    assert abs(record.created_at - time.time()) < 60

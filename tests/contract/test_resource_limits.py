"""Bombs, floods and fillers: each stops at its limit, and neither the host nor another workspace feels it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from declared import capabilities, needs_hard

from workspace import AsyncWorkspace, CommandTimeout, NoSpace, OutOfMemory, ResourceExhausted, Resources, WorkspaceError, WorkspaceGone

MIB = 1024 * 1024
MEMORY, PIDS, DISK, TMP, SHM = 128 * MIB, 64, 64 * MIB, 16 * MIB, 8 * MIB
TIGHT = Resources(
    memory_bytes=MEMORY,
    pids=PIDS,
    disk_bytes=DISK,
    accept_weaker=frozenset({"disk_bytes"}),
    tmp_bytes=TMP,
    shm_bytes=SHM,
    open_files=256,
    file_bytes=256 * MIB,
)


@pytest.fixture
async def tight(backend: str) -> AsyncIterator[AsyncWorkspace]:
    """A workspace with small limits."""
    async with AsyncWorkspace.create(backend, resources=TIGHT) as workspace:
        yield workspace


@pytest.fixture
async def neighbour(backend: str) -> AsyncIterator[AsyncWorkspace]:
    """Another workspace, which is to feel nothing."""
    async with AsyncWorkspace.create(backend, resources=TIGHT) as workspace:
        yield workspace


async def python(ws: AsyncWorkspace, code: str, timeout_s: float = 20, **kwargs: Any) -> Any:
    """What a script inside prints, as JSON."""
    result = await ws.run(["python3", "-c", "import errno, json, os, sys, time\n" + code], timeout_s=timeout_s, **kwargs)
    assert result.exit_code == 0, (result.exit_code, result.stderr)
    return json.loads(result.stdout)


async def usable(ws: AsyncWorkspace, within_s: float = 20) -> None:
    """A command and a file call work, if need be after what is being killed is gone."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            assert (await ws.run("echo ok", timeout_s=10)).stdout == "ok\n"
            await ws.files.stat("/workspace")
            return
        except (ResourceExhausted, AssertionError):
            assert time.monotonic() < deadline, f"not usable again within {within_s:g} s"
            await asyncio.sleep(0.1)


def own_memory() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def slowest_answer(ws: AsyncWorkspace, while_running: asyncio.Future[Any]) -> float:
    """The longest that a small command in `ws` takes until `while_running` is done."""
    slowest = 0.0
    while not while_running.done():
        begun = time.monotonic()
        assert (await ws.run("echo ok", timeout_s=20)).stdout == "ok\n"
        slowest = max(slowest, time.monotonic() - begun)
    return slowest


async def test_the_limits_asked_for_are_in_force(tight: AsyncWorkspace) -> None:
    limits = (await tight.info()).limits
    for name in ("memory_bytes", "pids", "disk_bytes", "tmp_bytes", "shm_bytes", "open_files", "file_bytes"):
        assert limits[name].startswith(str(getattr(TIGHT, name))), (name, limits[name])
        if (await capabilities(tight.backend)).limits[name] == "hard":
            assert "not enforced" not in limits[name]


# Processes


@pytest.mark.parametrize(
    "bomb", [":(){ :|:& };:", "python3 -c 'import os\nwhile True:\n  try: os.fork()\n  except OSError: pass'"], ids=["shell", "python"]
)
async def test_a_fork_bomb_ends_with_its_timeout_and_is_not_felt_elsewhere(
    tight: AsyncWorkspace, neighbour: AsyncWorkspace, bomb: str
) -> None:
    async def explode() -> None:
        with contextlib.suppress(CommandTimeout, OutOfMemory):
            await tight.run(bomb + "; wait; sleep 30", timeout_s=3)

    async with asyncio.timeout(60):
        bombing = asyncio.ensure_future(explode())
        assert await slowest_answer(neighbour, bombing) < 5
        await bombing
        await usable(tight)
        count = (await tight.run("ls -d /proc/[0-9]* | wc -l", timeout_s=10)).stdout
        assert int(count) < 16


async def test_no_more_processes_and_threads_than_allowed(tight: AsyncWorkspace) -> None:
    code = """
import threading
stop, count = threading.Event(), 0
try:
    while count < 500:
        threading.Thread(target=stop.wait, daemon=True).start()
        count += 1
except RuntimeError:
    pass
children = 0
while children < 500:
    try:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
    except OSError as error:
        break
    children += 1
stop.set()
print(json.dumps([count, children]), flush=True)
os._exit(0)
"""
    threads, children = await python(tight, code)
    assert 10 < threads + children < PIDS


async def test_a_command_with_no_process_left_fails_with_a_reason_and_not_for_ever(tight: AsyncWorkspace) -> None:
    handle = await tight.commands.start(["bash", "-c", "while true; do sleep 20 & done 2>/dev/null; wait"])
    failures = []
    async with asyncio.timeout(40):
        for _ in range(10):
            try:
                await tight.run("true", timeout_s=5)
            except (ResourceExhausted, CommandTimeout, WorkspaceError) as error:
                failures.append(error)
            await asyncio.sleep(0.1)
        assert not any(isinstance(error, WorkspaceGone) for error in failures), failures
        await handle.kill()
        with contextlib.suppress(WorkspaceError):
            await handle.wait()
        await usable(tight)


# Memory


EATER = "python3 -c 'b=[]\nwhile True: b.append(bytearray(b\"x\" * (1 << 20)))'"


async def test_a_memory_bomb_raises_out_of_memory_and_is_not_felt_elsewhere(tight: AsyncWorkspace, neighbour: AsyncWorkspace) -> None:
    before = own_memory()

    async def explode() -> None:
        with pytest.raises(OutOfMemory, match=str(MEMORY)):
            await tight.run(EATER, timeout_s=20)

    async with asyncio.timeout(60):
        bombing = asyncio.ensure_future(explode())
        assert await slowest_answer(neighbour, bombing) < 5
        await bombing
        await usable(tight)
    assert own_memory() - before < 64 * MIB


async def test_many_memory_bombs_at_once_leave_the_workspace_usable(tight: AsyncWorkspace) -> None:
    code = """
import signal
for _ in range(12):
    if os.fork() == 0:
        try:
            open("/proc/self/oom_score_adj", "w").write("0")
        except OSError:
            pass
        b = []
        while True:
            b.append(bytearray(b"x" * (1 << 20)))
for _ in range(12):
    os.wait()
"""
    with contextlib.suppress(OutOfMemory, CommandTimeout):
        await tight.run(["python3", "-c", "import os\n" + code], timeout_s=15)
    await usable(tight)


async def test_the_guest_is_not_killed_before_the_commands(tight: AsyncWorkspace) -> None:
    """A command cannot make itself less likely to be killed than process 1."""
    code = """
out = []
for value in ("-1000", "-500", "-1", "0", "1"):
    try:
        open("/proc/self/oom_score_adj", "w").write(value)
    except OSError:
        pass
    out.append(int(open("/proc/self/oom_score_adj").read()))
print(json.dumps([out, int(open("/proc/1/oom_score_adj").read())]))
"""
    mine, guests = await python(tight, code)
    assert min(mine) > guests


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
async def test_memory_that_lies_in_files_ends_in_a_clear_error(backend: str, folder: str) -> None:
    """tmpfs is memory of no process: the kernel finds nobody to kill. The workspace stays usable."""
    resources = Resources(
        memory_bytes=64 * MIB, pids=PIDS, disk_bytes=DISK, accept_weaker=frozenset({"disk_bytes"}), tmp_bytes=512 * MIB, shm_bytes=512 * MIB
    )
    async with AsyncWorkspace.create(backend, resources=resources) as ws:
        async with asyncio.timeout(60):
            with contextlib.suppress(OutOfMemory):
                result = await ws.run(["dd", "if=/dev/zero", f"of={folder}/filler", "bs=1M", "count=400"], timeout_s=20)
                assert result.exit_code != 0
            await ws.files.remove(f"{folder}/filler", missing_ok=True)
            await usable(ws)


async def test_a_workspace_that_runs_out_of_memory_takes_no_other_down(backend: str, neighbour: AsyncWorkspace) -> None:
    async with AsyncWorkspace.create(backend, resources=TIGHT) as ws:
        with contextlib.suppress(WorkspaceError):
            await ws.run(f"for i in 1 2 3 4 5 6; do {EATER} & done; wait", timeout_s=10)
        await usable(neighbour)


# Disk


@pytest.mark.parametrize("folder", ["/workspace", "/home/user"])
async def test_the_disk_cannot_be_filled_beyond_its_limit(tight: AsyncWorkspace, neighbour: AsyncWorkspace, folder: str) -> None:
    await needs_hard(tight, "disk_bytes")
    free = os.statvfs("/").f_bfree * os.statvfs("/").f_bsize
    code = f"""
size = count = 0
reason = None
try:
    while size < 400 << 20:
        with open("{folder}/filler%d" % count, "wb", buffering=0) as f:
            count += 1
            for _ in range(8):
                size += f.write(b"x" * (1 << 20))
            os.fsync(f.fileno())
except OSError as error:
    reason = errno.errorcode[error.errno]
print(json.dumps([size, reason]))
"""
    size, reason = await python(tight, code, timeout_s=60)
    assert reason == "ENOSPC"
    assert size <= DISK
    assert free - os.statvfs("/").f_bfree * os.statvfs("/").f_bsize < 2 * DISK + 64 * MIB
    with pytest.raises(NoSpace):
        await tight.files.write("big", b"x" * (8 * MIB))
    await usable(neighbour)
    await neighbour.files.write("mine", b"x" * MIB)
    await tight.run(f"rm -f {folder}/filler*", timeout_s=20)
    await tight.files.write("big", b"x" * MIB)


async def test_a_write_from_outside_ends_in_no_space(tight: AsyncWorkspace) -> None:
    await needs_hard(tight, "disk_bytes")
    with pytest.raises(NoSpace):
        await tight.files.write("big", (b"x" * MIB for _ in range(200)))
    assert not await tight.files.exists("big")
    assert await tight.files.list(".") == [
        entry for entry in await tight.files.list(".") if not entry.path.rpartition("/")[2].startswith(".ws-")
    ]
    await tight.files.write("small", b"x" * MIB)


async def test_sparse_and_preallocated_files_are_held_too(tight: AsyncWorkspace) -> None:
    await needs_hard(tight, "disk_bytes")
    code = """
out = {}
for name, size in (("within", 32 << 20), ("beyond", 200 << 20)):
    fd = os.open("/workspace/" + name, os.O_CREAT | os.O_RDWR)
    try:
        os.posix_fallocate(fd, 0, size)
        out[name] = "done"
    except OSError as error:
        out[name] = errno.errorcode[error.errno]
    os.close(fd)
    os.unlink("/workspace/" + name)
fd = os.open("/workspace/sparse", os.O_CREAT | os.O_RDWR)
try:
    os.truncate(fd, 1 << 40)
    out["sparse"] = "done"
except OSError as error:
    out["sparse"] = errno.errorcode[error.errno]
print(json.dumps(out))
"""
    found = await python(tight, code)
    assert found["within"] == "done"
    assert found["beyond"] in ("ENOSPC", "EFBIG")
    assert found["sparse"] == "EFBIG"


async def test_the_inodes_cannot_be_used_up_beyond_their_limit(tight: AsyncWorkspace) -> None:
    await needs_hard(tight, "disk_bytes")
    code = """
made, reason = 0, None
os.makedirs("/workspace/many")
try:
    while made < 200000:
        os.close(os.open("/workspace/many/%d" % made, os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    reason = errno.errorcode[error.errno]
print(json.dumps([made, reason]))
"""
    made, reason = await python(tight, code, timeout_s=60)
    assert reason == "ENOSPC"
    assert made < 100_000
    await tight.run("rm -rf /workspace/many", timeout_s=40)
    await tight.files.write("after", b"x")


@pytest.mark.parametrize(("folder", "limit"), [("/tmp", TMP), ("/dev/shm", SHM)])
async def test_a_file_system_in_memory_has_its_own_limit(tight: AsyncWorkspace, folder: str, limit: int) -> None:
    code = f"""
size, reason = 0, None
with open("{folder}/filler", "wb", buffering=0) as f:
    try:
        while size < 100 << 20:
            size += f.write(b"x" * 65536)
    except OSError as error:
        reason = errno.errorcode[error.errno]
print(json.dumps([size, reason]))
"""
    size, reason = await python(tight, code)
    assert reason == "ENOSPC"
    assert size <= limit
    await usable(tight)


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm"])
async def test_inodes_in_memory_are_limited(tight: AsyncWorkspace, folder: str) -> None:
    """Empty files are memory of the kernel: they stop at a limit of their own or at the memory limit, and all is well after."""
    await needs_hard(tight, "tmp_inodes")
    code = f"""
import os
os.mkdir("{folder}/many")
for number in range(400000):
    os.close(os.open("{folder}/many/%d" % number, os.O_CREAT | os.O_WRONLY))
"""
    try:
        result = await tight.run(["python3", "-c", code], timeout_s=60)
        assert result.exit_code != 0
        assert "ENOSPC" in result.stderr or "No space left" in result.stderr or "Cannot allocate" in result.stderr
    except OutOfMemory:
        pass
    async with asyncio.timeout(60):
        await tight.files.remove(f"{folder}/many", recursive=True)
        await usable(tight)


async def test_no_other_place_can_be_filled(tight: AsyncWorkspace) -> None:
    code = """
out = {}
for folder in ("/", "/dev", "/run", "/var", "/home", "/root", "/proc", "/etc", "/usr", "/proc/acpi", "/dev/pts", "/dev/mqueue"):
    try:
        with open(folder + "/filler", "wb") as f:
            f.write(b"x" * 8192)
        out[folder] = "WRITTEN"
    except OSError:
        pass
print(json.dumps(out))
"""
    assert await python(tight, code) == {}


# Output


async def test_an_output_flood_is_cut_and_takes_no_memory_here(tight: AsyncWorkspace, neighbour: AsyncWorkspace) -> None:
    before, limit = own_memory(), 1 * MIB
    with pytest.raises(CommandTimeout) as caught:
        await tight.run("yes & yes 1>&2", timeout_s=2, max_output_bytes=limit)
    assert len(caught.value.result.stdout_bytes) <= limit
    assert len(caught.value.result.stderr_bytes) <= limit
    assert caught.value.result.truncated
    assert own_memory() - before < 64 * MIB
    await usable(neighbour)
    await usable(tight)


async def test_an_output_flood_under_the_default_limit_is_bounded_too(tight: AsyncWorkspace) -> None:
    before = own_memory()
    with pytest.raises(CommandTimeout) as caught:
        await tight.run(["cat", "/dev/zero"], timeout_s=2)
    assert len(caught.value.result.stdout_bytes) <= 10 * MIB
    assert own_memory() - before < 128 * MIB


async def test_a_flood_of_single_bytes_is_bounded_too(tight: AsyncWorkspace) -> None:
    before = own_memory()
    code = "import os\nwhile True: os.write(1, b'x'); os.write(2, b'y')"
    with pytest.raises(CommandTimeout) as caught:
        await tight.run(["python3", "-c", code], timeout_s=2, max_output_bytes=64 * 1024)
    assert len(caught.value.result.stdout_bytes) <= 64 * 1024
    assert own_memory() - before < 64 * MIB


async def test_an_endless_line_reaches_a_listener_in_pieces(tight: AsyncWorkspace) -> None:
    longest = 0

    def listen(text: str) -> None:
        nonlocal longest
        longest = max(longest, len(text))

    before = own_memory()
    with pytest.raises(CommandTimeout):
        await tight.run("tr '\\0' x < /dev/zero", timeout_s=2, on_stdout=listen, max_output_bytes=MIB)
    assert 0 < longest <= MIB
    assert own_memory() - before < 64 * MIB


async def test_a_background_flood_that_nobody_reads_is_bounded(tight: AsyncWorkspace) -> None:
    before = own_memory()
    handle = await tight.commands.start("yes", max_output_bytes=MIB)
    end = time.monotonic() + 2
    while time.monotonic() < end:
        await usable(tight)
    assert own_memory() - before < 64 * MIB
    await handle.kill()
    assert len((await handle.wait()).stdout_bytes) <= MIB


async def test_a_search_through_a_hostile_line_is_bounded(tight: AsyncWorkspace) -> None:
    """One line without end, and a pattern that explodes: the search can be given up and the guest still answers."""
    before = own_memory()
    await tight.run("head -c 40000000 /dev/zero | tr '\\0' a > line", timeout_s=20)
    searching = asyncio.ensure_future(tight.files.grep("(a+)+$b", "line"))
    try:
        begun = time.monotonic()
        await usable(tight)
        assert time.monotonic() - begun < 5
    finally:
        searching.cancel()
        await asyncio.gather(searching, return_exceptions=True)
    assert own_memory() - before < 128 * MIB
    await usable(tight)


# Per process


async def test_open_files_are_limited(tight: AsyncWorkspace) -> None:
    code = """
import resource
fds, reason = [], None
try:
    while len(fds) < 5000:
        fds.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    reason = errno.errorcode[error.errno]
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100000, 100000))
    raised = True
except (ValueError, OSError):
    raised = False
count = len(fds)
for fd in fds: os.close(fd)
print(json.dumps([count, reason, raised]))
"""
    count, reason, raised = await python(tight, code)
    assert (reason, raised) == ("EMFILE", False)
    assert 200 < count < 256


async def test_one_file_is_limited(backend: str) -> None:
    resources = Resources(memory_bytes=MEMORY, pids=PIDS, disk_bytes=DISK, accept_weaker=frozenset({"disk_bytes"}), file_bytes=4 * MIB)
    async with AsyncWorkspace.create(backend, resources=resources) as ws:
        result = await ws.run("head -c 20000000 /dev/zero > file; stat -c %s file", timeout_s=10)
        assert int(result.stdout) <= 4 * MIB
        with pytest.raises(NoSpace):
            await ws.files.write("big", b"x" * (8 * MIB))
        await usable(ws)


async def test_no_core_file_is_written(tight: AsyncWorkspace) -> None:
    result = await tight.run("ulimit -H -c; ulimit -c unlimited; (bash -c 'kill -SEGV $$'); ls -A /workspace /tmp", timeout_s=10)
    assert result.stdout.splitlines()[0] == "0"
    assert "core" not in result.stdout


async def test_the_processor_quota_holds(backend: str) -> None:
    resources = Resources(memory_bytes=MEMORY, pids=PIDS, disk_bytes=DISK, accept_weaker=frozenset({"disk_bytes"}), cpus=0.5)
    async with AsyncWorkspace.create(backend, resources=resources) as ws:
        code = """
pids = []
begun = time.monotonic()
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        while time.monotonic() - begun < 2.5:
            pass
        os._exit(0)
for _ in range(4):
    os.wait()
used = os.times()
print(json.dumps([used.children_user + used.children_system, time.monotonic() - begun]))
"""
        used, wall = await python(ws, code, timeout_s=40)
        assert used / wall < 0.8


async def test_the_clock_of_a_command_cannot_be_stopped_from_inside(tight: AsyncWorkspace) -> None:
    """Ignored signals, own sessions, double forks, stopped processes: the timeout ends them all."""
    script = "trap '' TERM INT HUP QUIT; (trap '' TERM; setsid sleep 983 & setsid sh -c 'sleep 982 & kill -STOP $$' &) ; sleep 981"
    begun = time.monotonic()
    with pytest.raises(CommandTimeout):
        await tight.run(script, timeout_s=1)
    assert time.monotonic() - begun < 6
    assert (await tight.run("grep -l '[s]leep.98[123]' /proc/[0-9]*/cmdline", timeout_s=10)).stdout == ""


async def test_many_requests_at_once_are_served_or_refused(tight: AsyncWorkspace) -> None:
    async with asyncio.timeout(60):
        results = await asyncio.gather(*(tight.run("true", timeout_s=20) for _ in range(200)), return_exceptions=True)
    assert all(not isinstance(result, BaseException) or isinstance(result, WorkspaceError) for result in results)
    assert not any(isinstance(result, WorkspaceGone) for result in results)
    await usable(tight)

"""Output of every size and kind, and what limits do."""

from __future__ import annotations

import asyncio
import os
import time

import pytest
from declared import needs_hard
from outside import peak_bytes, reset_peak, resident_bytes

from workspace import AsyncWorkspace, InvalidArgument, NoSpace, NotSupported, OutOfMemory, Resources, WorkspaceError, WorkspaceGone

MIB = 1024 * 1024


# Output


async def test_stderr_is_apart_from_stdout_and_merged_on_request(ws: AsyncWorkspace) -> None:
    script = "echo 1; echo 2 >&2; echo 3; echo 4 >&2"
    result = await ws.run(script)
    assert (result.stdout, result.stderr) == ("1\n3\n", "2\n4\n")
    merged = await ws.run(script, merge=True)
    assert (merged.stdout, merged.stderr) == ("1\n2\n3\n4\n", "")


async def test_binary_output_is_intact(ws: AsyncWorkspace) -> None:
    data = bytes(range(256)) * 500
    await ws.files.write("data", data)
    result = await ws.run("cat data; cat data >&2")
    assert result.stdout_bytes == data
    assert result.stderr_bytes == data
    assert "\ufffd" in result.stdout


async def test_callbacks_get_all_output_as_it_comes(ws: AsyncWorkspace) -> None:
    times: list[float] = []
    out: list[str] = []
    errors: list[str] = []

    async def on_stderr(text: str) -> None:
        await asyncio.sleep(0)
        errors.append(text)

    def on_stdout(text: str) -> None:
        times.append(time.monotonic())
        out.append(text)

    result = await ws.run("echo one; sleep 0.3; echo two; echo bad >&2", on_stdout=on_stdout, on_stderr=on_stderr)
    assert "".join(out) == result.stdout == "one\ntwo\n"
    assert "".join(errors) == result.stderr == "bad\n"
    assert times[-1] - times[0] > 0.2


async def test_a_character_that_is_cut_in_two_is_decoded_once(ws: AsyncWorkspace) -> None:
    parts: list[str] = []
    script = "import os,time\nfor b in 'ü€😀x'.encode():\n os.write(1,bytes([b]));time.sleep(0.01)\nos.write(1,b'\\xe2\\x82')"
    result = await ws.run(["python3", "-c", script], on_stdout=parts.append)
    assert "".join(parts) == "ü€😀x\ufffd" == result.stdout


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1_000_000, 2_000_000])
async def test_output_of_every_size_is_whole(ws: AsyncWorkspace, size: int) -> None:
    result = await ws.run(f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2")
    assert (len(result.stdout_bytes), len(result.stderr_bytes), result.dropped_bytes) == (size, size, 0)


async def test_of_too_much_output_head_and_tail_are_kept_and_the_rest_is_counted(ws: AsyncWorkspace) -> None:
    streamed: list[str] = []
    result = await ws.run("seq 300000", max_output_bytes=100_000, on_stdout=streamed.append)
    whole = "".join(f"{number}\n" for number in range(1, 300_001))
    assert result.truncated
    assert len(result.stdout_bytes) == 100_000
    assert result.stdout_bytes == whole[:50_000].encode() + whole[-50_000:].encode()
    assert result.dropped_bytes == len(whole) - 100_000
    assert "".join(streamed) == whole


async def test_max_output_bytes_at_its_edges(ws: AsyncWorkspace) -> None:
    for limit, kept in ((0, b""), (1, b"1"), (2, b"16"), (6, b"123456"), (7, b"123456")):
        result = await ws.run("printf 123456", max_output_bytes=limit)
        assert result.stdout_bytes == kept
        assert result.dropped_bytes == 6 - len(kept)
    with pytest.raises(InvalidArgument):
        await ws.run("echo x", max_output_bytes=-1)
    with pytest.raises(InvalidArgument):
        await ws.commands.start("echo x", max_output_bytes=-1)


async def test_endless_output_takes_bounded_memory_and_ends_at_the_timeout(ws: AsyncWorkspace) -> None:
    await ws.run("head -c 30000000 /dev/zero")
    reset_peak()
    before = resident_bytes()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(ws.run("yes", timeout_s=1.5), 10)
    assert peak_bytes() - before < 64 * MIB
    assert (await ws.metrics()).memory_bytes < 100 * MIB


async def test_many_tiny_writes_take_bounded_memory(ws: AsyncWorkspace) -> None:
    script = "import os\nfor i in range(400000): os.write(1,b'x')"
    reset_peak()
    before = resident_bytes()
    result = await ws.run(["python3", "-c", script])
    assert len(result.stdout_bytes) == 400_000
    assert peak_bytes() - before < 32 * MIB


async def test_a_handle_nobody_reads_does_not_block_its_command_and_takes_bounded_memory(ws: AsyncWorkspace) -> None:
    reset_peak()
    before = resident_bytes()
    handle = await ws.commands.start("head -c 300000000 /dev/zero; echo end >&2", max_output_bytes=MIB)
    result = await asyncio.wait_for(handle.wait(), 20)
    assert result.stderr == "end\n"
    assert len(result.stdout_bytes) + result.dropped_bytes == 300_000_000
    assert peak_bytes() - before < 32 * MIB


async def test_a_handle_that_is_read_slowly_loses_nothing(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("sleep 0.1; head -c 5000000 /dev/zero; printf end")
    total = 0
    last = b""
    async for chunk in handle:
        total += len(chunk.data)
        last = (last + chunk.data)[-3:]
        await asyncio.sleep(0.001)
    assert (total, last) == (5_000_003, b"end")


async def test_a_slow_callback_stalls_nobody_else(ws: AsyncWorkspace) -> None:
    async def slow(text: str) -> None:
        await asyncio.sleep(0.05)

    slowly = asyncio.ensure_future(ws.run("head -c 20000000 /dev/zero", on_stdout=slow))
    await asyncio.sleep(0.2)
    begun = time.monotonic()
    for _ in range(20):
        await ws.run("true")
    assert time.monotonic() - begun < 1
    slowly.cancel()
    await asyncio.gather(slowly, return_exceptions=True)


async def test_text_of_errors_shows_no_control_characters(ws: AsyncWorkspace) -> None:
    with pytest.raises(WorkspaceError) as caught:
        await ws.run("printf '\\033[31mred\\a' >&2; exit 1", check=True)
    assert "\x1b" not in str(caught.value)
    assert "\a" not in str(caught.value)


async def test_duration_is_told(ws: AsyncWorkspace) -> None:
    assert 0.25 < (await ws.run("sleep 0.3")).duration_s < 1
    assert (await ws.run("true")).duration_s < 0.5


# Limits


async def _limited(backend: str, **limits: int) -> AsyncWorkspace:
    try:
        return await AsyncWorkspace.create(backend, resources=Resources(**limits))
    except NotSupported as error:
        pytest.skip(str(error))


async def test_a_command_over_the_memory_limit_is_out_of_memory_and_the_workspace_stays_usable(backend: str) -> None:
    async with await _limited(backend, memory_bytes=128 * MIB) as ws:
        with pytest.raises(OutOfMemory) as caught:
            await asyncio.wait_for(ws.run(["python3", "-c", "print('early',flush=True)\nx=[]\nwhile True: x.append(bytearray(1<<20))"]), 30)
        assert isinstance(caught.value, MemoryError)
        assert caught.value.stdout == "early\n"
        assert str(128 * MIB) in str(caught.value)
        assert (await ws.run("echo usable")).stdout == "usable\n"
        assert (await ws.run("kill -9 $$")).exit_code == 137


async def test_a_full_disk_is_a_typed_error_and_nothing_is_lost(backend: str) -> None:
    await needs_hard(backend, "disk_bytes")
    async with await _limited(backend, disk_bytes=32 * MIB) as ws:
        await ws.files.write("f", "old")
        with pytest.raises(NoSpace) as caught:
            await ws.files.write("f", b"x" * (64 * MIB))
        assert isinstance(caught.value, OSError)
        assert await ws.files.read("f") == b"old"
        assert [entry.name for entry in await ws.files.list()] == ["f"]
        assert (await ws.run("head -c 67108864 /dev/zero >g")).exit_code != 0
        await ws.files.remove("g")
        await ws.files.write("f", "new")
        assert await ws.files.read("f") == b"new"


async def test_the_limit_of_one_files_size_is_kept_for_files_and_commands(backend: str) -> None:
    async with await _limited(backend, file_bytes=MIB) as ws:
        with pytest.raises(NoSpace):
            await ws.files.write("f", b"x" * (2 * MIB))
        result = await ws.run("head -c 2097152 /dev/zero >g")
        assert not result.ok
        assert (await ws.files.stat("g")).size <= MIB
        assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_the_limit_of_open_files_is_kept(backend: str) -> None:
    async with await _limited(backend, open_files=256) as ws:
        assert (await ws.run("ulimit -n; ulimit -Hn")).stdout == "256\n256\n"
        results = await asyncio.gather(*(ws.run(f"echo {number}") for number in range(200)), return_exceptions=True)
        assert all(isinstance(result, WorkspaceError) for result in results if isinstance(result, BaseException))
        assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_tmp_is_limited_to_its_size(backend: str) -> None:
    async with await _limited(backend, tmp_bytes=4 * MIB) as ws:
        assert (await ws.run("head -c 8388608 /dev/zero >/tmp/f")).exit_code != 0
        assert (await ws.files.stat("/tmp/f")).size <= 4 * MIB


async def test_a_process_limit_that_is_reached_is_a_typed_error(backend: str) -> None:
    async with await _limited(backend, pids=32) as ws:
        results = await asyncio.wait_for(asyncio.gather(*(ws.run(["sleep", "1"]) for _ in range(80)), return_exceptions=True), 30)
        failed = [result for result in results if isinstance(result, BaseException)]
        assert failed
        assert all(isinstance(error, WorkspaceError) and isinstance(error, OSError) for error in failed), set(map(repr, failed))
        assert not any(isinstance(error, WorkspaceGone) for error in failed)
        assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_more_commands_than_the_guest_takes_is_a_typed_error(ws: AsyncWorkspace) -> None:
    results = await asyncio.wait_for(asyncio.gather(*(ws.run(["true"]) for _ in range(3000)), return_exceptions=True), 60)
    assert all(isinstance(result, WorkspaceError) for result in results if isinstance(result, BaseException))
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_two_hundred_files_at_once(ws: AsyncWorkspace) -> None:
    data = [os.urandom(50_000) for _ in range(200)]
    await asyncio.gather(*(ws.files.write(f"f{number}", content) for number, content in enumerate(data)))
    assert await asyncio.gather(*(ws.files.read(f"f{number}") for number in range(200))) == data

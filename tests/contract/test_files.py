"""Files: the same answers and errors everywhere, nothing lost, every name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Awaitable
from io import BytesIO
from pathlib import Path

import pytest
from outside import peak_bytes, reset_peak, resident_bytes

from workspace import (
    AsyncWorkspace,
    EditMismatch,
    FileChanged,
    FileDenied,
    FileError,
    FileMissing,
    FileTaken,
    InvalidArgument,
    NotRegular,
    PathIsDirectory,
    PathNotDirectory,
    WorkspaceError,
)

MIB = 1024 * 1024
NAMES = {
    "newline": "a\nb",
    "leading_dash": "-rf",
    "long": "x" * 255,
    "long_in_bytes": "ü" * 127 + "x",
    "not_utf8": b"\xff\xfe\x80name".decode("utf-8", "surrogateescape"),
    "space": " ",
    "quotes": "'\"`$(id)\\",
    "unicode": "日本語 ü e\u0301",
    "control": "\x01\x1b[31m\r\t",
    "star": "*?[a]{b,c}",
    "dots": "...",
    "tilde": "~x",
    "backslash": "a\\b",
    "json": '{"a":1}',
}


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return NAMES[request.param]


async def refuses(kind: type[BaseException], *attempts: Awaitable[object]) -> None:
    """Each of `attempts` raises `kind`; tells of all that do not."""
    outcomes: list[object] = []
    for attempt in attempts:
        try:
            outcomes.append(await asyncio.wait_for(attempt, 5))
        except WorkspaceError as error:
            outcomes.append(error)
    assert not [(number, outcome) for number, outcome in enumerate(outcomes) if not isinstance(outcome, kind)]


# Names


async def test_every_name_round_trips(ws: AsyncWorkspace, name: str) -> None:
    written = await ws.files.write(name, name)
    assert written.path == "/workspace/" + name
    assert await ws.files.read(name) == os.fsencode(name)
    assert [entry.name for entry in await ws.files.list()] == [name]
    assert (await ws.files.stat(name)).name == name
    shown = await ws.run(["python3", "-c", "import os,sys;sys.stdout.buffer.write(os.listdir(b'.')[0])"])
    assert shown.stdout_bytes == os.fsencode(name)
    await ws.files.append(name, "!")
    await ws.files.edit(name, "!", "?")
    assert await ws.files.read(name) == os.fsencode(name) + b"?"
    await ws.files.copy(name, "copy")
    await ws.files.move("copy", "deep/" + name)
    assert await ws.files.exists("deep/" + name)
    await ws.files.remove(name)
    assert [entry.name for entry in await ws.files.list()] == ["deep"]
    await ws.files.mkdir(name)
    assert (await ws.run("pwd -P >/dev/null; touch here", cwd=name)).exit_code == 0
    assert await ws.files.exists(name + "/here")
    await ws.files.symlink("link", name)
    assert (await ws.files.stat("link", follow_symlinks=False)).target == name
    await ws.files.remove(name, recursive=True)


async def test_a_name_of_256_bytes_is_a_typed_error(ws: AsyncWorkspace) -> None:
    for attempt in (ws.files.write("x" * 256, ""), ws.files.read("x" * 256), ws.files.mkdir("x" * 256), ws.files.write("d/" * 2500, "")):
        with pytest.raises(FileError):
            await attempt
    assert await ws.files.list() == []


async def test_a_path_that_cannot_be_one_is_refused(ws: AsyncWorkspace) -> None:
    for path in ("", "a\0b"):
        for attempt in (ws.files.read(path), ws.files.write(path, ""), ws.files.stat(path), ws.files.list(path), ws.files.move("a", path)):
            with pytest.raises(InvalidArgument):
                await attempt
    with pytest.raises(InvalidArgument):
        await ws.files.write_many({"a\0b": ""})


async def test_a_lone_surrogate_that_is_no_byte_is_a_typed_error(ws: AsyncWorkspace) -> None:
    for attempt in (
        ws.files.read("\ud800"),
        ws.files.write("\ud800", ""),
        ws.files.stat("\ud800"),
        ws.files.list("\ud800"),
        ws.files.write_many({"\ud800": ""}),
        ws.files.write("content", "\ud800"),
    ):
        with pytest.raises((WorkspaceError, UnicodeEncodeError)) as caught:
            await asyncio.wait_for(attempt, 5)
        assert isinstance(caught.value, WorkspaceError), attempt
    assert (await ws.run("echo ok")).stdout == "ok\n"


async def test_paths_are_relative_to_workspace_absolute_or_below_home(ws: AsyncWorkspace) -> None:
    await ws.files.write("sub/x", "1")
    assert await ws.files.read("/workspace/sub/x") == b"1"
    assert await ws.files.read("./sub/./x") == b"1"
    assert await ws.files.read("sub//x") == b"1"
    assert await ws.files.read("sub/../sub/x") == b"1"
    await ws.files.write("~/h", "2")
    assert await ws.files.read("/home/user/h") == b"2"
    await ws.files.write("/tmp/t", "3")
    assert (await ws.run("cat /tmp/t")).stdout == "3"


async def test_dotdot_ends_at_the_sandboxes_own_walls(ws: AsyncWorkspace) -> None:
    up = "../" * 40
    assert "user:x:1000:1000:" in await ws.files.read_text(up + "etc/passwd")
    assert await ws.files.read_text(up + "etc/passwd") != Path("/etc/passwd").read_text()
    with pytest.raises(FileError):
        await ws.files.write(up + "etc/passwd", "x")


async def test_error_names_the_path_that_was_asked_for(ws: AsyncWorkspace) -> None:
    with pytest.raises(FileMissing) as caught:
        await ws.files.read("no/such")
    assert caught.value.filename == "no/such"
    assert caught.value.errno == 2
    assert "no/such" in str(caught.value)


# Reading and writing


@pytest.mark.parametrize("size", [0, 1, 4095, 65536, 131072, 131073, 262144, 262145, 5_000_001])
async def test_bytes_of_every_size_round_trip(ws: AsyncWorkspace, size: int) -> None:
    data = os.urandom(size)
    info = await ws.files.write("data", data)
    assert info.size == size
    assert await ws.files.read("data") == data
    assert await ws.files.read("data", offset=size // 2, length=7) == data[size // 2 : size // 2 + 7]
    assert await ws.files.read("data", offset=size + 10) == b""
    assert await ws.files.read("data", length=0) == b""


async def test_content_in_every_form(ws: AsyncWorkspace) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"ab"

    forms = ["ab" * 10, b"ab" * 10, bytearray(b"ab" * 10), memoryview(b"ab" * 10), [b"ab"] * 10, pieces(), BytesIO(b"ab" * 10)]
    for number, content in enumerate(forms):
        await ws.files.write(f"f{number}", content)  # type: ignore[arg-type]
        assert await ws.files.read(f"f{number}") == b"ab" * 10


async def test_progress_is_told(ws: AsyncWorkspace) -> None:
    seen: list[int] = []
    await ws.files.write("data", b"x" * MIB, progress=lambda done, total: seen.append(done))
    assert seen[-1] == MIB
    assert seen == sorted(seen)


async def test_a_write_whose_source_fails_changes_nothing(ws: AsyncWorkspace) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"new" * 100_000
        raise RuntimeError("the source broke")

    await ws.files.write("data", "old")
    with pytest.raises(RuntimeError, match="the source broke"):
        await ws.files.write("data", broken())
    with pytest.raises(RuntimeError, match="the source broke"):
        await ws.files.write("other", broken())
    assert await ws.files.read("data") == b"old"
    assert [entry.name for entry in await ws.files.list()] == ["data"]


async def test_a_cancelled_write_changes_nothing(ws: AsyncWorkspace) -> None:
    begun = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"new" * 10_000
            begun.set()
            await asyncio.sleep(0)

    await ws.files.write("data", "old")
    writing = asyncio.ensure_future(ws.files.write("data", endless()))
    await begun.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await ws.files.read("data") == b"old"
    assert [entry.name for entry in await ws.files.list()] == ["data"]


async def test_readers_see_the_old_content_or_the_new(ws: AsyncWorkspace) -> None:
    await ws.files.write("data", b"a" * 300_000)
    script = "while True:\n data=open('data').read();kinds=set(data)\n"
    script += " if len(kinds)>1 or len(data)!=300000: print('torn');break\n if kinds=={'c'}: print('whole');break"
    watching = asyncio.ensure_future(ws.run(["python3", "-c", script], timeout_s=20))
    for number in range(200):
        await ws.files.write("data", (b"a", b"b")[number % 2] * 300_000)
    await ws.files.write("data", b"c" * 300_000)
    assert (await watching).stdout == "whole\n"


async def test_parents_are_made(ws: AsyncWorkspace) -> None:
    await ws.files.write("a/b/c/file", "x")
    await ws.files.append("d/e/file", "x")
    await ws.files.write_many({"f/g/file": "x"})
    assert {entry.path for entry in await ws.files.list(depth=None) if entry.type == "file"} == {
        "/workspace/a/b/c/file",
        "/workspace/d/e/file",
        "/workspace/f/g/file",
    }


async def test_exclusive_refuses_an_existing_file(ws: AsyncWorkspace) -> None:
    await ws.files.write("x", "1", exclusive=True)
    with pytest.raises(FileExistsError) as caught:
        await ws.files.write("x", "2", exclusive=True)
    assert isinstance(caught.value, FileTaken)
    assert await ws.files.read("x") == b"1"


async def test_of_many_exclusive_writers_one_wins(ws: AsyncWorkspace) -> None:
    async def slow(number: int) -> AsyncIterator[bytes]:
        yield b"%d" % number
        await asyncio.sleep(0.05)

    results = await asyncio.gather(*(ws.files.write("lock", slow(number), exclusive=True) for number in range(10)), return_exceptions=True)
    winners = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert await ws.files.read("lock") == b"%d" % winners[0]
    assert [entry.name for entry in await ws.files.list()] == ["lock"]


async def test_overwriting_keeps_mode_and_owner(ws: AsyncWorkspace) -> None:
    await ws.files.write("tool", "#!/bin/sh\necho one\n", mode=0o755)
    before = await ws.files.stat("tool")
    await ws.files.write("tool", "#!/bin/sh\necho two\n")
    after = await ws.files.stat("tool")
    assert (after.mode, after.uid, after.gid) == (0o755, before.uid, before.gid)
    assert (await ws.run(["./tool"])).stdout == "two\n"
    await ws.files.edit("tool", "two", "three")
    assert (await ws.run(["./tool"])).stdout == "three\n"
    await ws.files.write_many({"tool": "#!/bin/sh\necho four\n"})
    assert (await ws.run(["./tool"])).stdout == "four\n"


async def test_files_made_by_us_belong_to_the_user(ws: AsyncWorkspace) -> None:
    await ws.files.write("d/mine", "x")
    assert (await ws.run("stat -c '%U %a' d/mine d; echo more >>d/mine; rm -r d")).stdout == "user 644\nuser 755\n"


async def test_mode_is_what_was_asked_for(ws: AsyncWorkspace) -> None:
    for mode in (0o600, 0o777, 0o444, 0o4755):
        assert (await ws.files.write(f"m{mode:o}", "x", mode=mode)).mode == mode
    await ws.files.write("m600", "y", mode=0o640)
    assert (await ws.files.stat("m600")).mode == 0o640


async def test_overwriting_keeps_user_xattrs(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "1")
    script = "import os;os.setxattr('f','user.note',b'kept')"
    done = await ws.run(["python3", "-c", script])
    if done.exit_code and "Operation not supported" in done.stderr:
        pytest.skip("this file system has no extended attributes")
    assert done.ok, done.stderr
    await ws.files.write("f", "2")
    await ws.files.edit("f", "2", "3")
    shown = await ws.run(["python3", "-c", "import os;print(os.getxattr('f','user.note'),open('f').read())"])
    assert shown.stdout == "b'kept' 3\n"


async def test_a_read_only_file_is_not_overwritten(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "old", mode=0o444)
    for attempt in (ws.files.write("f", "new"), ws.files.append("f", "new"), ws.files.edit("f", "old", "new")):
        with pytest.raises(PermissionError) as caught:
            await attempt
        assert isinstance(caught.value, FileDenied)
    assert await ws.files.read("f") == b"old"


async def test_the_system_is_read_only(ws: AsyncWorkspace) -> None:
    for path in ("/usr/bin/x", "/etc/passwd", "/x", "/proc/1/comm"):
        with pytest.raises(FileError):
            await ws.files.write(path, "x")


async def test_mtime_of_a_written_file_is_now_in_nanoseconds(ws: AsyncWorkspace) -> None:
    before = time.time_ns()
    infos = [await ws.files.write(f"f{number}", "x") for number in range(5)]
    after = time.time_ns()
    assert all(before - 20_000_000 <= info.mtime_ns <= after + 20_000_000 for info in infos)
    assert any(info.mtime_ns % 1_000_000 for info in infos)
    await ws.files.write_many({"many": "x"})
    assert abs((await ws.files.stat("many")).mtime_ns - time.time_ns()) < 5_000_000_000


async def test_write_through_a_symlink_follows_it(ws: AsyncWorkspace) -> None:
    await ws.files.write("real/file", "old", mode=0o755)
    await ws.files.symlink("link", "real/file")
    await ws.files.symlink("chain", "link")
    for path, content in (("link", "one"), ("chain", "two")):
        await ws.files.write(path, content)
        assert await ws.files.read("real/file") == content.encode()
    await ws.files.edit("link", "two", "three")
    await ws.files.append("chain", "!")
    await ws.files.write_many({"link": "four"})
    assert await ws.files.read("real/file") == b"four"
    assert (await ws.files.stat("link", follow_symlinks=False)).type == "symlink"
    assert (await ws.files.stat("real/file")).mode == 0o755


async def test_write_and_append_through_a_dangling_symlink_make_its_target(ws: AsyncWorkspace) -> None:
    await ws.files.symlink("one", "made_one")
    await ws.files.symlink("two", "made_two")
    await ws.files.symlink("three", "missing/made_three")
    await ws.files.write("one", "1")
    await ws.files.append("two", "2")
    await ws.files.write("three", "3")
    assert (
        await ws.run("cat made_one made_two missing/made_three; test -L one && test -L two && test -L three && echo links")
    ).stdout == "123links\n"


async def test_read_through_a_symlink_follows_it(ws: AsyncWorkspace) -> None:
    await ws.files.write("d/file", "x")
    await ws.files.symlink("l", "/workspace/d/file")
    await ws.files.symlink("dl", "d")
    assert await ws.files.read("l") == b"x"
    assert await ws.files.read("dl/file") == b"x"
    assert (await ws.files.stat("l")).type == "file"
    info = await ws.files.stat("l", follow_symlinks=False)
    assert (info.type, info.target) == ("symlink", "/workspace/d/file")


async def test_a_symlink_to_nothing_or_to_itself_is_a_typed_error(ws: AsyncWorkspace) -> None:
    await ws.files.symlink("dangling", "nowhere")
    await ws.files.symlink("loop", "loop")
    with pytest.raises(FileNotFoundError):
        await ws.files.read("dangling")
    assert not await ws.files.exists("dangling")
    for attempt in (ws.files.read("loop"), ws.files.write("loop", "x"), ws.files.append("loop", "x"), ws.files.edit("loop", "a", "b")):
        with pytest.raises(FileError):
            await attempt
    assert (await ws.files.stat("loop", follow_symlinks=False)).type == "symlink"


async def test_exists_of_a_symlink_loop_is_false(ws: AsyncWorkspace) -> None:
    await ws.files.symlink("loop", "loop")
    assert not await ws.files.exists("loop")


async def test_reading_a_directory_is_is_a_directory_error(ws: AsyncWorkspace) -> None:
    await ws.files.write("d/only", "x")
    for attempt in (ws.files.read("d"), ws.files.read_text("d"), ws.files.edit("d", "a", "b")):
        with pytest.raises(IsADirectoryError) as caught:
            await attempt
        assert isinstance(caught.value, PathIsDirectory)


async def test_writing_onto_a_directory_changes_nothing(ws: AsyncWorkspace) -> None:
    await ws.files.write("d/only", "x")
    await ws.files.symlink("dl", "d")
    for path in ("d", "d/", "dl", ".", "/workspace"):
        for attempt in (
            ws.files.write(path, "y"),
            ws.files.append(path, "y"),
            ws.files.patch(path, 0, "y"),
            ws.files.write_many({path: "y"}),
        ):
            with pytest.raises(IsADirectoryError):
                await attempt
    assert await ws.files.read("d/only") == b"x"
    assert sorted(entry.path for entry in await ws.files.list(depth=None)) == ["/workspace/d", "/workspace/d/only", "/workspace/dl"]


async def test_a_parent_that_is_a_file_is_not_a_directory_error(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "x")
    await refuses(
        NotADirectoryError,
        ws.files.write("f/below", "y"),
        ws.files.read("f/below"),
        ws.files.stat("f/below"),
        ws.files.append("f/below", "y"),
        ws.files.mkdir("f/below"),
        ws.files.list("f"),
        ws.files.write("f/deep/below", "y"),
        ws.files.move("f", "f/below"),
        ws.files.write_many({"f/below": "y"}),
    )
    assert issubclass(PathNotDirectory, NotADirectoryError)
    assert await ws.files.read("f") == b"x"


async def test_listing_a_missing_directory_is_file_not_found(ws: AsyncWorkspace) -> None:
    attempts = (ws.files.list("missing"), ws.files.glob("*", "missing"), ws.files.grep("x", "missing"), ws.files.remove("missing"))
    await refuses(FileNotFoundError, *attempts)
    with pytest.raises(FileNotFoundError):
        async for _ in ws.files.walk("missing"):
            pass
    await ws.files.remove("missing", missing_ok=True)


async def test_fifos_and_devices_are_typed_errors_and_hang_nothing(ws: AsyncWorkspace) -> None:
    await ws.run("mkfifo pipe; python3 -c 'import socket;socket.socket(socket.AF_UNIX).bind(\"sock\")'; ln -s pipe to_pipe")
    for path in ("pipe", "to_pipe", "sock", "/dev/zero", "/dev/null", "/dev/full"):
        for attempt in (
            ws.files.read(path),
            ws.files.write(path, "x"),
            ws.files.append(path, "x"),
            ws.files.edit(path, "a", "b"),
            ws.files.patch(path, 0, "x"),
        ):
            with pytest.raises(NotRegular) as caught:
                await asyncio.wait_for(attempt, 5)
            assert isinstance(caught.value, OSError)
    types = {entry.name: entry.type for entry in await ws.files.list()}
    assert types == {"pipe": "fifo", "sock": "socket", "to_pipe": "symlink"}
    assert (await ws.files.stat("/dev/null")).type == "device"


# Lists


async def test_recursive_list_has_every_type_and_follows_no_links(ws: AsyncWorkspace) -> None:
    await ws.files.write("a/file", "12345")
    await ws.files.mkdir("a/empty")
    await ws.files.symlink("a/up", "..")
    await ws.files.symlink("a/gone", "nothing")
    found = {entry.path.removeprefix("/workspace/"): entry for entry in await ws.files.list(depth=None)}
    assert {path: entry.type for path, entry in found.items()} == {
        "a": "directory",
        "a/file": "file",
        "a/empty": "directory",
        "a/up": "symlink",
        "a/gone": "symlink",
    }
    assert found["a/file"].size == 5
    assert found["a/up"].target == ".."
    assert [entry.path for entry in await ws.files.list()] == ["/workspace/a"]
    assert len(await ws.files.list(depth=2)) == 5
    walked = [entry.path async for entry in ws.files.walk()]
    assert sorted(walked) == sorted(entry.path for entry in found.values())
    assert walked[0] == "/workspace/a"


async def test_listing_a_large_directory_is_complete(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir many && cd many && seq 20000 | xargs touch")
    names = {entry.name for entry in await ws.files.list("many")}
    assert names == {str(number) for number in range(1, 20001)}


async def test_a_walk_that_is_left_early_hangs_nothing(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir many && cd many && seq 20000 | xargs touch")
    async with contextlib.aclosing(ws.files.walk()) as entries:
        async for _ in entries:
            break
    assert (await asyncio.wait_for(ws.run("echo usable"), 5)).stdout == "usable\n"


async def test_a_deep_tree_can_be_listed_copied_and_removed(ws: AsyncWorkspace) -> None:
    script = "import os\nfor i in range(1200):\n os.mkdir('d');os.chdir('d')\nopen('leaf','w').close()"
    await ws.run(["python3", "-c", script])
    assert len(await ws.files.list(depth=None)) == 1201
    await ws.files.remove("d", recursive=True)
    assert await ws.files.list() == []


async def test_our_files_are_not_in_the_users_search_results(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "x")
    await ws.run("true")
    assert (await ws.run("find /workspace /home/user /tmp /dev/shm -mindepth 1")).stdout.split() == ["/workspace/f"]
    # /.dockerenv and /run/.containerenv are the engines' own marks.
    assert {entry.path for entry in await ws.files.list("/", depth=1) if entry.name.startswith(".")} <= {"/.dockerenv"}


# Edits


async def test_edit_replaces_exactly_what_was_said(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "one two two")
    await ws.files.edit("f", "one", "1")
    for options in ({"old": "two"}, {"old": "three"}, {"old": "1", "count": 2}, {"old": "three", "count": None}):
        with pytest.raises(EditMismatch) as caught:
            await ws.files.edit("f", new="x", **options)  # type: ignore[arg-type]
        assert isinstance(caught.value, ValueError)
    assert await ws.files.read("f") == b"1 two two"
    await ws.files.edit("f", "two", "2", count=2)
    await ws.files.edit("f", "2", "", count=None)
    assert await ws.files.read("f") == b"1  "


@pytest.mark.parametrize(
    "content",
    [
        b"a\r\nTHIS\r\nb\r\n",
        b"a\nTHIS",
        b"\xe4\xf6\xfcTHIS\xdf",
        b"\0\x01THIS\0",
        b"\xef\xbb\xbfTHIS\r\rx",
        b"a\rTHIS\n\r\n\n",
        "ü€THIS".encode("utf-16")[:0] + b"\xff\xfeTHIS",
    ],
)
async def test_crlf_latin1_and_nul_stay_untouched_but_for_the_edit(ws: AsyncWorkspace, content: bytes) -> None:
    await ws.files.write("f", content)
    await ws.files.edit("f", "THIS", "THAT")
    assert await ws.files.read("f") == content.replace(b"THIS", b"THAT")
    await ws.files.edit("f", b"THAT", b"\xff\0")
    assert await ws.files.read("f") == content.replace(b"THIS", b"\xff\0")


async def test_an_edit_of_what_changed_since_is_refused(ws: AsyncWorkspace) -> None:
    read = await ws.files.write("f", "a b")
    await ws.run("printf 'a c' >f")
    with pytest.raises(FileChanged):
        await ws.files.edit("f", "a", "x", expected_version=read.version)
    assert await ws.files.read("f") == b"a c"
    now = await ws.files.stat("f")
    after = await ws.files.edit("f", "a", "x", expected_version=now.version)
    assert after.version != now.version
    assert after.version == (await ws.files.stat("f")).version
    assert await ws.files.read("f") == b"x c"


async def test_a_change_of_the_same_size_in_the_same_moment_is_seen(ws: AsyncWorkspace) -> None:
    for number in range(20):
        read = await ws.files.write("f", "a 0")
        await ws.files.write("f", "a 1") if number % 2 else await ws.files.patch("f", 2, "1")
        with pytest.raises(FileChanged):
            await ws.files.edit("f", "a", "x", expected_version=read.version)


async def test_of_many_guarded_edits_at_once_none_is_lost(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "0")

    async def increment(handle: AsyncWorkspace) -> None:
        while True:
            version = (await handle.files.stat("f")).version
            number = int(await handle.files.read("f"))
            try:
                await handle.files.edit("f", str(number), str(number + 1), expected_version=version)
                return
            except (FileChanged, EditMismatch):
                continue

    async with AsyncWorkspace.connect(ws.id) as other:
        await asyncio.wait_for(asyncio.gather(*(increment(handle) for handle in [ws, other] * 15)), 30)
    assert await ws.files.read("f") == b"30"


async def test_edit_with_an_empty_old_text_is_refused(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "x")
    with pytest.raises(InvalidArgument):
        await ws.files.edit("f", "", "y")


async def test_append_and_patch(ws: AsyncWorkspace) -> None:
    await ws.files.append("f", "one")
    await ws.files.append("f", b"two")
    await ws.files.patch("f", 1, "NE")
    assert await ws.files.read("f") == b"oNEtwo"
    await ws.files.patch("f", 0, "", truncate=2)
    assert await ws.files.read("f") == b"oN"
    await ws.files.patch("f", 4, "x")
    assert await ws.files.read("f") == b"oN\0\0x"
    for wrong in ({"offset": -1}, {"offset": 0, "truncate": -1}):
        with pytest.raises(WorkspaceError):
            await ws.files.patch("f", content="y", **wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        await ws.files.read("f", offset=-1)


async def test_appends_at_once_are_all_there(ws: AsyncWorkspace) -> None:
    await asyncio.gather(*(ws.files.append("log", f"{number:03}\n") for number in range(100)))
    assert sorted((await ws.files.read_text("log")).split()) == [f"{number:03}" for number in range(100)]


# The rest


async def test_move_copy_remove(ws: AsyncWorkspace) -> None:
    await ws.files.write("a/f", "x", mode=0o755)
    await ws.files.symlink("a/l", "f")
    await ws.files.copy("a", "b")
    assert (await ws.files.stat("b/f")).mode == 0o755
    assert (await ws.files.stat("b/l", follow_symlinks=False)).target == "f"
    assert (await ws.files.stat("b/f")).mtime_ns == (await ws.files.stat("a/f")).mtime_ns
    moved = await ws.files.move("a", "new/place")
    assert moved.path == "/workspace/new/place"
    assert not await ws.files.exists("a")
    with pytest.raises(FileExistsError):
        await ws.files.move("b/f", "new/place/f", overwrite=False)
    with pytest.raises(FileExistsError):
        await ws.files.copy("b/f", "new/place/f", overwrite=False)
    with pytest.raises(FileError):
        await ws.files.remove("new")
    await ws.files.remove("new", recursive=True)
    await ws.files.remove("b/l")
    assert await ws.files.exists("b/f")
    await ws.files.move("b/f", "/tmp/elsewhere")
    assert (await ws.run("cat /tmp/elsewhere && test -x /tmp/elsewhere && ls b")).stdout == "x"


async def test_removing_a_symlink_leaves_its_target(ws: AsyncWorkspace) -> None:
    await ws.files.write("d/f", "x")
    await ws.files.symlink("l", "d")
    await ws.files.remove("l", recursive=True)
    assert await ws.files.read("d/f") == b"x"
    await ws.files.symlink("d/out", "/workspace/keep")
    await ws.files.write("keep/f", "y")
    await ws.files.remove("d", recursive=True)
    assert await ws.files.read("keep/f") == b"y"


async def test_copying_a_directory_into_itself_is_refused(ws: AsyncWorkspace) -> None:
    await ws.files.write("a/f", "x")
    with pytest.raises(WorkspaceError):
        await asyncio.wait_for(ws.files.copy("a", "a/b"), 10)
    with pytest.raises(WorkspaceError):
        await ws.files.move("a", "a/b")
    assert await ws.files.read("a/f") == b"x"


async def test_copying_a_file_onto_itself_keeps_it(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "x")
    with contextlib.suppress(WorkspaceError):
        await ws.files.copy("f", "f")
    assert await ws.files.read("f") == b"x"
    await ws.files.symlink("l", "f")
    with contextlib.suppress(WorkspaceError):
        await ws.files.copy("f", "l")
    assert await ws.files.read("f") == b"x"


async def test_chmod_mkdir_and_their_refusals(ws: AsyncWorkspace) -> None:
    await ws.files.mkdir("d")
    await ws.files.mkdir("d")
    with pytest.raises(FileExistsError):
        await ws.files.mkdir("d", exist_ok=False)
    with pytest.raises(FileNotFoundError):
        await ws.files.mkdir("x/y", parents=False)
    await ws.files.write("f", "")
    for exist_ok in (True, False):
        with pytest.raises(FileExistsError):
            await ws.files.mkdir("f", exist_ok=exist_ok)
    assert (await ws.files.chmod("f", 0o750)).mode == 0o750
    for mode in (-1, 0o10000):
        with pytest.raises(InvalidArgument):
            await ws.files.chmod("f", mode)


async def test_tmp_is_private_writable_and_sized(ws: AsyncWorkspace) -> None:
    result = await ws.run("stat -c %a /tmp; ls -A /tmp; df -B1 --output=size /tmp | tail -1; echo x >/tmp/f && cat /tmp/f")
    mode, size, content = result.stdout.split()
    assert (mode, content) == ("1777", "x")
    assert int(size) <= 1024**3
    assert (await ws.run("test -e /tmp/f")).ok
    assert not Path("/tmp/f").exists() or Path("/tmp/f").read_text() != "x\n"


async def test_a_gigabyte_is_written_and_read_in_flat_memory(ws: AsyncWorkspace) -> None:
    piece = os.urandom(MIB)
    guests: list[int] = []

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(1024):
            yield piece
            if number % 256 == 255:
                guests.append((await ws.metrics()).memory_bytes)

    await ws.files.write("warm", piece)
    await ws.files.read("warm")
    quiet = (await ws.metrics()).memory_bytes
    reset_peak()
    before = resident_bytes()
    assert (await ws.files.write("big", pieces())).size == 1024 * MIB
    total = 0
    ends = b""
    async for part in ws.files.read_stream("big"):
        if not total:
            ends = part[:100]
        total += len(part)
        if total % (256 * MIB) < len(part):
            guests.append((await ws.metrics()).memory_bytes)
    assert (total, ends) == (1024 * MIB, piece[:100])
    assert peak_bytes() - before < 32 * MIB
    assert max(guests) - quiet < 32 * MIB
    assert (await ws.run("cmp <(tail -c 1048576 big) warm")).exit_code == 0


async def test_a_slow_reader_stalls_nobody_else(ws: AsyncWorkspace) -> None:
    await ws.run("head -c 50000000 /dev/zero >big")
    async with contextlib.aclosing(ws.files.read_stream("big")) as reading:
        async for _ in reading:
            begun = time.monotonic()
            await asyncio.gather(*(ws.run("true") for _ in range(20)))
            assert await ws.files.read("big", length=5_000_000) == bytes(5_000_000)
            assert time.monotonic() - begun < 3
            break
    assert (await ws.metrics()).memory_bytes < 200 * MIB

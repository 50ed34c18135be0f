"""Trees in and out, many files at once, changes as they happen, and searching."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from outside import peak_bytes, reset_peak, resident_bytes

from workspace import AsyncWorkspace, FileError, FileEvent, InvalidArgument, WorkspaceError

MIB = 1024 * 1024
RAW = b"\xff\xfe".decode("utf-8", "surrogateescape")


def a_tree(root: Path) -> Path:
    """A directory of every kind of entry."""
    (root / "sub" / "empty").mkdir(parents=True)
    (root / "tool").write_text("#!/bin/sh\necho tool\n")
    (root / "tool").chmod(0o755)
    (root / "sub" / "data").write_bytes(os.urandom(700_000))
    (root / "new\nline").write_text("n")
    (root / "-dash").write_text("d")
    (root / RAW).write_text("raw")
    (root / ("x" * 255)).write_text("long")
    (root / "zero").write_bytes(b"")
    (root / "link").symlink_to("sub/data")
    (root / "sub" / "up").symlink_to("../tool")
    os.utime(root / "tool", ns=(1_500_000_000_123_456_789, 1_500_000_000_123_456_789))
    return root


def shape(root: Path) -> dict[str, tuple[str, object]]:
    """Relative path → kind and content, mode for files."""
    found: dict[str, tuple[str, object]] = {}
    for folder, directories, names in os.walk(root):
        for name in [*directories, *names]:
            path = Path(folder, name)
            key = str(path.relative_to(root))
            if path.is_symlink():
                found[key] = ("symlink", os.readlink(path))
            elif path.is_dir():
                found[key] = ("directory", None)
            else:
                found[key] = (f"file {path.stat().st_mode & 0o777:o}", path.read_bytes())
    return found


async def test_a_tree_round_trips(ws: AsyncWorkspace, tmp_path: Path) -> None:
    source = a_tree(tmp_path / "source")
    count = await ws.files.upload(source, "there")
    assert count == len(shape(source))
    assert (await ws.run("there/tool && cat there/link | cmp - there/sub/data && stat -c %U there/tool there/sub there/link")).stdout == (
        "tool\n" + "user\n" * 3
    )
    assert (await ws.files.stat("there/tool")).mtime_ns == 1_500_000_000_123_456_789
    done = await ws.files.download("there", tmp_path / "back")
    assert shape(tmp_path / "back") == shape(source)
    assert (done.files, done.skipped, done.changed) == (7, (), ())
    assert done.bytes == sum(len(value) for _, value in shape(source).values() if isinstance(value, bytes))
    assert (tmp_path / "back" / "tool").stat().st_mtime_ns == 1_500_000_000_123_456_789


async def test_a_single_file_goes_to_a_path_or_into_a_directory(ws: AsyncWorkspace, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    await ws.files.upload(tmp_path / "f")
    await ws.files.upload(tmp_path / "f", "named")
    await ws.files.upload(tmp_path / "f", "new/")
    await ws.files.mkdir("old")
    await ws.files.upload(tmp_path / "f", "old")
    assert sorted(entry.path for entry in await ws.files.list(depth=None) if entry.type == "file") == [
        "/workspace/f",
        "/workspace/named",
        "/workspace/new/f",
        "/workspace/old/f",
    ]
    (tmp_path / "out").mkdir()
    await ws.files.download("named", tmp_path / "out")
    await ws.files.download("named", tmp_path / "out" / "other")
    await ws.files.download("named", tmp_path / "deep" / "er")
    assert [(tmp_path / path).read_text() for path in ("out/named", "out/other", "deep/er")] == ["x"] * 3


async def test_exclude_leaves_out_by_name_and_path(ws: AsyncWorkspace, tmp_path: Path) -> None:
    for path in ("a.py", "a.pyc", "sub/b.pyc", "node_modules/x/y", "sub/keep"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("x")
    await ws.files.upload(tmp_path, "there", exclude=["*.pyc", "node_modules", "sub/nothing"])
    assert sorted(entry.path.removeprefix("/workspace/there/") for entry in await ws.files.list("there", depth=None)) == [
        "a.py",
        "sub",
        "sub/keep",
    ]


async def test_upload_of_nothing_and_download_of_nothing_are_typed_errors(ws: AsyncWorkspace, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await ws.files.upload(tmp_path / "missing")
    assert isinstance(caught.value, WorkspaceError)
    with pytest.raises(FileNotFoundError) as caught:
        await ws.files.download("missing", tmp_path / "out")
    assert isinstance(caught.value, WorkspaceError)
    assert not (tmp_path / "out").exists()


async def test_upload_onto_a_file_where_a_directory_is_needed_is_a_typed_error(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.files.write("f", "x")
    with pytest.raises(FileError):
        await ws.files.upload(a_tree(tmp_path / "source"), "f")
    assert await ws.files.read("f") == b"x"


async def test_download_of_a_tree_onto_a_file_is_a_typed_error(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.files.write("d/f", "x")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError) as caught:
        await ws.files.download("d", tmp_path / "file")
    assert isinstance(caught.value, WorkspaceError)
    assert (tmp_path / "file").read_text() == "mine"
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_download_of_a_fifo_or_device_makes_nothing_and_says_so(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.run("mkfifo pipe")
    for path in ("pipe", "/dev/zero"):
        with pytest.raises(WorkspaceError):
            await asyncio.wait_for(ws.files.download(path, tmp_path / "out"), 5)
        assert not (tmp_path / "out").exists()


async def test_download_leaves_out_and_names_what_cannot_be_had(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.run(
        "mkdir d; cd d; mkfifo pipe; echo x >shut; chmod 0 shut; ln -s /etc/passwd abs; ln -s ../../out rel; ln -s ok inside; echo y >ok"
    )
    done = await asyncio.wait_for(ws.files.download("d", tmp_path / "out"), 10)
    assert sorted(done.skipped) == ["abs", "pipe", "rel", "shut"]
    assert sorted(os.listdir(tmp_path / "out")) == ["inside", "ok"]


async def test_download_names_a_directory_that_may_not_be_read(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.run("mkdir -p d/locked; echo x >d/locked/in; chmod 0 d/locked")
    done = await ws.files.download("d", tmp_path / "out")
    assert "locked" in done.skipped


async def test_no_downloaded_link_leads_out_of_the_tree(ws: AsyncWorkspace, tmp_path: Path) -> None:
    """Links through links: `here/..` is inside by its text, but not where `here` is a link."""
    await ws.run(
        "mkdir -p d/a/b/c; cd d; ln -s . here; ln -s here/.. out1; ln -s ../../.. a/b/c/top; ln -s a/b/c/top/../../secret out2; echo x >f"
    )
    (tmp_path / "secret").write_text("the host's")
    (tmp_path / "one").mkdir()
    await ws.files.download("d", tmp_path / "one" / "tree")
    root = os.path.realpath(tmp_path / "one" / "tree")
    for folder, directories, names in os.walk(root):
        for name in [*directories, *names]:
            where = os.path.realpath(os.path.join(folder, name))
            assert where == root or where.startswith(root + "/"), f"{name} leads to {where}"


async def test_a_download_writes_through_no_link_that_lies_at_its_destination(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.files.write("d/sub/f", "from inside")
    await ws.files.write("d/g", "from inside")
    (tmp_path / "outside").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "outside")
    (tmp_path / "out" / "g").symlink_to(tmp_path / "precious")
    with pytest.raises((WorkspaceError, OSError)) as caught:
        await ws.files.download("d", tmp_path / "out")
    assert isinstance(caught.value, WorkspaceError)
    assert os.listdir(tmp_path / "outside") == []
    assert (tmp_path / "precious").read_text() == "mine"


async def test_a_file_from_before_1970_can_be_downloaded(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.run("echo x >old; touch -d '1960-01-01' old; mkdir d; cp -p old d; touch -d '1950-01-01' d")
    assert (await ws.files.stat("old")).mtime_ns < 0
    await ws.files.download("old", tmp_path / "old")
    await ws.files.download("d", tmp_path / "d")
    assert (tmp_path / "old").read_text() == (tmp_path / "d" / "old").read_text() == "x\n"
    assert ws.alive


async def test_a_tree_that_changes_while_it_is_downloaded_hangs_nothing(ws: AsyncWorkspace, tmp_path: Path) -> None:
    churn = "while :; do for i in 1 2 3 4 5; do head -c $((RANDOM*40)) /dev/zero >f$i; "
    churn += "mkdir -p s$i/t; rm -rf s$(((i+2)%5+1)) f$(((i+1)%5+1)); done; done"
    await ws.files.mkdir("d")
    handle = await ws.commands.start(churn, cwd="d")
    for number in range(15):
        await asyncio.wait_for(ws.files.download("d", tmp_path / f"out{number}"), 10)
    await handle.kill()


async def test_large_files_go_both_ways_in_flat_memory(ws: AsyncWorkspace, tmp_path: Path) -> None:
    with open(tmp_path / "big", "wb") as file:
        for _ in range(200):
            file.write(os.urandom(MIB))
    seen: list[int] = []
    reset_peak()
    before = resident_bytes()
    await ws.files.upload(tmp_path / "big", "big", progress=lambda done, total: seen.append(done))
    await ws.files.download("big", tmp_path / "back")
    assert peak_bytes() - before < 32 * MIB
    assert (await ws.metrics()).memory_bytes < 100 * MIB
    assert seen[-1] == 200 * MIB
    assert await asyncio.to_thread(_same, tmp_path / "big", tmp_path / "back")


def _same(one: Path, two: Path) -> bool:
    with open(one, "rb") as a, open(two, "rb") as b:
        while True:
            first, second = a.read(MIB), b.read(MIB)
            if first != second:
                return False
            if not first:
                return True


async def test_a_cancelled_download_leaves_no_half_file(ws: AsyncWorkspace, tmp_path: Path) -> None:
    await ws.run("head -c 300000000 /dev/zero >big")
    downloading = asyncio.ensure_future(ws.files.download("big", tmp_path / "big"))
    await asyncio.sleep(0.02)
    downloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await downloading
    assert os.listdir(tmp_path) == []
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_write_many_writes_every_file(ws: AsyncWorkspace) -> None:
    files: dict[str, str | bytes] = {f"d{number % 7}/f{number}": f"{number}" for number in range(3000)}
    files |= {"new\nline": "n", RAW: b"\xff", "-dash": "", "~/home": "h", "/tmp/abs": "t", "big": b"x" * 3_000_000}
    begun = time.monotonic()
    assert await ws.files.write_many(files) == len(files)
    assert time.monotonic() - begun < 5
    assert len([entry for entry in await ws.files.list(depth=None) if entry.type == "file"]) == 3004
    assert await ws.files.read(RAW) == b"\xff"
    assert (await ws.run("cat d3/f10 ~/home /tmp/abs")).stdout == "10ht"
    assert len(await ws.files.read("big")) == 3_000_000
    assert await ws.files.write_many({}) == 0


# Changes as they happen


async def collect(ws: AsyncWorkspace, script: str, until: str, path: str = ".", recursive: bool = True) -> list[FileEvent]:
    """The events that `script` gives, up to the creation of the entry `until`, which it has to make last."""
    seen = []
    async with asyncio.timeout(10):
        async with ws.files.watch(path, recursive=recursive) as changes:
            await ws.run(script, check=True)
            async for event in changes:
                if event.path.endswith("/" + until):
                    return seen
                seen.append(event)
    return seen


async def test_watch_tells_of_every_kind_of_change(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir d; echo x >d/old; echo y >d/doomed")
    seen = await collect(
        ws, "cd d; echo n >new; echo more >>old; mv old moved; chmod 700 moved; rm doomed; mkdir sub; echo z >sub/f; touch END", "END"
    )
    told = {(event.kind, event.path.removeprefix("/workspace/d/")) for event in seen}
    assert {
        ("created", "new"),
        ("modified", "old"),
        ("moved", "moved"),
        ("metadata", "moved"),
        ("removed", "doomed"),
        ("created", "sub"),
        ("created", "sub/f"),
    } <= told
    (moved,) = [event for event in seen if event.kind == "moved"]
    assert moved.source == "/workspace/d/old"
    assert all(event.is_directory == (event.path == "/workspace/d/sub") for event in seen if event.kind == "created")


async def test_watch_misses_nothing_in_directories_made_at_once(ws: AsyncWorkspace) -> None:
    seen = await collect(ws, "for i in $(seq 50); do mkdir -p a$i/b/c; echo x >a$i/b/c/f; done; touch END", "END")
    made = {event.path for event in seen if event.kind == "created"}
    assert {f"/workspace/a{number}/b/c/f" for number in range(1, 51)} <= made


async def test_watch_follows_a_directory_that_is_moved(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir -p one/in")
    seen = await collect(ws, "mv one two; touch two/f two/in/g; touch END", "END")
    assert {"/workspace/two/f", "/workspace/two/in/g"} <= {event.path for event in seen if event.kind == "created"}


async def test_watch_that_is_not_recursive_sees_one_directory(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir sub")
    seen = await collect(ws, "touch sub/f; touch f; touch END", "END", recursive=False)
    assert {event.path for event in seen} == {"/workspace/f"}


async def test_watch_tells_names_of_every_kind(ws: AsyncWorkspace) -> None:
    async with asyncio.timeout(5):
        async with ws.files.watch() as changes:
            await ws.files.write_many({RAW: "", "a\nb": "", "-x": ""})
            names = set()
            async for event in changes:
                names.add(os.path.basename(event.path))
                if {RAW, "a\nb", "-x"} <= names:
                    break


async def test_watch_sees_a_write_of_ours_without_our_temporary_files(ws: AsyncWorkspace) -> None:
    seen = []
    async with asyncio.timeout(5):
        async with ws.files.watch() as changes:
            await ws.files.write("f", "x")
            await ws.files.edit("f", "x", "y")
            await ws.run("touch END")
            async for event in changes:
                if event.path == "/workspace/END":
                    break
                seen.append(event)
    assert {event.path for event in seen} == {"/workspace/f"}
    assert [event.source for event in seen if event.source] == []


async def test_watch_of_nothing_or_a_file_is_a_typed_error(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "")
    with pytest.raises(FileNotFoundError):
        async with ws.files.watch("missing"):
            pass
    with pytest.raises(NotADirectoryError):
        async with ws.files.watch("f"):
            pass
    with pytest.raises(InvalidArgument):
        async for _ in ws.files.watch():
            pass


async def test_a_watch_nobody_reads_costs_bounded_memory_and_says_overflow(ws: AsyncWorkspace) -> None:
    async with ws.files.watch() as changes:
        await ws.run("for r in $(seq 10); do seq 6000 | xargs touch; seq 6000 | xargs rm; done", timeout_s=60)
        assert (await ws.metrics()).memory_bytes < 150 * MIB
        kinds = set()
        async with asyncio.timeout(20):
            async for event in changes:
                kinds.add(event.kind)
                if event.kind == "overflow":
                    break
    assert "overflow" in kinds


# Searching


async def test_glob(ws: AsyncWorkspace) -> None:
    await ws.files.write_many(dict.fromkeys(["a.py", "b.txt", "sub/c.py", "sub/deep/d.py", ".hidden.py", "sub/[x].py"], ""))

    async def found(pattern: str, path: str = ".") -> list[str]:
        return [entry.path.removeprefix("/workspace/") for entry in await ws.files.glob(pattern, path)]

    assert await found("*.py") == ["a.py"]
    assert await found(".*.py") == [".hidden.py"]
    assert await found("**/*.py") == ["a.py", "sub/[x].py", "sub/c.py", "sub/deep/d.py"]
    assert await found("?.{py,txt}") == ["a.py", "b.txt"]
    assert await found("*.py", "sub") == ["sub/[x].py", "sub/c.py"]
    assert await found("[ab].*") == ["a.py", "b.txt"]
    assert await found("sub/*") == ["sub/[x].py", "sub/c.py", "sub/deep"]
    assert await found("nothing") == []
    for wrong in ("", "/abs"):
        with pytest.raises(InvalidArgument):
            await ws.files.glob(wrong)
    for odd in ("[", "{", "a{b", "[!", "**", "***", "\\", "(", "[z-a]", "{a,{b,c}}"):
        await ws.files.glob(odd)


async def test_grep(ws: AsyncWorkspace) -> None:
    await ws.files.write_many({"a.py": "one\nTwo ü\r\nthree (x)\n", "sub/b.txt": "zwei two", "bin": b"two\0", RAW: b"two \xff"})
    found = await ws.files.grep("[Tt]wo")
    assert sorted((match.path, match.line_number, match.column, match.line) for match in found) == sorted(
        [
            ("/workspace/a.py", 2, 1, "Two ü"),
            ("/workspace/sub/b.txt", 1, 6, "zwei two"),
            ("/workspace/" + RAW, 1, 1, b"two \xff".decode("utf-8", "surrogateescape")),
        ]
    )
    assert len(await ws.files.grep("TWO", ignore_case=True)) == 3
    assert [match.line_number for match in await ws.files.grep("(x)", fixed=True)] == [3]
    assert [match.path for match in await ws.files.grep("two", glob="*.txt")] == ["/workspace/sub/b.txt"]
    assert [match.path for match in await ws.files.grep("Two", "a.py")] == ["/workspace/a.py"]
    assert len(await ws.files.grep(".", max_matches=2)) == 2
    assert await ws.files.grep("nothing at all") == []


async def test_grep_refuses_a_bad_pattern_and_a_missing_path(ws: AsyncWorkspace) -> None:
    with pytest.raises(InvalidArgument):
        await ws.files.grep("(")
    with pytest.raises(FileNotFoundError):
        await ws.files.grep("x", "missing")


async def test_grep_with_max_matches_zero_is_refused_or_empty(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "x\nx\n")
    for limit in (0, -1):
        try:
            assert await ws.files.grep("x", max_matches=limit) == []
        except InvalidArgument:
            continue


async def test_a_pattern_that_takes_for_ever_stops_nobody_and_can_be_cancelled(ws: AsyncWorkspace) -> None:
    await ws.files.write("f", "a" * 40 + "!\n")
    searching = asyncio.ensure_future(ws.files.grep("(a+)+$"))
    await asyncio.sleep(0.2)
    assert (await asyncio.wait_for(ws.run("echo on"), 5)).stdout == "on\n"
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(searching, 5)
    before = (await ws.metrics()).cpu_s
    await asyncio.sleep(0.3)
    assert (await ws.metrics()).cpu_s - before < 0.2


async def test_grep_does_not_hang_on_fifos_and_devices(ws: AsyncWorkspace) -> None:
    await ws.run("mkfifo pipe; ln -s /dev/zero zero; echo x >f; ln -s . loop")
    assert [match.path for match in await asyncio.wait_for(ws.files.grep("x"), 5)] == ["/workspace/f"]

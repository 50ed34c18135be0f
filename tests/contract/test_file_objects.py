"""`ws.files.open`: file objects that behave as those of `open`."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workspace import InvalidArgument, NoSpace, Resources, Workspace

MIB = 1024 * 1024


@pytest.fixture
def ws(backend: str) -> Iterator[Workspace]:
    """A fresh workspace by its blocking face."""
    with Workspace.create(backend) as workspace:
        yield workspace


def test_text_is_written_and_read_back_with_its_line_ends(ws: Workspace) -> None:
    with ws.files.open("t", "w", newline="\r\n") as file:
        file.write("one\nzwei ü\n")
    assert ws.files.read("t") == "one\r\nzwei ü\r\n".encode()
    with ws.files.open("t") as file:
        assert list(file) == ["one\n", "zwei ü\n"]
    with ws.files.open("t", newline="") as file:
        assert file.readlines() == ["one\r\n", "zwei ü\r\n"]


def test_an_encoding_other_than_utf8_is_used(ws: Workspace) -> None:
    with ws.files.open("t", "w", encoding="latin-1") as file:
        file.write("ü")
    assert ws.files.read("t") == b"\xfc"
    with ws.files.open("t", errors="replace") as file:
        assert file.read() == "�"


def test_reading_seeks_and_tells_as_a_local_file_does(ws: Workspace) -> None:
    ws.files.write("b", bytes(range(256)) * 8)
    with ws.files.open("b", "rb") as file:
        assert file.seek(-3, os.SEEK_END) == 2045
        assert file.read() == b"\xfd\xfe\xff"
        assert file.seek(10) == 10
        assert (file.read(2), file.tell()) == (b"\x0a\x0b", 12)
        assert file.seek(5, os.SEEK_CUR) == 17
        assert file.read(1) == b"\x11"
        file.seek(5000)
        assert file.read() == b""
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)
        with pytest.raises(io.UnsupportedOperation):
            file.write(b"x")


def test_text_tells_and_seeks_back(ws: Workspace) -> None:
    ws.files.write("t", "äb\ncd\n")
    with ws.files.open("t") as file:
        file.readline()
        mark = file.tell()
        assert file.read() == "cd\n"
        file.seek(mark)
        assert file.readline() == "cd\n"


def test_appending_adds_to_the_end_and_makes_a_missing_file(ws: Workspace) -> None:
    for word in ("one", "two"):
        with ws.files.open("log", "a") as file:
            file.write(word)
    with ws.files.open("log", "ab") as file:
        file.write(b"\x00")
    assert ws.files.read("log") == b"onetwo\x00"


def test_updating_in_place_keeps_the_rest(ws: Workspace) -> None:
    ws.files.write("b", b"0123456789")
    with ws.files.open("b", "r+b") as file:
        assert file.read(2) == b"01"
        file.write(b"XX")
        file.seek(0, os.SEEK_END)
        file.write(b"end")
        file.seek(0)
        assert file.read() == b"01XX456789end"
        file.truncate(4)
    assert ws.files.read("b") == b"01XX"


def test_updating_needs_a_file_that_is_there(ws: Workspace) -> None:
    with pytest.raises(FileNotFoundError):
        ws.files.open("missing", "r+b")
    with pytest.raises(FileNotFoundError):
        ws.files.open("missing")
    with pytest.raises(IsADirectoryError):
        ws.files.open("/workspace")


def test_exclusive_creation_refuses_what_is_there(ws: Workspace) -> None:
    with ws.files.open("x", "x") as file:
        file.write("mine")
    with pytest.raises(FileExistsError):
        ws.files.open("x", "x")
    assert ws.files.read("x") == b"mine"


def test_exclusive_creation_does_not_replace_a_file_made_meanwhile(ws: Workspace) -> None:
    with pytest.raises(FileExistsError), ws.files.open("x", "xb") as file:
        file.write(b"mine")
        ws.files.write("x", b"theirs")
    assert ws.files.read("x") == b"theirs"


@pytest.mark.parametrize("mode", ["", "w+", "rw", "q", "rbt", "+"])
def test_a_mode_that_is_not_offered_says_which_are(ws: Workspace, mode: str) -> None:
    with pytest.raises(InvalidArgument, match="not one of r, w, x, a"):
        ws.files.open("t", mode)


@pytest.mark.parametrize("mode", ["w", "wb", "x", "xb"])
def test_an_error_while_writing_leaves_no_file(ws: Workspace, mode: str) -> None:
    with pytest.raises(KeyError), ws.files.open("new", mode) as file:
        file.write(b"part" if "b" in mode else "part")
        raise KeyError
    assert ws.files.list() == []


@pytest.mark.parametrize("size", [4, 3 * MIB])
def test_an_error_while_writing_keeps_the_old_content(ws: Workspace, size: int) -> None:
    ws.files.write("t", b"old")
    with pytest.raises(KeyError), ws.files.open("t", "wb") as file:
        file.write(b"n" * size)
        raise KeyError
    assert ws.files.read("t") == b"old"
    assert [entry.name for entry in ws.files.list()] == ["t"]


def test_content_over_the_limit_of_a_file_keeps_the_old_content(backend: str) -> None:
    with Workspace.create(backend, resources=Resources(file_bytes=MIB)) as ws:
        ws.files.write("t", b"old")
        with pytest.raises(NoSpace), ws.files.open("t", "wb") as file:
            for _ in range(11):
                file.write(b"n" * 100_000)
        assert ws.files.read("t") == b"old"
        assert [entry.name for entry in ws.files.list()] == ["t"]


def test_a_large_file_is_copied_in_and_out_by_copyfileobj(ws: Workspace, tmp_path: Path) -> None:
    block = os.urandom(MIB)
    source = tmp_path / "source"
    with source.open("wb") as out:
        for _ in range(50):
            out.write(block)
    with source.open("rb") as local, ws.files.open("large", "wb") as remote:
        shutil.copyfileobj(local, remote, MIB)
    with ws.files.open("large", "rb") as remote, (tmp_path / "back").open("wb") as local:
        shutil.copyfileobj(remote, local, MIB)
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in (source, tmp_path / "back")]
    assert digests[0] == digests[1]


def test_a_file_object_that_nobody_closes_does_not_hold_up_the_end_of_the_program(backend: str) -> None:
    code = f"from workspace import Workspace\nws = Workspace.create({backend!r})\nfile = ws.files.open('x', 'w')\nfile.write('a')"
    subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL, timeout=15)

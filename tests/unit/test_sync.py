"""The blocking face: the same signatures, usable from threads, interrupted by Ctrl-C."""

from __future__ import annotations

import contextlib
import inspect
import signal
import subprocess
import sys
import threading

import pytest
from outside import host_processes, new_marker, until, vanishes

from workspace import AsyncCommandHandle, AsyncWorkspace, Workspace
from workspace.commands import AsyncCommands
from workspace.files import AsyncFiles, AsyncWatch
from workspace.portal import portal
from workspace.sync import CommandHandle, Commands, Files, Watch

PAIRS = [(AsyncWorkspace, Workspace), (AsyncCommands, Commands), (AsyncFiles, Files), (AsyncCommandHandle, CommandHandle)]
ONLY_BLOCKING = {(Files, "open")}
"""File objects are blocking by nature."""
INSTANCE = {"pid"}
"""An attribute on one side, a property on the other."""


def public(kind: type) -> dict[str, object]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


@pytest.mark.parametrize(("asynchronous", "blocking"), PAIRS)
def test_both_faces_have_the_same_methods_and_parameters(asynchronous: type, blocking: type) -> None:
    ours, theirs = public(asynchronous), public(blocking)
    assert set(theirs) - INSTANCE - {name for kind, name in ONLY_BLOCKING if kind is blocking} == set(ours)
    for name, value in ours.items():
        if isinstance(value, property):
            assert isinstance(theirs[name], property), name
            continue
        one, other = (inspect.signature(getattr(kind, name)) for kind in (asynchronous, blocking))
        shapes = [[(p.name, p.kind, p.default) for p in signature.parameters.values()] for signature in (one, other)]
        assert shapes[0] == shapes[1], name


def test_callbacks_may_use_the_workspace() -> None:
    with Workspace.create("local") as ws:
        seen: list[str] = []
        ws.commands.run("echo one; echo two", on_stdout=lambda text: seen.append(ws.run(["cat"], stdin=text).stdout))
        assert "".join(seen) == "one\ntwo\n"


def test_one_workspace_serves_many_threads() -> None:
    with Workspace.create("local") as ws:
        results: dict[int, str] = {}
        threads = [threading.Thread(target=lambda n=n: results.update({n: ws.run(f"echo {n}").stdout})) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == {n: f"{n}\n" for n in range(12)}


def test_a_blocking_call_on_its_own_loop_is_a_clear_error() -> None:
    with Workspace.create("local") as ws:

        async def misuse() -> None:
            ws.run("true")

        with pytest.raises(RuntimeError, match="AsyncWorkspace"):
            portal().call(misuse())


async def test_ctrl_c_kills_what_runs_inside() -> None:
    marker = new_marker()
    code = f"from workspace import Workspace\nwith Workspace.create('local') as ws: ws.run('sleep {marker}')"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        assert await until(lambda: len(host_processes(marker)) > 1, 10)  # the caller's own arguments hold it, too
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT
        assert await vanishes(marker)
    finally:
        process.kill()
        process.wait()


def test_file_objects_read_write_append_and_update() -> None:
    with Workspace.create("local") as ws:
        with ws.files.open("t", "w") as file:
            file.write("one\ntwo\n")
        with ws.files.open("t", "a") as file:
            file.write("three\n")
        with ws.files.open("t") as file:
            assert file.readlines() == ["one\n", "two\n", "three\n"]
        with ws.files.open("t", "r+b") as file:
            file.seek(4)
            file.write(b"TWO")
        assert ws.files.read("t") == b"one\nTWO\nthree\n"
        with pytest.raises(FileExistsError):
            ws.files.open("t", "x")


def test_an_error_while_writing_a_file_object_keeps_the_old_file() -> None:
    with Workspace.create("local") as ws:
        ws.files.write("t", "old")
        with contextlib.suppress(KeyError), ws.files.open("t", "w") as file:
            file.write("new")
            raise KeyError
        assert ws.files.read("t") == b"old"
        assert [entry.name for entry in ws.files.list()] == ["t"]


def test_watches_have_two_faces_of_the_same_shape() -> None:
    assert set(public(Watch)) == set(public(AsyncWatch))
    for name in ("enter", "exit"):
        assert hasattr(Watch, f"__{name}__")
        assert hasattr(AsyncWatch, f"__a{name}__")


def test_callbacks_of_many_threads_that_start_workspaces_do_not_wait_for_each_other_for_ever() -> None:
    code = """
import threading
from workspace import Workspace
def use(text):
    with Workspace.create("local") as inner:
        done.append(inner.run("true").exit_code)
done = []
with Workspace.create("local") as ws:
    threads = [threading.Thread(target=lambda: ws.run("sleep 1; echo hi", on_stdout=use)) for _ in range(40)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
assert done == [0] * 40, done
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


FORK = """
import faulthandler, os, sys
from workspace import Workspace
with Workspace.create("local") as ws:
    ws.run("true")
    child = os.fork()
    if child == 0:
        faulthandler.dump_traceback_later(10, exit=True)
        try:
            {in_child}
        except Exception as error:
            print(type(error).__name__, error, file=sys.stderr)
            os._exit(3)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert ws.run("echo on", timeout_s=10).stdout == "on\\n"
    sys.exit(code)
"""


def test_a_forked_child_may_make_workspaces_of_its_own() -> None:
    in_child = "with Workspace.create('local') as own: assert own.run('echo x').stdout == 'x\\n'"
    done = subprocess.run([sys.executable, "-c", FORK.format(in_child=in_child)], capture_output=True, text=True, timeout=40)
    assert done.returncode == 0, done.stderr


def test_a_forked_child_that_uses_its_parents_workspace_is_told_and_does_not_break_it() -> None:
    done = subprocess.run([sys.executable, "-c", FORK.format(in_child="ws.run('echo x')")], capture_output=True, text=True, timeout=40)
    assert done.returncode in (0, 3), done.stderr

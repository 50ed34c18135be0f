"""The `workspace` command as a person and as a script uses it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from outside import host_processes, new_marker, until, vanishes

COMMAND = str(Path(sys.executable).with_name("workspace"))
Run = Callable[..., subprocess.CompletedProcess[bytes]]


@pytest.fixture
def cli(backend: str, tmp_path: Path) -> Run:
    """Runs the command on the backend under test, in an empty directory."""

    def run(*arguments: str, stdin: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
        env = {**os.environ, "WORKSPACE_BACKEND": backend}
        return subprocess.run([COMMAND, *arguments], input=stdin, capture_output=True, env=env, cwd=tmp_path, timeout=timeout)

    return run


def test_the_exit_code_is_the_commands(cli: Run) -> None:
    assert cli("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert cli("run", "--", "no-such-program").returncode == 127


def test_output_is_exact_in_a_pipe(cli: Run) -> None:
    done = cli("run", "--", "printf '\\000\\377\\033[31m\\n'; echo err >&2")
    assert done.stdout == b"\x00\xff\x1b[31m\n"
    assert done.stderr == b"err\n"


def test_upload_run_download(cli: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("hello")
    (tmp_path / "in" / "skip.log").write_text("x")
    done = cli("run", "-u", "in", "--exclude", "*.log", "-d", "out", "-e", "A=1", "--", "echo $A >b.txt; ls")
    assert (done.returncode, done.stdout) == (0, b"a.txt\nb.txt\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "b.txt"]


def test_a_time_limit_is_exit_code_124(cli: Run) -> None:
    done = cli("run", "-t", "0.5", "--", "sleep", "60")
    assert done.returncode == 124
    assert b"time limit" in done.stderr


def test_standard_input_is_passed_on_request(cli: Run) -> None:
    assert cli("run", "-i", "--", "cat", stdin=b"abc").stdout == b"abc"
    assert cli("run", "--", "cat", stdin=b"abc").stdout == b""


def test_our_own_errors_are_exit_code_125(cli: Run) -> None:
    for arguments in (("run", "-b", "lokal", "--", "true"), ("exec", "nobody", "--", "true"), ("run", "--memory", "lots", "--", "true")):
        done = cli(*arguments)
        assert done.returncode == 125
        assert done.stderr.startswith(b"workspace: ")


def test_a_workspace_lives_between_commands(cli: Run, tmp_path: Path) -> None:
    name = f"cli-{os.urandom(4).hex()}"
    created = cli("create", "--name", name, "--json")
    assert created.returncode == 0, created.stderr
    key = json.loads(created.stdout)["id"]
    try:
        assert cli("exec", key, "--background", "--", "sleep", "300").stdout.strip().isdigit()
        assert b"sleep" in cli("exec", key, "--", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").stdout
        (tmp_path / "f").write_text("content")
        assert cli("cp", "f", f"{name}:/workspace/g").returncode == 0
        assert cli("cat", key, "g").stdout == b"content"
        assert [entry["path"] for entry in json.loads(cli("ls", key, "--json").stdout)] == ["/workspace/g"]
        assert cli("cp", f"{key}:g", "back").returncode == 0
        assert (tmp_path / "back").read_text() == "content"
        listed = {entry["id"]: entry for entry in json.loads(cli("list", "--json").stdout)}
        assert listed[key]["name"] == name
        assert listed[key]["running"]
        assert "no_new_privs" in json.loads(cli("info", key, "--json").stdout)["walls"]
    finally:
        assert cli("kill", key).returncode == 0
    assert key not in cli("list").stdout.decode()


def test_doctor_finds_this_machine_fit(cli: Run, backend: str) -> None:
    done = cli("doctor", "-b", backend, "--json")
    assert done.returncode == 0, done.stdout
    assert all(finding["ok"] for finding in json.loads(done.stdout)[backend] if finding["needed"])


def test_every_command_explains_itself(cli: Run) -> None:
    for name in ("run", "create", "exec", "list", "info", "cp", "ls", "cat", "kill", "prune", "doctor", "demo"):
        assert b"Usage" in cli(name, "--help").stdout


async def test_ctrl_c_kills_inside(backend: str) -> None:
    marker = new_marker()
    process = subprocess.Popen([COMMAND, "run", "-b", backend, "--", "sleep", marker], stderr=subprocess.PIPE)
    try:
        assert await until(lambda: len(host_processes(marker)) > 1, 10)  # the caller's own arguments hold it, too
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 130
        assert await vanishes(marker)
    finally:
        process.kill()
        process.communicate()


def test_a_terminal_gets_colours_and_no_control_of_itself(backend: str) -> None:
    ours, theirs = pty.openpty()
    text = r"printf '\033[31mred\033[0m \033]0;title\007 \033[2J \302\233 done\n'"
    process = subprocess.Popen([COMMAND, "run", "-b", backend, "--", text], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL)
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + 60
    while b"done" not in seen and time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            try:
                seen += os.read(ours, 4096)
            except OSError:
                break
    process.wait(20)
    os.close(ours)
    assert b"\x1b[31mred\x1b[0m" in seen
    assert b"\x1b]0;" not in seen
    assert b"\\x1b" in seen
    assert b"\x1b[2J" not in seen
    assert b"\xc2\x9b" not in seen


@pytest.fixture
def workspace_id(cli: Run) -> Iterator[str]:
    """A workspace that the command made."""
    made = cli("create")
    assert made.returncode == 0, made.stderr
    key = made.stdout.decode().strip()
    yield key
    cli("kill", key)


def on_terminal(*arguments: str, within_s: float = 30) -> bytes:
    """What the command writes on a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen, deadline = b"", time.monotonic() + within_s
    try:
        while time.monotonic() < deadline and select.select([ours], [], [], within_s)[0]:
            seen += os.read(ours, 65536)
    except OSError:  # EIO: nobody has the other side open any more
        pass
    finally:
        os.close(ours)
        process.kill()
        process.wait()
    return seen


def test_binary_data_passes_through_unchanged(cli: Run) -> None:
    data = os.urandom(1_000_000)
    assert cli("run", "-i", "--", "cat", stdin=data).stdout == data


def test_run_ends_with_its_command_although_standard_input_stays_open(backend: str) -> None:
    process = subprocess.Popen([COMMAND, "run", "-b", backend, "-i", "--", "true"], stdin=subprocess.PIPE)
    try:
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


async def test_ctrl_c_ends_a_run_that_waits_for_standard_input(backend: str) -> None:
    marker = new_marker()
    process = subprocess.Popen(
        [COMMAND, "run", "-b", backend, "-i", "--", "sleep", marker], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert await until(lambda: len(host_processes(marker)) > 1, 20)  # the caller's own arguments hold it, too
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 130
        assert await vanishes(marker)
    finally:
        process.kill()
        process.wait()
        assert process.stdin
        process.stdin.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_a_killed_run_leaves_nothing_running(backend: str, number: signal.Signals) -> None:
    marker = new_marker()
    process = subprocess.Popen([COMMAND, "run", "-b", backend, "--", "sleep", marker], stderr=subprocess.DEVNULL)
    try:
        assert await until(lambda: len(host_processes(marker)) > 1, 20)  # the caller's own arguments hold it, too
        process.send_signal(number)
        process.wait(20)
        assert await vanishes(marker, 15)
    finally:
        process.kill()
        process.wait()


def test_a_reader_that_goes_away_ends_the_run_with_141(backend: str) -> None:
    process = subprocess.Popen([COMMAND, "run", "-b", backend, "--", "yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        assert process.wait(20) == 141
        assert process.stderr
        assert b"Traceback" not in process.stderr.read()
    finally:
        process.kill()
        process.wait()
        assert process.stderr
        process.stderr.close()


def test_a_working_directory_that_was_removed_is_no_traceback(backend: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f'rmdir "$PWD"; exec "{COMMAND}" run -b {backend} -- echo ok'
    done = subprocess.run(["sh", "-c", script], cwd=gone, capture_output=True, timeout=60)
    assert b"Traceback" not in done.stderr


def test_directory_environment_and_limit_of_an_exec(cli: Run, workspace_id: str) -> None:
    assert cli("exec", "-w", "/tmp", "-e", "A=x y", workspace_id, "--", "pwd; echo $A").stdout == b"/tmp\nx y\n"
    assert cli("exec", workspace_id, "--", "sh", "-c", "exit 9").returncode == 9
    assert cli("exec", "-t", "0.5", workspace_id, "--", "sleep", "60").returncode == 124


def test_one_word_with_spaces_is_for_the_shell_in_the_background_too(cli: Run, workspace_id: str) -> None:
    assert cli("exec", workspace_id, "--", "echo a b").stdout == b"a b\n"
    done = cli("exec", "--background", workspace_id, "--", "echo hi >made; sleep 100")
    assert (done.returncode, done.stderr) == (0, b"")


async def test_a_time_limit_holds_in_the_background_too(backend: str, cli: Run, workspace_id: str) -> None:
    marker = new_marker()
    done = cli("exec", "--background", "-t", "1", workspace_id, "--", "sleep", marker)
    assert done.returncode == 0
    assert await vanishes(marker, 6)


def test_names_with_control_characters_are_escaped_in_lists(cli: Run, workspace_id: str) -> None:
    name = "a\x1b]0;x\x07b\nc"
    assert cli("exec", workspace_id, "--", "touch", name).returncode == 0
    listed = cli("ls", workspace_id).stdout
    assert b"\x1b" not in listed
    assert listed.count(b"\n") == 1
    assert b"a\\x1b]0;x\\x07b\\nc" in listed
    assert json.loads(cli("ls", "--json", workspace_id).stdout)[0]["path"] == f"/workspace/{name}"
    assert b"\x1b]0;" not in on_terminal("ls", workspace_id)


def test_names_are_shown_as_they_are_on_a_terminal(cli: Run, workspace_id: str) -> None:
    assert cli("exec", workspace_id, "--", "touch", "[red]x", ":snake:").returncode == 0
    seen = on_terminal("ls", workspace_id)
    assert b"[red]x" in seen
    assert b":snake:" in seen
    assert b":snake:" in on_terminal("cat", workspace_id, ":snake:-missing")


def test_ids_are_whole_on_a_narrow_terminal(cli: Run) -> None:
    name = "n" * 63
    key = cli("create", "-n", name).stdout.decode().strip()
    try:
        assert key.encode() in on_terminal("list")
    finally:
        assert cli("kill", key).returncode == 0


def test_cat_is_exact_in_a_pipe_and_escaped_on_a_terminal(cli: Run, workspace_id: str) -> None:
    data = b"\x1b]0;t\x07\x00\xff\x1b[31mred\x1b[0m\n"
    cli("exec", "-i", workspace_id, "--", "cat >f", stdin=data)
    assert cli("cat", workspace_id, "f").stdout == data
    seen = on_terminal("cat", workspace_id, "f")
    assert b"\x1b]0;" not in seen
    assert b"\x1b[31mred" in seen


def test_prune_answers_with_a_list(cli: Run, backend: str, workspace_id: str) -> None:
    removed = json.loads(cli("prune", "-b", backend, "--json").stdout)
    assert isinstance(removed, list)
    assert workspace_id not in removed
    assert cli("exec", workspace_id, "--", "true").returncode == 0


def test_a_completion_script_is_offered() -> None:
    done = subprocess.run([COMMAND], env={**os.environ, "_WORKSPACE_COMPLETE": "source_bash"}, capture_output=True, timeout=30)
    assert b"complete -o default -F _workspace_completion workspace" in done.stdout

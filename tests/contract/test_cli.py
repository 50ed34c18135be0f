"""The `workspace` command as a person and as a script uses it."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
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

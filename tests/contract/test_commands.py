"""Commands: how they start, what they see, how they end, and that nothing of them stays."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from outside import appears, host_processes, new_marker, vanishes

from workspace import (
    AsyncWorkspace,
    CannotStart,
    CommandFailed,
    CommandNotFound,
    CommandTimeout,
    InvalidArgument,
    WorkspaceError,
)

DAEMONS = {
    "setsid": "setsid sleep {0}; true",
    "setsid_fork": "setsid --fork sleep {0}; sleep {0}",
    "double_fork": "( ( sleep {0} & ) & ); sleep {0}",
    "nohup": "nohup sleep {0} >/dev/null 2>&1 & sleep {0}",
    "ignores_sigterm": "trap '' TERM INT HUP; sleep {0} & sleep {0}",
    "closes_everything": "setsid sh -c 'exec <&- >&- 2>&-; exec sleep {0}' & sleep {0}",
    "python_daemon": 'python3 -c \'import os\nif os.fork()==0:\n os.setsid()\n if os.fork()==0: os.execvp("sleep",["sleep","{0}"])\n'
    " os._exit(0)\nos.wait()'; sleep {0}",
    "reparented_chain": "for i in 1 2 3 4 5; do ( setsid sleep {0} & ) ; done; sleep {0}",
}


async def processes_inside(ws: AsyncWorkspace, marker: str) -> list[str]:
    """Command lines of processes inside that hold `marker`, looked up from inside."""
    script = 'for f in /proc/[0-9]*/cmdline; do tr "\\0" " " <$f 2>/dev/null; echo; done; true'
    lines = (await ws.run(script)).stdout.splitlines()
    return [line for line in lines if marker in line]


async def nothing_left(ws: AsyncWorkspace, marker: str) -> bool:
    return await vanishes(marker, 3) and not await processes_inside(ws, marker)


# Where a command runs and what it sees


async def test_default_directory_is_workspace(ws: AsyncWorkspace) -> None:
    assert (await ws.run("pwd; echo $PWD")).stdout == "/workspace\n/workspace\n"
    assert (await ws.run(["pwd"])).stdout == "/workspace\n"


async def test_a_relative_path_is_the_same_file_for_files_and_commands(ws: AsyncWorkspace) -> None:
    await ws.files.write("rel.txt", "one")
    assert (await ws.run("cat rel.txt")).stdout == "one"
    await ws.run("printf two >other.txt")
    assert await ws.files.read_text("other.txt") == "two"
    await ws.run("printf three >~/in_home")
    assert await ws.files.read_text("~/in_home") == "three"


async def test_host_environment_is_never_inside(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = secrets.token_hex(16)
    monkeypatch.setenv("MY_CLOUD_TOKEN", secret)
    async with AsyncWorkspace.create(backend) as ws:
        result = await ws.run("env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null; true")
        assert secret not in result.stdout
        assert "MY_CLOUD_TOKEN" not in result.stdout
        names = {line.partition("=")[0] for line in (await ws.run(["env"])).stdout.splitlines()}
        assert names <= {"PATH", "HOME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME", "PWD"}


async def test_env_of_a_command_adds_to_env_of_the_workspace_and_wins(backend: str) -> None:
    async with AsyncWorkspace.create(backend, env={"A": "workspace", "B": "workspace"}) as ws:
        script = 'echo "$A $B $C"'
        assert (await ws.run(script, env={"B": "command", "C": "command"})).stdout == "workspace command command\n"
        assert (await ws.run(script)).stdout == "workspace workspace \n"
        assert (await ws.run(["env"], env={"PATH": "/usr/bin:/bin"})).stdout.count("PATH=") == 1


async def test_env_values_arrive_as_they_are(ws: AsyncWorkspace) -> None:
    value = "a b\n'\"$HOME`id`\\ ü =x"
    assert (await ws.run(["printenv", "V"], env={"V": value})).stdout == value + "\n"
    raw = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert (await ws.run(["printenv", "V"], env={"V": raw})).stdout_bytes == b"\xff\xfe\n"


@pytest.mark.parametrize("env", [{"": "x"}, {"A=B": "x"}, {"A\0": "x"}, {"A": "\0"}, {"A": 1}, {1: "x"}])
async def test_env_that_no_process_can_have_is_refused(ws: AsyncWorkspace, env: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        await ws.run("true", env=env)


async def test_user_home_and_python(ws: AsyncWorkspace) -> None:
    result = await ws.run('id -un; echo "$HOME $USER $LOGNAME"; cd && pwd; python3 -c "print(6*7)"')
    assert result.stdout == "user\n/home/user user user\n/home/user\n42\n"
    assert result.stderr == ""


async def test_locale_is_utf8(ws: AsyncWorkspace) -> None:
    script = "import sys,locale;print(sys.stdout.encoding, sys.getfilesystemencoding(), 'ü€')"
    assert (await ws.run(["python3", "-c", script])).stdout == "utf-8 utf-8 ü€\n"


async def test_own_tools_are_not_shadowed_by_ours(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir -p ~/.local/bin && printf '#!/bin/sh\\necho mine' >~/.local/bin/python3 && chmod +x ~/.local/bin/python3")
    assert (await ws.run("python3 -V")).stdout == "mine\n"
    path = (await ws.run("echo $PATH; python3 -c 'import sys' ")).stdout
    assert "workspace" not in path


async def test_stdin_not_given_is_end_of_file(ws: AsyncWorkspace) -> None:
    result = await asyncio.wait_for(ws.run("cat; read x; echo $?"), 5)
    assert result.stdout == "1\n"


@pytest.mark.parametrize("command", ["", "   ", [], [""], ["a\0b"], "a\0b", ["ok", 1], b"true", ["true", b"x"]])
async def test_a_command_that_cannot_be_one_is_refused(ws: AsyncWorkspace, command: object) -> None:
    with pytest.raises(InvalidArgument):
        await ws.run(command)  # type: ignore[arg-type]


async def test_argv_over_the_kernels_limit_is_a_typed_error(ws: AsyncWorkspace) -> None:
    with pytest.raises(CannotStart) as caught:
        await ws.run(["echo", "x" * 200_000])
    assert isinstance(caught.value, OSError)
    with pytest.raises(WorkspaceError):
        await ws.run(["echo", *["y" * 100_000] * 40])
    assert (await ws.run("echo ok")).stdout == "ok\n"


async def test_argv_arrives_as_it_is(ws: AsyncWorkspace) -> None:
    words = ["", "a b", "-n", "*", "$HOME", "new\nline", "ü", b"\xff\x80".decode("utf-8", "surrogateescape"), "'", '"', "\\"]
    result = await ws.run(["python3", "-c", "import sys,os;os.write(1,b'|'.join(os.fsencode(a) for a in sys.argv[1:]))", *words])
    assert result.stdout_bytes == b"|".join(os.fsencode(word) for word in words)


async def test_a_lone_surrogate_that_is_no_byte_is_a_typed_error(ws: AsyncWorkspace) -> None:
    for attempt in (lambda: ws.run(["echo", "\ud800"]), lambda: ws.run("true", env={"A": "\ud800"}), lambda: ws.run("true", cwd="\ud800")):
        with pytest.raises(WorkspaceError):
            await asyncio.wait_for(attempt(), 5)
    assert ws.alive
    assert (await ws.run("echo ok")).stdout == "ok\n"


async def test_a_string_is_run_by_a_shell_with_pipes(ws: AsyncWorkspace) -> None:
    result = await ws.run("echo one two | wc -w; exit 3")
    assert (result.stdout.strip(), result.exit_code, result.ok) == ("2", 3, False)


# The directory


async def test_missing_cwd_is_a_typed_error_and_nothing_runs(ws: AsyncWorkspace) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await ws.run("touch /workspace/ran", cwd="nowhere")
    assert isinstance(caught.value, WorkspaceError)
    assert "nowhere" in str(caught.value)
    assert not await ws.files.exists("ran")


async def test_cwd_that_is_no_directory_is_a_typed_error(ws: AsyncWorkspace) -> None:
    await ws.files.write("file", "")
    with pytest.raises(NotADirectoryError) as caught:
        await ws.run("touch /workspace/ran", cwd="file")
    assert isinstance(caught.value, WorkspaceError)
    assert not await ws.files.exists("ran")
    with pytest.raises(NotADirectoryError):
        await ws.commands.start("touch /workspace/ran", cwd="file")


async def test_cwd_that_may_not_be_entered_is_a_typed_error(ws: AsyncWorkspace) -> None:
    await ws.run("mkdir shut && chmod 0 shut")
    with pytest.raises(PermissionError) as caught:
        await ws.run("true", cwd="shut")
    assert isinstance(caught.value, WorkspaceError)


async def test_cwd_is_relative_to_workspace_and_knows_home(ws: AsyncWorkspace) -> None:
    await ws.files.mkdir("a/b")
    assert (await ws.run("pwd", cwd="a/b")).stdout == "/workspace/a/b\n"
    assert (await ws.run("pwd; echo $PWD", cwd="~")).stdout == "/home/user\n/home/user\n"


# How it ends


async def test_missing_program_is_exit_127_with_a_message_on_stderr(ws: AsyncWorkspace) -> None:
    for command in (["no-such-program", "x"], "no-such-program x", ["/no/such/program"], ["./nope"]):
        result = await ws.run(command)
        assert result.exit_code == 127, command
        assert result.stdout == ""
        assert "such" in result.stderr or "nope" in result.stderr
        assert result.signal is None


async def test_a_program_that_may_not_be_executed_is_exit_126(ws: AsyncWorkspace) -> None:
    await ws.files.write("plain", "#!/bin/sh\necho no\n")
    for command in (["./plain"], "./plain", ["/workspace"]):
        result = await ws.run(command)
        assert result.exit_code == 126, command
        assert result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
async def test_death_by_signal_is_128_plus_n(ws: AsyncWorkspace, number: signal.Signals) -> None:
    result = await ws.run(f"kill -{int(number)} $$")
    assert (result.exit_code, result.signal) == (128 + number, number)


async def test_check_raises_with_the_result(ws: AsyncWorkspace) -> None:
    with pytest.raises(CommandFailed) as caught:
        await ws.run("echo out; echo bad >&2; exit 7", check=True)
    assert caught.value.result.exit_code == 7
    assert (caught.value.stdout, caught.value.stderr) == ("out\n", "bad\n")
    assert "bad" in str(caught.value)
    assert (await ws.run("true", check=True)).ok


async def test_signals_are_at_their_defaults_inside(ws: AsyncWorkspace) -> None:
    result = await ws.run(["sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status"])
    ours = (1 << 31) - 1  # glibc's posix_spawn ignores 32 and 33, which are its own
    assert [int(line.split()[1], 16) & ours for line in result.stdout.splitlines()] == [0, 0]


async def test_a_command_inherits_no_descriptors_of_ours(ws: AsyncWorkspace) -> None:
    listing = "import os;print(sorted(int(f) for f in os.listdir('/proc/self/fd')))"
    result = await ws.run(["python3", "-c", listing])
    assert result.stdout == "[0, 1, 2, 3]\n"  # 3 is the listing itself


# Time limits


async def test_timeout_is_kept_when_a_shell_has_a_child(ws: AsyncWorkspace) -> None:
    begun = time.monotonic()
    with pytest.raises(CommandTimeout) as caught:
        await ws.run(["sh", "-c", "sleep 14; true"], timeout_s=0.5)
    assert 0.4 < time.monotonic() - begun < 2
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("how", DAEMONS)
async def test_timeout_kills_daemonised_grandchildren(ws: AsyncWorkspace, how: str) -> None:
    marker = new_marker()
    running = asyncio.ensure_future(ws.run(DAEMONS[how].format(marker), timeout_s=0.6))
    assert await appears(marker)
    with pytest.raises(CommandTimeout):
        await running
    assert await nothing_left(ws, marker)
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_when_the_timeout_is_raised_its_processes_are_gone_already(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    with pytest.raises(CommandTimeout):
        await ws.run(DAEMONS["reparented_chain"].format(marker), timeout_s=0.5)
    assert await processes_inside(ws, marker) == []


async def test_timeout_error_has_the_output_so_far(ws: AsyncWorkspace) -> None:
    with pytest.raises(CommandTimeout) as caught:
        await ws.run("echo early; echo trouble >&2; sleep 30", timeout_s=0.4)
    assert (caught.value.stdout, caught.value.stderr) == ("early\n", "trouble\n")
    assert caught.value.result.stdout_bytes == b"early\n"


async def test_timeout_none_is_no_limit_and_the_default_is_the_specs(backend: str) -> None:
    async with AsyncWorkspace.create(backend, timeout_s=0.3) as ws:
        with pytest.raises(CommandTimeout):
            await ws.run("sleep 20")
        assert (await ws.run("sleep 0.5; echo done", timeout_s=None)).stdout == "done\n"
        assert (await ws.run("sleep 0.5; echo done", timeout_s=10)).stdout == "done\n"


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf"), 1e12])
async def test_a_limit_that_is_none_is_refused(ws: AsyncWorkspace, limit: float) -> None:
    with pytest.raises(InvalidArgument):
        await ws.run("true", timeout_s=limit)


async def test_a_tree_that_forks_without_end_is_killed_at_its_timeout(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    bomb = f"import os\nwhile True:\n try:\n  if os.fork()==0: os.setsid()\n except OSError: pass\n # {marker}"
    with pytest.raises((CommandTimeout, WorkspaceError)):
        await asyncio.wait_for(ws.run(["python3", "-c", bomb], timeout_s=0.5), 30)
    assert await vanishes(marker, 10)
    assert (await ws.run("echo usable")).stdout == "usable\n"


# Cancelling


@pytest.mark.parametrize("how", DAEMONS)
async def test_cancelling_the_awaiting_task_leaves_no_process(ws: AsyncWorkspace, how: str) -> None:
    marker = new_marker()
    running = asyncio.ensure_future(ws.run(DAEMONS[how].format(marker)))
    assert await appears(marker)
    await asyncio.sleep(0.1)  # let it daemonise
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await nothing_left(ws, marker)


async def test_asyncio_timeout_around_a_run_leaves_no_process(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await ws.run(f"setsid sleep {marker} & sleep {marker}")
    assert await nothing_left(ws, marker)


async def test_cancelling_at_any_moment_leaves_no_process(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    for step in range(40):
        running = asyncio.ensure_future(ws.run(["sleep", marker]))
        for _ in range(step % 8):
            await asyncio.sleep(0)
        if step >= 20:
            await asyncio.sleep(0.0005 * (step - 19))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert await nothing_left(ws, marker)
    assert await ws.commands.list() == []


async def test_cancelling_a_start_that_is_under_way_leaves_no_process(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    for _ in range(10):
        starting = asyncio.ensure_future(ws.commands.start(["sleep", marker]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    await ws.ping()
    assert await vanishes(marker, 2), f"{len(host_processes(marker))} commands run that nobody has a handle of"


async def test_a_failing_callback_ends_the_command_and_is_raised(ws: AsyncWorkspace) -> None:
    marker = new_marker()

    def refuse(text: str) -> None:
        raise RuntimeError(f"not {text.strip()}")

    with pytest.raises(RuntimeError, match="not one"):
        await ws.run(f"echo one; sleep {marker}", on_stdout=refuse)
    assert await nothing_left(ws, marker)


async def test_killing_its_parent_is_no_way_to_outlive_a_timeout(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    script = f"setsid sleep {marker} & kill -9 $PPID; kill -STOP $PPID; sleep {marker}"
    with contextlib.suppress(CommandTimeout):  # or it died with its parent
        assert (await asyncio.wait_for(ws.run(script, timeout_s=0.7), 10)).exit_code == 137
    assert await nothing_left(ws, marker)
    assert (await ws.run("echo usable")).stdout == "usable\n"


ESCAPES = {
    "ulimit": "ulimit -Sx 0; ulimit -Sx 1; ulimit -x unlimited; ulimit -Hx 5; setsid sleep {0} & sleep {0}",
    "prlimit": "prlimit --pid $$ --locks=0:0; prlimit --pid $$ --locks=unlimited; setsid sleep {0} & sleep {0}",
    "python": "python3 -c 'import resource as r,os\nfor v in (0,1,2,99,-1):\n for h in (v,-1):\n  try: r.setrlimit(10,(v,h))\n"
    '  except Exception: pass\nos.setsid() if os.fork()==0 else 0\nos.execvp("sleep",["sleep","{0}"])\'',
    "raw": "python3 -c 'import ctypes as c,os\nl=c.CDLL(None)\nb=(c.c_ulong*2)(0,0)\nl.syscall(160,10,b)\nl.syscall(302,0,10,b,None,0,0)\n"
    'os.setsid() if os.fork()==0 else 0\nos.execvp("sleep",["sleep","{0}"])\'',
    "namespace": "unshare -Urpf setsid sleep {0} & unshare -pf sleep {0} & setsid sleep {0} & sleep {0}",
}


@pytest.mark.parametrize("how", ESCAPES)
async def test_no_trick_of_a_command_lets_its_children_outlive_it(ws: AsyncWorkspace, how: str) -> None:
    marker = new_marker()
    running = asyncio.ensure_future(ws.run(ESCAPES[how].format(marker), timeout_s=1))
    assert await appears(marker)
    with pytest.raises(CommandTimeout):
        await running
    assert await nothing_left(ws, marker)
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_user_code_cannot_kill_or_stop_our_process(ws: AsyncWorkspace) -> None:
    await ws.run("kill -9 1; kill -STOP 1; kill -TERM 1; kill -SEGV 1; true")
    assert (await ws.run("echo usable")).stdout == "usable\n"
    readings = await ws.run("cat /proc/1/environ >/dev/null; ls /proc/1/fd; cat /proc/1/mem")
    assert readings.exit_code != 0
    trace = "import ctypes;l=ctypes.CDLL(None,use_errno=True);print(l.ptrace(16,1,0,0))"
    result = await ws.run(["python3", "-c", trace])
    assert result.stdout.strip() in ("-1", "")


async def test_kill_minus_one_from_inside_leaves_the_workspace_usable(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("sleep 60")
    await asyncio.wait_for(ws.run("kill -9 -1", timeout_s=5), 10)
    assert (await asyncio.wait_for(handle.wait(), 5)).signal == signal.SIGKILL
    assert (await ws.run("echo usable")).stdout == "usable\n"


# What is left in the background


async def test_a_background_child_survives_the_call_and_is_listed_and_killable(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    result = await asyncio.wait_for(ws.run(f"sleep {marker} >/dev/null 2>&1 & echo $!"), 5)
    pid = int(result.stdout)
    (entry,) = await ws.commands.list()
    assert entry.ended
    assert pid in entry.pids
    assert host_processes(marker)
    assert await ws.commands.kill(pid)
    assert await vanishes(marker)
    assert not await ws.commands.kill(pid)


async def test_killing_an_ended_command_kills_what_it_left(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    result = await ws.run(f"setsid sleep {marker} & sleep {marker} & true")
    assert await appears(marker, 2)
    assert await ws.commands.kill(result.pid)
    assert await nothing_left(ws, marker)


async def test_a_background_child_that_holds_stdout_does_not_hold_the_call(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    begun = time.monotonic()
    result = await ws.run(f"sleep {marker} & echo done")
    assert time.monotonic() - begun < 1
    assert result.stdout == "done\n"
    assert host_processes(marker)


async def test_a_background_child_that_floods_stdout_does_not_hold_the_call(ws: AsyncWorkspace) -> None:
    begun = time.monotonic()
    result = await asyncio.wait_for(ws.run("yes & echo done"), 10)
    assert time.monotonic() - begun < 5
    assert "done\n" in result.stdout
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_a_background_child_whose_output_nobody_reads_goes_on(ws: AsyncWorkspace) -> None:
    """Neither SIGPIPE nor a full pipe ends it when the call has returned."""
    script = "(sleep 0.2; head -c 3000000 /dev/zero | tr '\\0' x; echo end >/workspace/mark) & true"
    await ws.run(script)
    deadline = time.monotonic() + 5
    while not await ws.files.exists("mark"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_twenty_daemons_leave_no_zombies(ws: AsyncWorkspace) -> None:
    await ws.run("for i in $(seq 20); do ( setsid sh -c 'sleep 0.05' & ) ; done")
    states = "cat /proc/[0-9]*/stat 2>/dev/null | grep -c ' Z '"
    deadline = time.monotonic() + 3
    while (await ws.run(states)).stdout.strip() != "0" or await ws.commands.list():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


# The handle


async def test_start_returns_while_the_command_runs_and_wait_gives_its_result(ws: AsyncWorkspace) -> None:
    begun = time.monotonic()
    handle = await ws.commands.start("sleep 0.4; echo out; echo err >&2; exit 4")
    assert time.monotonic() - begun < 0.35
    assert handle.running
    result = await handle.wait()
    assert (result.exit_code, result.stdout, result.stderr) == (4, "out\n", "err\n")
    assert result.pid == handle.pid
    assert not handle.running


async def test_iterating_a_handle_gives_output_as_it_comes(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("for i in 1 2 3; do echo $i; read x; done", stdin=True)
    seen = []
    async for chunk in handle:
        assert chunk.stream == "stdout"
        seen.append(chunk.text)
        await handle.send_stdin("go\n")
    assert "".join(seen) == "1\n2\n3\n"
    assert (await handle.wait()).exit_code == 0


async def test_stdin_of_a_handle_is_sent_in_pieces_and_closed(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start(["cat"], stdin=True)
    await handle.send_stdin("text ")
    await handle.send_stdin(b"\x00\xff")
    await handle.close_stdin()
    assert (await asyncio.wait_for(handle.wait(), 5)).stdout_bytes == b"text \x00\xff"


async def test_send_stdin_without_stdin_is_refused(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("sleep 5")
    with pytest.raises(InvalidArgument):
        await handle.send_stdin("x")
    await handle.kill()


async def test_send_stdin_to_an_ended_command_is_a_typed_error(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("true", stdin=True)
    await handle.wait()
    with pytest.raises(WorkspaceError):
        await asyncio.wait_for(handle.send_stdin("x"), 5)


async def test_signal_reaches_the_command(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("trap 'echo got; exit 5' USR1; echo ready; while :; do sleep 0.02; done")
    async for chunk in handle:
        if "ready" in chunk.text:
            await handle.signal(signal.SIGUSR1)
    result = await asyncio.wait_for(handle.wait(), 5)
    assert (result.exit_code, result.stdout) == (5, "ready\ngot\n")


async def test_a_signal_that_does_not_exist_is_a_typed_error(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("sleep 50")
    for number in (999, -1):
        with pytest.raises(WorkspaceError):
            await handle.signal(number)
    assert handle.running
    await handle.kill()


async def test_signal_to_no_process_is_command_not_found(ws: AsyncWorkspace) -> None:
    for pid in (1, 2, 99999, 0, -1):
        with pytest.raises(CommandNotFound):
            await ws.commands.signal(pid, signal.SIGTERM)
    assert (await ws.run("echo usable")).stdout == "usable\n"


@pytest.mark.parametrize("how", DAEMONS)
async def test_kill_of_a_handle_takes_the_whole_tree(ws: AsyncWorkspace, how: str) -> None:
    marker = new_marker()
    handle = await ws.commands.start(DAEMONS[how].format(marker))
    assert await appears(marker)
    assert await handle.kill()
    result = await asyncio.wait_for(handle.wait(), 5)
    assert (result.exit_code, result.signal) == (137, signal.SIGKILL)
    assert await nothing_left(ws, marker)
    assert not await handle.kill()


async def test_a_handle_can_have_a_timeout(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    handle = await ws.commands.start(f"echo early; setsid sleep {marker}; true", timeout_s=0.4)
    with pytest.raises(CommandTimeout) as caught:
        await handle.wait()
    assert caught.value.stdout == "early\n"
    assert await nothing_left(ws, marker)


async def test_start_of_a_missing_program_is_an_error(ws: AsyncWorkspace) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        await ws.commands.start(["no-such-program"])
    assert isinstance(caught.value, WorkspaceError)
    assert await ws.commands.list() == []


async def test_list_tells_what_runs(ws: AsyncWorkspace) -> None:
    await ws.files.mkdir("sub")
    handle = await ws.commands.start(["sleep", "77"], cwd="sub")
    (entry,) = await ws.commands.list()
    assert (entry.pid, entry.argv, entry.cwd, entry.user) == (handle.pid, ("sleep", "77"), "/workspace/sub", "user")
    assert entry.background
    assert not entry.ended
    assert handle.pid in entry.pids
    assert abs(entry.started_at - time.time()) < 30
    await handle.kill()
    await handle.wait()
    assert await ws.commands.list() == []


async def test_connect_from_a_second_handle_replays_recent_output(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("echo first; echo trouble >&2; read x; echo second; read y; exit 9", stdin=True)
    async for chunk in handle:
        if "first" in chunk.text:
            break
    async with AsyncWorkspace.connect(ws.id) as other:
        assert [entry.pid for entry in await other.commands.list()] == [handle.pid]
        again = await other.commands.connect(handle.pid)
        assert again.pid == handle.pid
        await again.send_stdin("go\n")
        await handle.send_stdin("go\n")
        mine, theirs = await asyncio.wait_for(asyncio.gather(handle.wait(), again.wait()), 5)
        assert mine.stdout == theirs.stdout == "first\nsecond\n"
        assert mine.stderr == theirs.stderr == "trouble\n"
        assert mine.exit_code == theirs.exit_code == 9
    assert ws.alive


async def test_connect_to_an_ended_command_gives_its_result(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("echo said; exit 3")
    await handle.wait()
    result = await (await ws.commands.connect(handle.pid)).wait()
    assert (result.exit_code, result.stdout) == (3, "said\n")


async def test_connect_to_no_command_is_command_not_found(ws: AsyncWorkspace) -> None:
    for pid in (1, 424242, 0, -5):
        with pytest.raises(CommandNotFound):
            await ws.commands.connect(pid)


async def test_disconnect_leaves_the_command_running(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    handle = await ws.commands.start(["sleep", marker])
    await handle.disconnect()
    assert host_processes(marker)
    again = await ws.commands.connect(handle.pid)
    assert again.running
    assert await again.kill()
    assert (await again.wait()).signal == signal.SIGKILL


async def test_wait_after_disconnect_does_not_invent_a_result(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("sleep 60")
    await handle.disconnect()
    with pytest.raises(WorkspaceError):
        await asyncio.wait_for(handle.wait(), 2)


async def test_a_background_command_outlives_the_second_handle_that_started_it(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    async with AsyncWorkspace.connect(ws.id) as other:
        await other.commands.start(["sleep", marker])
    assert len(await ws.commands.list()) == 1
    assert host_processes(marker)


async def test_closing_a_second_handle_kills_its_foreground_commands(ws: AsyncWorkspace) -> None:
    marker = new_marker()
    other = await AsyncWorkspace.connect(ws.id)
    running = asyncio.ensure_future(other.run(f"setsid sleep {marker} & sleep {marker}"))
    assert await appears(marker)
    await other.close()
    with pytest.raises(WorkspaceError):
        await asyncio.wait_for(running, 5)
    assert await nothing_left(ws, marker)


async def test_cancelling_wait_leaves_the_background_command(ws: AsyncWorkspace) -> None:
    handle = await ws.commands.start("read x; echo $x", stdin=True)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle.wait(), 0.1)
    assert handle.running
    await handle.send_stdin("on\n")
    assert (await handle.wait()).stdout == "on\n"


# Standard input


def _pieces() -> Iterator[bytes]:
    for number in range(100):
        yield b"%d\n" % number


async def _async_pieces() -> AsyncIterator[bytes]:
    for piece in _pieces():
        yield piece
        await asyncio.sleep(0)


async def test_stdin_in_every_form(ws: AsyncWorkspace) -> None:
    whole = b"".join(_pieces())
    for given in (whole, whole.decode(), _pieces(), _async_pieces(), [whole]):
        assert (await asyncio.wait_for(ws.run(["cat"], stdin=given), 5)).stdout_bytes == whole
    assert (await asyncio.wait_for(ws.run(["cat"], stdin=b""), 5)).stdout_bytes == b""
    assert (await asyncio.wait_for(ws.run(["cat"], stdin=[]), 5)).stdout_bytes == b""


async def test_large_stdin_to_a_command_that_reads_little(ws: AsyncWorkspace) -> None:
    result = await asyncio.wait_for(ws.run("head -c 3", stdin=b"abc" * 20_000_000), 20)
    assert result.stdout == "abc"
    assert (await ws.run("echo usable")).stdout == "usable\n"


async def test_large_stdin_comes_back_whole(ws: AsyncWorkspace) -> None:
    data = os.urandom(8_000_000)
    assert (await asyncio.wait_for(ws.run(["cat"], stdin=data), 20)).stdout_bytes == data


async def test_a_stdin_source_that_fails_is_raised_and_hangs_nothing(ws: AsyncWorkspace) -> None:
    marker = new_marker()

    def broken() -> Iterator[bytes]:
        yield b"one\n"
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        await asyncio.wait_for(ws.run(f"cat; sleep {marker}", stdin=broken()), 5)
    assert await nothing_left(ws, marker)


async def test_stdin_text_that_is_not_utf8_round_trips(ws: AsyncWorkspace) -> None:
    text = b"\xff\xfe".decode("utf-8", "surrogateescape")
    assert (await asyncio.wait_for(ws.run(["cat"], stdin=text), 5)).stdout_bytes == b"\xff\xfe"


async def test_stdin_of_the_wrong_type_is_refused(ws: AsyncWorkspace) -> None:
    for wrong in (5, ["text, not bytes"]):
        with pytest.raises((InvalidArgument, TypeError)):
            await asyncio.wait_for(ws.run(["cat"], stdin=wrong), 5)  # type: ignore[arg-type]


# Many


async def test_twenty_sleeps_at_once_take_as_long_as_one(ws: AsyncWorkspace) -> None:
    await ws.run("true")
    begun = time.monotonic()
    await asyncio.gather(*(ws.run("sleep 0.5") for _ in range(20)))
    assert time.monotonic() - begun < 1.2


async def test_two_hundred_commands_at_once(ws: AsyncWorkspace) -> None:
    results = await asyncio.gather(*(ws.run(["sh", "-c", f"echo {number}; exit {number}"]) for number in range(200)))
    assert [(result.exit_code, result.stdout) for result in results] == [(number, f"{number}\n") for number in range(200)]


async def test_two_thousand_commands_in_a_row(ws: AsyncWorkspace) -> None:
    await ws.run("true")
    before = await ws.metrics()
    for number in range(2000):
        result = await ws.run(["echo", str(number)])
        assert result.stdout == f"{number}\n"
    after = await ws.metrics()
    assert after.processes <= before.processes + 2
    assert after.memory_bytes - before.memory_bytes < 8 * 1024 * 1024


async def test_the_limit_of_processes_is_kept_and_the_workspace_stays_usable(ws: AsyncWorkspace) -> None:
    script = "import subprocess\nfor i in range(2000):\n try: subprocess.Popen(['sleep','30'])\n except OSError: print('refused'); break"
    assert (await ws.run(["python3", "-c", script], timeout_s=30)).stdout == "refused\n"
    for entry in await ws.commands.list():
        await ws.commands.kill(entry.pid)
    deadline = time.monotonic() + 10
    while await ws.commands.list():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert (await ws.run("echo usable")).stdout == "usable\n"

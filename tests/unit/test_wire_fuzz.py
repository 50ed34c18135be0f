"""A hostile guest at the other end of a `Link`: whatever it sends, the host gets a typed error in time, in bounded memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from workspace import link as link_module
from workspace.backend import Sandbox, SandboxInfo
from workspace.commands import AsyncCommands
from workspace.errors import ProtocolError, WorkspaceError, WorkspaceGone, from_guest
from workspace.files import AsyncFiles
from workspace.guest import wire
from workspace.link import Link
from workspace.session import Session
from workspace.spec import WorkspaceSpec

MIB = 1024 * 1024
DEADLINE_S = 2.0
HELLO = wire.pack(
    wire.HELLO, 0, json.dumps({"version": wire.VERSION, "window": wire.WINDOW, "home": "/home/user", "shell": "/bin/sh"}).encode()
)
quick = settings(
    max_examples=50,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    phases=[Phase.explicit, Phase.generate],  # no shrinking: an example that hangs costs its deadline each time
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
codes = st.sampled_from(
    [
        "ENOENT",
        "EACCES",
        "EAGAIN",
        "ENOSPC",
        "ESRCH",
        "E2BIG",
        "bad_pattern",
        "guest_fault",
        "errorcode",
        "__name__",
        "__doc__",
        "\udcff",
        "",
        "ENXIO",
    ]
) | st.text(max_size=8)
faults = st.fixed_dictionaries(
    {"code": codes | json_values, "message": st.text(max_size=30) | json_values},
    optional={
        "what": st.sampled_from(["spawn", "cwd", "program"]) | json_values,
        "path": st.text(max_size=20) | json_values,
        "pattern": json_values,
    },
)
payloads = (
    st.binary(max_size=64)
    | json_values.map(lambda value: json.dumps(value).encode())
    | faults.map(lambda value: json.dumps(value).encode())
    | st.sampled_from(
        [b"{}", b"[" * 5000, b'{"a":' * 3000, b"\xff\xfe", b'{"a":NaN}', b"9" * 5000, b'{"version":1}', struct.pack("!I", 2**32 - 1), b""]
    )
)
frames = st.builds(
    lambda kind, stream, payload, flags: struct.pack("!IIBB", len(payload), stream, kind, flags) + payload,
    st.integers(0, 20),
    st.sampled_from([0, 1, 2, 3, 77, 0x7FFFFFFF, 0xFFFFFFFF]),
    payloads,
    st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255]),
)
headers = st.builds(
    lambda length, stream, kind, flags: struct.pack("!IIBB", length, stream, kind, flags),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 255),
    st.integers(0, 255),
)
hostile = st.lists(frames | headers | st.binary(max_size=200), max_size=12).map(b"".join)


class HostileGuest:
    """The far end of a socket pair, and what the event loop complained about meanwhile."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.complaints: list[dict[str, Any]] = []

    async def send(self, data: bytes) -> None:
        """As much of `data` as the host takes; a host that hung up is fine."""
        with contextlib.suppress(OSError):
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), DEADLINE_S)

    def close(self) -> None:
        self.sock.close()


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[socket.socket, HostileGuest]]:
    """The host's socket and the hostile guest that holds the other one."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    guest = HostileGuest(theirs)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: guest.complaints.append(context))
    try:
        yield ours, guest
        await asyncio.sleep(0)
        assert guest.complaints == []
    finally:
        guest.close()
        ours.close()


async def ends_typed(work: Awaitable[Any]) -> BaseException | None:
    """The typed error that `work` ends with before the deadline, None for a result. Anything else fails the test."""
    try:
        await asyncio.wait_for(work, DEADLINE_S)
    except WorkspaceError as error:
        assert isinstance(error.args, tuple)  # noqa: PT017
        str(error)
        return error
    return None


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(), 3 * DEADLINE_S)

    asyncio.run(bounded())


# The link


@quick
@given(data=hostile)
def test_garbage_instead_of_a_hello_ends_in_a_typed_error(data: bytes) -> None:
    async def scenario() -> None:
        async with connected() as (ours, guest):
            await guest.send(data)
            guest.close()
            try:
                link = await asyncio.wait_for(Link.open(ours), DEADLINE_S)
            except WorkspaceGone:
                return
            assert wire.pack(wire.HELLO, 0)[8:9] in data  # there was a hello in it
            await link.close()

    play(scenario)


@quick
@given(data=hostile, requests=st.integers(1, 4), cut=st.booleans())
def test_garbage_after_a_hello_ends_every_request_in_a_typed_error(data: bytes, requests: int, cut: bool) -> None:
    async def scenario() -> None:
        async with connected() as (ours, guest):
            await guest.send(HELLO)
            link = await Link.open(ours)
            streams = [link.request("file.read", f"/p{index}" if index % 2 else None) for index in range(requests)]
            calls = [asyncio.ensure_future(stream.result()) for stream in streams]
            await guest.send(data[: len(data) // 2] if cut else data)
            if cut:
                await asyncio.sleep(0)
                await guest.send(data[len(data) // 2 :])
            guest.close()
            for call in calls:
                await ends_typed(call)
            gone = await asyncio.wait_for(asyncio.shield(link.closed), DEADLINE_S)
            assert isinstance(gone, WorkspaceGone)
            with pytest.raises(WorkspaceGone):
                link.request("file.read", "/later")
            await link.close()

    play(scenario)


@quick
@given(data=hostile)
def test_no_waiting_part_of_a_stream_hangs(data: bytes) -> None:
    """Iterating, waiting for an event and sending more than there is credit for all end when the guest misbehaves or goes."""

    async def scenario() -> None:
        async with connected() as (ours, guest):
            await guest.send(HELLO)
            link = await Link.open(ours)

            async def iterate() -> None:
                async for _ in link.request("file.read", "/a"):
                    pass

            works = [
                asyncio.ensure_future(work)
                for work in (iterate(), link.request("command.run").event(), link.request("file.write", "/b").send(bytes(3 * MIB)))
            ]
            await asyncio.sleep(0)
            await guest.send(data)
            guest.close()
            for work in works:
                await ends_typed(work)
            await link.close()

    play(scenario)


@quick
@given(cut=st.integers(0, 60))
def test_a_guest_that_dies_inside_a_frame_ends_the_request(cut: int) -> None:
    async def scenario() -> None:
        async with connected() as (ours, guest):
            await guest.send(HELLO)
            link = await Link.open(ours)
            call = asyncio.ensure_future(link.call("file.stat", "/a"))
            await asyncio.sleep(0)
            await guest.send(wire.pack(wire.REPLY, 1, b'{"row": ["name", "file", 420, 1, 2, 3, 4, "5", null]}')[:cut])
            guest.close()
            assert isinstance(await ends_typed(call), WorkspaceGone)
            await link.close()

    play(scenario)


async def provoke(*messages: bytes, requests: int = 1, hello: bool = True) -> WorkspaceGone:
    """Why the link was closed after a guest said `messages`; every request has to end with the same kind of error."""
    async with connected() as (ours, guest):
        if hello:
            await guest.send(HELLO)
        link = await Link.open(ours)
        calls = [asyncio.ensure_future(link.call("file.read", "/a")) for _ in range(requests)]
        await asyncio.sleep(0)
        for message in messages:
            await guest.send(message)
        gone = await asyncio.wait_for(asyncio.shield(link.closed), DEADLINE_S)
        for call in calls:
            error = await ends_typed(call)
            assert error is None or isinstance(error, WorkspaceError)
        await link.close()
        return gone


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(struct.pack("!IIBB", 2**32 - 1, 1, wire.DATA, 0), id="giant length"),
        pytest.param(struct.pack("!IIBB", wire.MAX_PAYLOAD + 1, 0, wire.PONG, 0), id="length just over"),
        pytest.param(wire.pack(wire.DATA, 99, b"x"), id="unknown stream"),
        pytest.param(wire.pack(wire.REPLY, 2, b"{}"), id="reply to nothing"),
        pytest.param(wire.pack(wire.REPLY, 1, b"{}") + wire.pack(wire.REPLY, 1, b"{}"), id="second reply"),
        pytest.param(wire.pack(wire.DATA, 1, bytes(wire.MAX_PAYLOAD)), id="more than the credit"),
        pytest.param(wire.pack_credit(1, 2**32 - 1) * 300, id="absurd credit"),
        pytest.param(wire.pack(wire.CREDIT, 1, b"123"), id="short credit"),
        pytest.param(wire.pack(wire.EVENT, 1, b"{}") * 65, id="events"),
        pytest.param(wire.pack(wire.REPLY, 1, b"[1]"), id="reply that is no object"),
        pytest.param(wire.pack(wire.REPLY, 1, b"\xff"), id="reply that is no text"),
        pytest.param(wire.pack(wire.ERROR, 1, b"{"), id="malformed error"),
        pytest.param(wire.pack(wire.REPLY, 1, b"[" * 100_000), id="deep nesting"),
        pytest.param(wire.pack(wire.REPLY, 1, b'{"a":' + b"9" * 100_000 + b"}"), id="giant number"),
        pytest.param(HELLO, id="second hello"),
        pytest.param(wire.pack(wire.OPEN, 1, b"{}"), id="a request from the guest"),
        pytest.param(wire.pack(wire.PING, 0, b""), id="ping from the guest"),
        pytest.param(wire.pack(wire.CANCEL, 1, b""), id="cancel from the guest"),
        pytest.param(wire.pack(wire.GOODBYE, 0, b"bye"), id="malformed goodbye"),
        pytest.param(wire.pack_header(wire.REPLY, 1, 2, wire.END) + b"{}", id="flags on a reply"),
    ],
)
async def test_a_breach_of_the_protocol_closes_the_link(message: bytes) -> None:
    gone = await provoke(message)
    assert isinstance(gone, ProtocolError)
    assert gone.reason == "protocol"


async def test_tiny_frames_beyond_the_credit_close_the_link() -> None:
    async with connected() as (ours, guest):
        await guest.send(HELLO)
        link = await Link.open(ours)
        link.request("file.read", "/a")
        await guest.send(wire.pack(wire.DATA, 1, b"x") * (wire.WINDOW // 33 + 8))
        assert isinstance(await asyncio.wait_for(asyncio.shield(link.closed), DEADLINE_S), ProtocolError)
        await link.close()


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {}, 1.5, "x" * 100_000, 10**30])
async def test_a_hello_of_another_version_is_refused(version: object) -> None:
    async with connected() as (ours, guest):
        await guest.send(wire.pack(wire.HELLO, 0, json.dumps({"version": version}).encode()))
        with pytest.raises(ProtocolError) as caught:
            await asyncio.wait_for(Link.open(ours), DEADLINE_S)
        assert len(str(caught.value)) < 200


async def test_a_guest_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "HELLO_TIMEOUT_S", 0.2)
    async with connected() as (ours, _):
        with pytest.raises(WorkspaceGone) as caught:
            await asyncio.wait_for(Link.open(ours), DEADLINE_S)
        assert caught.value.reason == "unresponsive"


async def test_a_guest_that_neither_reads_nor_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "QUIET_S", 0.2)
    async with connected() as (ours, guest):
        await guest.send(HELLO)
        link = await Link.open(ours)
        streams = [link.request("file.write", f"/{index}") for index in range(4)]
        works = [asyncio.ensure_future(stream.send(bytes(4 * MIB))) for stream in streams]
        works += [asyncio.ensure_future(stream.result()) for stream in streams]
        for work in works:
            await ends_typed(work)
        assert link.closed.done()
        assert link.closed.result().reason == "unresponsive"
        await link.close()


@quick
@given(message=st.text(max_size=40) | json_values, reason=st.text(max_size=60) | json_values)
def test_what_a_guest_says_at_the_end_is_harmless_text(message: object, reason: object) -> None:
    async def scenario() -> None:
        async with connected() as (ours, guest):
            await guest.send(HELLO)
            link = await Link.open(ours)
            await guest.send(wire.pack(wire.GOODBYE, 0, json.dumps({"message": message, "reason": reason}).encode()))
            guest.close()
            gone = await asyncio.wait_for(asyncio.shield(link.closed), DEADLINE_S)
            assert str(gone).isprintable()
            assert gone.reason.isprintable()
            await link.close()

    play(scenario)


@quick
@given(fault=faults)
def test_an_error_from_the_guest_becomes_a_typed_error_with_harmless_text(fault: dict[str, Any]) -> None:
    for path in (None, "/asked/for"):
        error = from_guest(json.loads(json.dumps(fault)), path)
        assert isinstance(error, WorkspaceError)
        assert str(error).isprintable()
        if isinstance(error, OSError) and error.errno is not None:
            assert type(error.errno) is int


# Memory


async def growth(message: bytes, times: int, reader: bool) -> int:
    """How many bytes of Python memory the host holds after a guest has sent `message` so often, at its worst."""
    async with connected() as (ours, guest):
        await guest.send(HELLO)
        link = await Link.open(ours)
        stream = link.request("command.run")
        waiting = asyncio.ensure_future(stream.result()) if reader else None
        tracemalloc.start()
        try:
            sending = asyncio.ensure_future(guest.send(message * times if len(message) < 4096 else message))
            await sending
            for _ in range(times - 1 if len(message) >= 4096 else 0):
                await guest.send(message)
            await asyncio.sleep(0.05)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        link.abort(WorkspaceGone("enough"))
        await asyncio.sleep(0)
        return peak


async def test_data_that_nobody_reads_is_bounded_by_the_window() -> None:
    assert await growth(wire.pack(wire.DATA, 1, bytes(256 * 1024 - 32)), 60, False) < 8 * MIB


async def test_an_unfinished_frame_is_bounded() -> None:
    assert await growth(struct.pack("!IIBB", wire.MAX_PAYLOAD, 1, wire.DATA, 0) + bytes(MIB), 1, False) < 8 * MIB


async def test_a_frame_that_trickles_in_is_bounded() -> None:
    async with connected() as (ours, guest):
        await guest.send(HELLO)
        link = await Link.open(ours)
        link.request("file.read", "/a")
        tracemalloc.start()
        try:
            await guest.send(struct.pack("!IIBB", wire.MAX_PAYLOAD, 1, wire.DATA, 0))
            for _ in range(5_000):
                guest.sock.send(b"x")
                await asyncio.sleep(0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 8 * MIB
        link.abort(WorkspaceGone("enough"))
        await asyncio.sleep(0)


async def test_empty_data_and_pongs_take_no_memory() -> None:
    assert await growth(wire.pack(wire.DATA, 1, b"") + wire.pack(wire.PONG, 0, b""), 50_000, True) < 16 * MIB


async def test_events_that_nobody_reads_are_bounded() -> None:
    """64 events of 4 MiB of JSON each would be gigabytes of objects."""
    event = wire.pack(wire.EVENT, 1, b'{"a":[' + b"{}," * 400_000 + b"0]}")
    assert await growth(event, 3, False) < 32 * MIB


async def test_many_streams_do_not_multiply_control_frames() -> None:
    reply = wire.pack(wire.GOODBYE, 0, json.dumps({"message": "x" * MIB, "reason": "y" * MIB}).encode())
    assert await growth(reply, 16, False) < 24 * MIB


# The parts above the link


class FarEnd(Sandbox):
    """Stands for a sandbox whose guest is the test."""

    id, backend, owned = "ws-far-end", "far-end", False
    spec = WorkspaceSpec()

    async def dial(self) -> socket.socket:
        raise WorkspaceGone("there is no other link")

    async def alive(self) -> bool:
        return False

    async def why_gone(self) -> tuple[str, str]:
        return "killed", "the far end ended"

    async def stop(self) -> None:
        return

    async def destroy(self) -> None:
        return

    def describe(self, walls: Mapping[str, object]) -> SandboxInfo:
        return SandboxInfo("far end", {}, {}, "socket pair")

    async def touch(self, spec: WorkspaceSpec | None = None) -> None:
        return


CALLS: dict[str, Callable[[AsyncCommands, AsyncFiles, Path], Awaitable[Any]]] = {
    "run": lambda commands, files, folder: commands.run("true"),
    "start": lambda commands, files, folder: started(commands),
    "list commands": lambda commands, files, folder: commands.list(),
    "kill": lambda commands, files, folder: commands.kill(7),
    "stat": lambda commands, files, folder: files.stat("a"),
    "read": lambda commands, files, folder: files.read("a"),
    "list": lambda commands, files, folder: files.list("a"),
    "glob": lambda commands, files, folder: files.glob("*"),
    "grep": lambda commands, files, folder: files.grep("x"),
    "write": lambda commands, files, folder: files.write("a", b"x"),
    "write_many": lambda commands, files, folder: files.write_many({"a": b"x"}),
    "edit": lambda commands, files, folder: files.edit("a", "x", "y"),
    "download": lambda commands, files, folder: files.download("a", folder / "out"),
}


async def started(commands: AsyncCommands) -> None:
    handle = await commands.start("true")
    try:
        await handle.wait()
    finally:
        await handle.disconnect()


record_headers = st.fixed_dictionaries(
    {
        "p": st.sampled_from(["", "a", "a/b", "../x", "/etc/x", "a//b", "a/../../x", ".", "x\0", "\udcff"]) | json_values,
        "t": st.sampled_from(["file", "directory", "symlink", "fifo"]) | json_values,
    },
    optional={
        "m": st.integers(-1, 2**70) | json_values,
        "s": st.integers(-1, 2**70) | json_values,
        "n": st.integers(-1, 2**70) | json_values,
        "l": st.sampled_from(["/", "..", "a", "a/../../.."]) | json_values,
    },
)


def pack_record(header: dict[str, Any]) -> bytes:
    body = json.dumps(header).encode()
    return struct.pack("!I", len(body)) + body


records = record_headers.map(pack_record)
rows = st.tuples(
    st.text(max_size=5),
    st.sampled_from(["file", "directory"]) | json_values,
    json_values,
    json_values,
    json_values,
    json_values,
    json_values,
    json_values,
    json_values,
)
bodies = (
    records
    | st.lists(records, max_size=4).map(b"".join)
    | json_values.map(lambda value: json.dumps(value).encode() + b"\n")
    | st.lists(rows, max_size=3).map(lambda value: json.dumps(value).encode() + b"\n")
    | st.binary(max_size=80)
)
reply_fields = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("exit_code", "signal", "duration_s", "pid", "reason", "row", "count", "killed", "commands", "skipped", "changed", "event"),
        json_values,
    ),
)


@pytest.mark.parametrize("name", CALLS)
@quick
@given(body=st.none() | bodies, event=st.none() | reply_fields | json_values, reply=reply_fields)
def test_a_lying_guest_gets_no_call_to_end_in_an_untyped_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, body: bytes | None, event: object, reply: object
) -> None:
    folder = tmp_path_factory.mktemp("lied")

    async def scenario() -> None:
        async with connected() as (ours, guest):
            await guest.send(HELLO)
            session = Session(FarEnd(), await Link.open(ours))
            call = asyncio.ensure_future(CALLS[name](AsyncCommands(session), AsyncFiles(session), folder))
            await asyncio.sleep(0)
            if event is not None:
                await guest.send(wire.pack(wire.EVENT, 1, json.dumps(event).encode()))
            if body is not None:
                await guest.send(wire.pack(wire.DATA, 1, body))
            await guest.send(wire.pack(wire.REPLY, 1, json.dumps(reply).encode()))
            await asyncio.sleep(0)
            guest.close()
            await ends_typed(call)
            await session.close()

    play(scenario)
    beside = [path for path in folder.iterdir() if path.name != "out"]
    assert beside == []
    for path in (folder / "out").rglob("*") if (folder / "out").is_dir() else ():
        assert os.path.realpath(path).startswith(str(folder.resolve())), path

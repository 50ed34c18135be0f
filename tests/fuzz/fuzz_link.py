"""A coverage-guided fuzz target for the host's end of a link. Not part of the suite: it runs as long as one likes.

    pip install atheris && python tests/fuzz/fuzz_link.py -max_total_time=60

Whatever bytes a guest sends, a request ends with an error of our tree and never hangs.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys

import atheris

with atheris.instrument_imports():
    from workspace.errors import WorkspaceError
    from workspace.guest import wire
    from workspace.link import Link

HELLO = wire.pack(wire.HELLO, 0, json.dumps({"version": wire.VERSION}).encode())


async def attempt(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(HELLO + data[:60_000])
    theirs.shutdown(socket.SHUT_WR)
    try:
        link = await Link.open(ours)
        stream = link.request("file.read", "x")
        async with asyncio.timeout(5):
            async for _ in stream:
                pass
            await stream.result()
    except WorkspaceError:
        pass
    finally:
        theirs.close()


def one_input(data: bytes) -> None:
    asyncio.run(attempt(data))


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()

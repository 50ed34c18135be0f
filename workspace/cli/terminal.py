"""Output of untrusted programs on a person's terminal: text, colours and line movements pass, everything else is shown."""

from __future__ import annotations

import os
import re
import sys
from typing import BinaryIO

import typer

from workspace.output import OutputChunk

PIPE_CODE = 141

_SAFE = re.compile(rb"\x1b\[[0-9;]*[mK]")
_UNSAFE = re.compile(rb"\x1b\[[0-9;]*[mK]|[\x00-\x07\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xaa-\xae]|\xe2\x81[\xa6-\xa9]")
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-9;]{0,16})?|\xc2|\xe2|\xe2[\x80\x81])\Z")


def _visible(found: re.Match[bytes]) -> bytes:
    text = found.group()
    if _SAFE.fullmatch(text):
        return text
    return text.decode("utf-8", "backslashreplace").encode("unicode_escape")


class TerminalFilter:
    """Escapes what could take over a terminal (OSC, cursor games, C1, bidi overrides); sequences may be cut in two chunks."""

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        data = self._held + data
        unfinished = _UNFINISHED.search(data)
        self._held = unfinished.group() if unfinished else b""
        if unfinished:
            data = data[: unfinished.start()]
        return _UNSAFE.sub(_visible, data)

    def rest(self) -> bytes:
        held, self._held = self._held, b""
        return _UNSAFE.sub(_visible, held)


class Output:
    """Standard output and error of this process for a command's output: exact bytes in a pipe, filtered on a terminal."""

    def __init__(self) -> None:
        self._files: dict[str, BinaryIO] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
        self._filters = {name: TerminalFilter() for name, file in self._files.items() if file.isatty()}

    def write(self, chunk: OutputChunk) -> None:
        found = self._filters.get(chunk.stream)
        file = self._files[chunk.stream]
        try:
            file.write(found.feed(chunk.data) if found else chunk.data)
            file.flush()
        except BrokenPipeError:
            # Nobody reads any more: end as a program does that SIGPIPE ends, and do not try again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
            raise typer.Exit(PIPE_CODE) from None

    def finish(self) -> None:
        for name, found in self._filters.items():
            self._files[name].write(found.rest())
            self._files[name].flush()

"""Output as a caller gets it: bounded capture, text decoded once, results."""

from __future__ import annotations

import codecs
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from workspace.guest import wire

MAX_OUTPUT_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class CommandResult:
    """How a command ended and what it printed."""

    exit_code: int
    """As a shell has it: 128 + N for a command that signal N ended, 127 and 126 for one that could not be run."""
    stdout_bytes: bytes
    stderr_bytes: bytes
    signal: int | None = None
    """The signal that ended it, if one did."""
    duration_s: float = 0.0
    pid: int = 0
    dropped_bytes: int = 0
    """How many bytes in the middle of the output were not kept because of `max_output_bytes`."""
    _text: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def stdout(self) -> str:
        """Standard output as text; what is not UTF-8 becomes U+FFFD."""
        return self._decoded("stdout", self.stdout_bytes)

    @property
    def stderr(self) -> str:
        """Standard error as text; what is not UTF-8 becomes U+FFFD."""
        return self._decoded("stderr", self.stderr_bytes)

    def _decoded(self, key: str, data: bytes) -> str:
        if key not in self._text:
            self._text[key] = data.decode("utf-8", "replace")
        return self._text[key]

    @property
    def truncated(self) -> bool:
        """Whether part of the output was not kept."""
        return self.dropped_bytes > 0

    @property
    def ok(self) -> bool:
        """Whether the exit code is 0."""
        return self.exit_code == 0


@dataclass(frozen=True)
class OutputChunk:
    """A piece of output as it came."""

    stream: Literal["stdout", "stderr"]
    data: bytes
    text: str


class Kept:
    """The head and the tail of one output stream, at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.dropped = 0
        self._head_room = limit - limit // 2
        self._tail_limit = limit // 2
        self._head: list[bytes] = []
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    def feed(self, data: bytes) -> None:
        if self._head_room:
            taken = data[: self._head_room]
            self._head.append(taken)
            self._head_room -= len(taken)
            data = data[len(taken) :]
        if data:
            self._tail.append(data)
            self._tail_size += len(data)
            self._trim()

    def _trim(self) -> None:
        while self._tail_size > self._tail_limit:
            oldest = self._tail.popleft()
            excess = min(len(oldest), self._tail_size - self._tail_limit)
            self._tail_size -= excess
            self.dropped += excess
            if excess < len(oldest):
                self._tail.appendleft(oldest[excess:])

    def value(self) -> bytes:
        if len(self._head) == 1 and not self._tail:
            return self._head[0]
        return b"".join([*self._head, *self._tail])


class Capture:
    """Both streams of one command, bounded."""

    def __init__(self, limit: int) -> None:
        self._kept = (Kept(limit), Kept(limit))

    def feed(self, flags: int, data: bytes) -> None:
        self._kept[1 if flags & wire.STDERR else 0].feed(data)

    def result(self, exit_code: int, signal: int | None, duration_s: float, pid: int) -> CommandResult:
        out, err = self._kept
        return CommandResult(exit_code, out.value(), err.value(), signal, duration_s, pid, out.dropped + err.dropped)


class TextSplitter:
    """Decodes both streams incrementally, so that a character cut in two chunks is not lost."""

    def __init__(self) -> None:
        make = codecs.getincrementaldecoder("utf-8")
        self._decoders = (make("replace"), make("replace"))

    def feed(self, flags: int, data: bytes) -> OutputChunk:
        is_error = bool(flags & wire.STDERR)
        return OutputChunk("stderr" if is_error else "stdout", data, self._decoders[is_error].decode(data))

    def rest(self) -> list[OutputChunk]:
        """What is left of characters that were never completed."""
        names: tuple[Literal["stdout", "stderr"], ...] = ("stdout", "stderr")
        ends = [OutputChunk(name, b"", decoder.decode(b"", True)) for name, decoder in zip(names, self._decoders, strict=True)]
        return [chunk for chunk in ends if chunk.text]

"""Frames: the one language that host and guest speak. Pure functions over bytes, shared by both ends.

A frame is a fixed header and a payload::

    length u32 | stream u32 | kind u8 | flags u8 | payload (length bytes)      all big endian

Control payloads are JSON objects, ``DATA`` payloads are raw bytes. The side that receives a frame treats it as
hostile: lengths are capped before anything is allocated, unknown kinds and flags are refused.

This file runs in the sandbox too: Python 3.8, standard library, no import that costs start-up time.
"""

from __future__ import annotations

import struct

VERSION = 1
HEADER = struct.Struct("!IIBB")
MAX_PAYLOAD = 4 * 1024 * 1024
CHUNK = 256 * 1024
"""The largest DATA payload that a well-behaved side sends, in bytes."""
WINDOW = 1024 * 1024
"""Credit that each direction of a new stream starts with. A DATA frame costs its payload and `FRAME_COST`."""

HELLO, OPEN, DATA, REPLY, ERROR, EVENT, CREDIT, CANCEL, PING, PONG, GOODBYE = range(1, 12)
KINDS = frozenset(range(HELLO, GOODBYE + 1))

END = 1
"""DATA flag: the sender sends no more on this stream."""
STDERR = 2
"""DATA flag: the bytes are standard error."""
FLAGS = END | STDERR

FRAME_COST = 32
"""What every DATA frame costs beyond its payload, so that a flood of tiny frames is bounded too."""

CREDIT_PAYLOAD = struct.Struct("!I")


class WireError(Exception):
    """The peer broke the protocol; the link cannot go on."""


def pack_header(kind: int, stream: int, length: int, flags: int = 0) -> bytes:
    """The header for a payload of `length` bytes; the payload follows it on the wire."""
    return HEADER.pack(length, stream, kind, flags)


def pack(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One whole frame."""
    if len(payload) > MAX_PAYLOAD:
        raise WireError("a frame of %d bytes is over the limit of %d" % (len(payload), MAX_PAYLOAD))
    return HEADER.pack(len(payload), stream, kind, flags) + payload


def pack_credit(stream: int, amount: int) -> bytes:
    """A CREDIT frame that lets the peer send `amount` more bytes on `stream`."""
    return pack(CREDIT, stream, CREDIT_PAYLOAD.pack(amount))


def unpack_credit(payload: bytes) -> int:
    """The amount in a CREDIT payload; raises `WireError` for a malformed one."""
    if len(payload) != CREDIT_PAYLOAD.size:
        raise WireError("a CREDIT payload has %d bytes, not %d" % (len(payload), CREDIT_PAYLOAD.size))
    amount: int = CREDIT_PAYLOAD.unpack(payload)[0]
    return amount


def cost(length: int) -> int:
    """The credit that a DATA frame of `length` bytes uses up; an empty one is free."""
    return length + FRAME_COST if length else 0


def check_header(length: int, kind: int, flags: int) -> None:
    """Raises `WireError` unless a frame with this header may be received."""
    if length > MAX_PAYLOAD:
        raise WireError("a frame of %d bytes is over the limit of %d" % (length, MAX_PAYLOAD))
    if kind not in KINDS:
        raise WireError("unknown frame kind %d" % kind)
    if flags & ~FLAGS or (flags and kind != DATA):
        raise WireError("unknown flags %#x on frame kind %d" % (flags, kind))


class Decoder:
    """Cuts a byte stream into frames, in place: read into `space()`, then `take(n)`.

    Each payload is copied once. The buffer grows to the frame that is under way and no further than one frame of
    `MAX_PAYLOAD`; it shrinks again afterwards.
    """

    def __init__(self, size: int = CHUNK + 65536) -> None:
        self._size = size
        self._data = bytearray(size)
        self._begin = 0
        self._end = 0
        self._need = HEADER.size

    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        if self._begin == self._end:
            self._begin = self._end = 0
            if len(self._data) > self._size:
                self._data = bytearray(self._size)
        elif self._begin + self._need > len(self._data) or self._end == len(self._data):
            self._make_room()
        return memoryview(self._data)[self._end :]

    def _make_room(self) -> None:
        held = bytes(memoryview(self._data)[self._begin : self._end])
        if self._need > len(self._data):
            self._data = bytearray(self._need)
        self._data[: len(held)] = held
        self._begin, self._end = 0, len(held)

    def take(self, count: int) -> list[tuple[int, int, int, bytes]]:
        """The frames completed by `count` more bytes, each as (kind, stream, flags, payload); raises `WireError`."""
        self._end += count
        frames = []
        data, size = memoryview(self._data), HEADER.size
        self._need = size
        while self._end - self._begin >= size:
            length, stream, kind, flags = HEADER.unpack_from(data, self._begin)
            check_header(length, kind, flags)
            after = self._begin + size + length
            if after > self._end:
                self._need = size + length
                break
            frames.append((kind, stream, flags, bytes(data[self._begin + size : after])))
            self._begin = after
        return frames

    def feed(self, data: bytes) -> list[tuple[int, int, int, bytes]]:
        """`take` for bytes that lie elsewhere."""
        frames = []
        while data:
            space = self.space()
            part = data[: len(space)]
            space[: len(part)] = part
            data = data[len(part) :]
            frames += self.take(len(part))
        return frames

    @property
    def pending(self) -> int:
        """Bytes held of a frame that is not complete yet."""
        return self._end - self._begin

"""Text from callers on its way to bytes."""

from __future__ import annotations

from workspace.errors import InvalidArgument


def to_bytes(data: object, what: str) -> bytes | bytearray | memoryview:
    """Bytes as they are; text as UTF-8, with lone surrogates for bytes that are not UTF-8 (PEP 383).

    Raises `InvalidArgument` that names `what` for anything else.
    """
    if isinstance(data, str):
        return encode(data, what)
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidArgument(f"{what} is made of bytes or text, not of {type(data).__name__} ({data!r:.60})")
    return data


def encode(text: str, what: str) -> bytes:
    """`text` as bytes; raises `InvalidArgument` for a surrogate that stands for no byte."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} holds {text[error.start]!a} at position {error.start}, which no bytes stand for") from None

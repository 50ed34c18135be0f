"""Search in file contents, in a worker process: a bad regular expression cannot stop the guest."""

from __future__ import annotations

import os
import stat

from . import codec, patterns
from .faults import Fault
from .files import open_regular

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from typing import Any, Callable, Iterator

MAX_LINE = 64 * 1024
SNIFF = 8192
MAX_FILE = 256 * 1024 * 1024


def _files(root: str, glob: str | None) -> Iterator[tuple[str, str]]:
    """Regular files below `root` (or `root` itself) as (relative path, path), in order; links are not followed."""
    if not stat.S_ISDIR(os.stat(root).st_mode):
        yield os.path.basename(root), root
        return
    matches = None
    if glob is not None:
        matches = patterns.compile_glob(glob if "/" in glob else "**/" + glob).match
    for folder, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            relative = os.path.relpath(path, root)
            if matches is None or matches(relative):
                yield relative, path


def _lines(path: str) -> Iterator[tuple[int, str]]:
    try:
        fd = open_regular(path, os.O_RDONLY)
    except (OSError, Fault):
        return
    with os.fdopen(fd, "rb") as file:
        if b"\0" in file.peek(SNIFF)[:SNIFF]:
            return
        number = 0
        start = True
        while True:
            line = file.readline(MAX_LINE)
            if not line:
                return
            if start:
                number += 1
                yield number, line.rstrip(b"\r\n").decode("utf-8", "surrogateescape")
            start = line.endswith(b"\n")


def compile_pattern(request: dict[str, Any]) -> re.Pattern[str]:
    """The regular expression asked for; a malformed one is a fault that says where."""
    import re

    source = re.escape(request["pattern"]) if request.get("fixed") else request["pattern"]
    try:
        return re.compile(source, re.IGNORECASE if request.get("ignore_case") else 0)
    except re.error as error:
        raise Fault("bad_pattern", "%s at position %s" % (error.msg, error.pos), pattern=request["pattern"]) from None


def search(root: str, request: dict[str, Any], write: Callable[[bytes], None]) -> None:
    """Writes one JSON line for each match: [path, line number, column, line]."""
    find = compile_pattern(request).search
    left = request.get("max_matches") or -1
    for relative, path in _files(root, request.get("glob")):
        for number, line in _lines(path):
            match = find(line)
            if match is None:
                continue
            write(codec.encode([relative, number, match.start() + 1, line]) + b"\n")
            left -= 1
            if not left:
                return

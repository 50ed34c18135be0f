"""Glob patterns as regular expressions: `*` and `?` within a name, `**` across directories, `[abc]`, `{a,b}`."""

from __future__ import annotations

import re


def translate(pattern: str) -> str:
    """A regular expression, anchored at both ends, for paths relative to where the glob starts."""
    out, at = "", 0
    while at < len(pattern):
        piece, at = _next(pattern, at)
        out += piece
    return r"(?s:%s)\Z" % out


def _next(pattern: str, at: int) -> tuple[str, int]:
    char = pattern[at]
    if pattern.startswith("**/", at) and (at == 0 or pattern[at - 1] == "/"):
        return "(?:[^/]+/)*", at + 3
    if pattern.startswith("**", at):
        return ".*", at + 2
    if char == "*":
        return "[^/]*", at + 1
    if char == "?":
        return "[^/]", at + 1
    if char == "[":
        return _bracket(pattern, at)
    if char == "{" and "}" in pattern[at:]:
        end = pattern.index("}", at)
        choices = pattern[at + 1 : end].split(",")
        return "(?:%s)" % "|".join(_inside(choice) for choice in choices), end + 1
    return re.escape(char), at + 1


def _inside(choice: str) -> str:
    out, at = "", 0
    while at < len(choice):
        piece, at = _next(choice, at)
        out += piece
    return out


def _bracket(pattern: str, at: int) -> tuple[str, int]:
    end = pattern.find("]", at + 2)
    if end < 0:
        return re.escape("["), at + 1
    body = pattern[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
    if body[0] in "!^":
        body = "^/" + body[1:]
    return "[%s]" % body, end + 1


def compile_glob(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(translate(pattern))
    except re.error:
        return re.compile(re.escape(pattern) + r"\Z")

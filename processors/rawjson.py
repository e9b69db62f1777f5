"""Slices the members of a JSON object out of its text without decoding their values.

A value that is decoded and written again may change: integers and numerics beyond 2^53, `1.10`,
escapes such as `\\u0000`, the order of members. So values are passed on as the bytes they are. No
recursion: the depth of the text does not matter.
"""

from __future__ import annotations

import json
import re

_STRING = rb'"[^"\\]*(?:\\.[^"\\]*)*"'
_SPACE = re.compile(rb"[ \t\r\n]*")
_KEY = re.compile(_STRING + rb"[ \t\r\n]*:[ \t\r\n]*", re.DOTALL)
_SCALAR = re.compile(_STRING + rb"|[-+.0-9A-Za-z]+", re.DOTALL)
_STEP = re.compile(_STRING + rb"|[\[\]{}]", re.DOTALL)


def members(text: bytes) -> dict[str, bytes] | None:
    """The raw text of each member of the object `text`; None when it is no whole JSON object.

    Of equal keys the last one counts, as in PostgreSQL and Python. Values are not validated:
    the text comes from a `json` or `jsonb` column.
    """
    at = _past_space(text, 0)
    if text[at : at + 1] != b"{":
        return None
    at = _past_space(text, at + 1)
    found: dict[str, bytes] = {}
    if text[at : at + 1] == b"}":
        return found if _past_space(text, at + 1) == len(text) else None
    while True:
        key = _KEY.match(text, at)
        end = None if key is None else _value_end(text, key.end())
        if key is None or end is None:
            return None
        name = _decode_key(key[0])
        if name is None:
            return None
        found[name] = text[key.end() : end]
        at = _past_space(text, end)
        mark = text[at : at + 1]
        at = _past_space(text, at + 1)
        if mark == b"}":
            return found if at == len(text) else None
        if mark != b",":
            return None


def _past_space(text: bytes, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None, "the pattern matches the empty text"
    return match.end()


def _decode_key(text: bytes) -> str | None:
    try:
        name = json.loads(text[: text.rindex(b":")])
    except ValueError:
        return None
    return name if isinstance(name, str) else None


def _value_end(text: bytes, at: int) -> int | None:
    """Where the value that starts at `at` ends; None if it does not."""
    if text[at : at + 1] not in (b"{", b"["):
        scalar = _SCALAR.match(text, at)
        return None if scalar is None else scalar.end()
    depth = 0
    for step in _STEP.finditer(text, at):
        mark = step[0]
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return step.end()
    return None

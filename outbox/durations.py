"""Durations as people write them: `250ms`, `30s`, `5m`, `2h`, `7d`.

Numbers appear only at the edges; inside the program a duration is a `timedelta`.
"""

from __future__ import annotations

import re
from datetime import timedelta

from outbox.errors import UsageError

_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
}
_FORM = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
DURATION_MAX = timedelta(days=3650)


def parse_duration(text: str) -> timedelta:
    """Read one duration, such as `30s`. Raises UsageError on any other form or above ten years."""
    match = _FORM.fullmatch(text.strip())
    if match is None or len(text) > 32:
        raise UsageError(f"{text!r} is not a duration; write for example 250ms, 30s, 5m, 2h or 7d")
    number, unit = float(match[1]), _UNITS[match[2]]
    if number * unit.total_seconds() > DURATION_MAX.total_seconds():
        raise UsageError(f"{text!r} is longer than ten years")
    return number * unit


def format_duration(value: timedelta) -> str:
    """Write a duration in its largest whole unit: the inverse of `parse_duration`."""
    total_ms = round(value.total_seconds() * 1000)
    for name, unit in reversed(_UNITS.items()):
        unit_ms = round(unit.total_seconds() * 1000)
        if total_ms and total_ms % unit_ms == 0:
            return f"{total_ms // unit_ms}{name}"
    return f"{total_ms}ms"

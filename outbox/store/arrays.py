"""Array parameters as PostgreSQL writes them, made by joining.

The driver's own list dumper looks at every element in Python; a worker spent 15 % of its time there
at full speed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from uuid import UUID


def uuids(values: Iterable[UUID]) -> str:
    """A uuid[] literal."""
    return "{" + ",".join([value.hex for value in values]) + "}"


def keys(values: Iterable[str]) -> str:
    """A uuid[] literal of ids that are text already."""
    return "{" + ",".join(values) + "}"


def numbers(values: Iterable[float | None]) -> str:
    """A literal of an array of numbers; None is NULL."""
    return "{" + ",".join(["NULL" if v is None else repr(v) for v in values]) + "}"


def columns(rows: Iterable[Sequence[float]], *names: str) -> dict[str, str]:
    """Rows of numbers as an array for each column, by these names."""
    values = list(zip(*rows, strict=True)) or [()] * len(names)
    return {name: numbers(column) for name, column in zip(names, values, strict=True)}


def booleans(values: Iterable[bool]) -> str:
    """A boolean[] literal."""
    return "{" + ",".join(["t" if value else "f" for value in values]) + "}"


def texts(values: Iterable[str | None]) -> str:
    """A text[] literal; None is NULL."""
    return "{" + ",".join(["NULL" if v is None else _quoted(v) for v in values]) + "}"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'

"""Loads SQL from `sql/`: the only way any statement of the hot paths reaches the program.

In the wheel the folder travels as `outbox/sql`; in a checkout it stands beside the package.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent.parent
_MIGRATION = re.compile(r"(\d{4})_([a-z0-9_]+)\.sql")


@cache
def sql_folder() -> Path:
    """The folder that holds `migrations/` and `statements/`."""
    inside = _HERE / "sql"
    return inside if inside.is_dir() else _HERE.parent / "sql"


@cache
def statement(name: str) -> str:
    """The text of `sql/statements/NAME.sql`."""
    return (sql_folder() / "statements" / f"{name}.sql").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Migration:
    """One numbered migration. `compatible_from` is read from its head comment."""

    version: int
    name: str
    compatible_from: int
    text: str


@cache
def migrations() -> tuple[Migration, ...]:
    """All migrations, oldest first."""
    found = []
    for path in sorted((sql_folder() / "migrations").iterdir()):
        match = _MIGRATION.fullmatch(path.name)
        if match is None:
            continue
        text = path.read_text(encoding="utf-8")
        compatible = re.search(r"^-- compatible-from: (\d+)$", text, re.MULTILINE)
        if compatible is None:
            raise AssertionError(f"{path.name} does not say what it is compatible with")
        found.append(Migration(int(match[1]), match[2], int(compatible[1]), text))
    return tuple(found)

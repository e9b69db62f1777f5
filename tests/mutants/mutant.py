"""What a mutant is: one stated way to break the engine, and the tests that are to notice.

A mutant that fits the code no longer is an error, not a survivor: its text must stand in its file
exactly once, and its tests must exist.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
STATEMENTS = "sql/statements/"
FOR_OTHERS = ("realtime_", "broadcast_send", "broadcast_put", "broadcast_call", "broadcast_check")
"""Names of statements, or how they begin, that the daemon's role has no right to run by itself."""


class Rotten(Exception):
    """The mutant speaks of code or of tests that are not there."""


@dataclass(frozen=True, slots=True)
class Edit:
    """Text of one file and what takes its place. `path` is relative to the repository."""

    path: str
    old: str
    new: str

    def apply(self, root: Path) -> None:
        """Change the file below `root`. Raises Rotten."""
        file = root / self.path
        file.write_text(self._changed(file.read_text()))

    def _changed(self, text: str) -> str:
        count = text.count(self.old)
        if count != 1:
            raise Rotten(f"{self.path} holds {self.old!r} {count} times, not once")
        return text.replace(self.old, self.new)

    def check(self, root: Path = ROOT) -> None:
        """Raises Rotten if the edit does not fit, or changes nothing."""
        text = (root / self.path).read_text()
        if self._changed(text) == text:
            raise Rotten(f"{self.path}: the edit changes nothing")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One way to break the engine.

    `breaks` says what is done to it, `promise` what no longer holds then (an invariant by its
    number where there is one). `tests` are run in this order until one fails.
    """

    name: str
    breaks: str
    promise: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]

    @property
    def statements(self) -> list[str]:
        """The statements of `sql/statements/` that it changes and the daemon's role can plan."""
        paths = [Path(edit.path) for edit in self.edits if edit.path.startswith(STATEMENTS)]
        return sorted({path.stem for path in paths if not path.stem.startswith(FOR_OTHERS)})

    def check(self) -> None:
        """Raises Rotten unless every edit fits and every test exists."""
        for edit in self.edits:
            edit.check()
        if not self.tests:
            raise Rotten(f"{self.name} names no test")
        for test in self.tests:
            check_test(test)


def check_test(test: str) -> None:
    """Raises Rotten unless `path::name` is a test of this tree. Parameters are not looked at."""
    path, _, name = test.partition("::")
    if name.partition("[")[0] not in _tests_in(path):
        raise Rotten(f"there is no test {test}")


@cache
def _tests_in(path: str) -> frozenset[str]:
    if not (ROOT / path).is_file():
        return frozenset()
    nodes: Iterable[ast.AST] = ast.walk(ast.parse((ROOT / path).read_text()))
    named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return frozenset(node.name for node in nodes if isinstance(node, named))


def statement(name: str, old: str, new: str) -> Edit:
    """An edit of `sql/statements/NAME.sql`."""
    return Edit(f"{STATEMENTS}{name}.sql", old, new)

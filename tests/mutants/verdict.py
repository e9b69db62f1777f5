"""From the end of a pytest run to what it says about a mutant. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tests.mutants.copies import Run
from tests.mutants.mutant import Mutant

RUNS = "tests/schema/test_rights.py::test_the_daemons_role_can_run_every_statement[{}]"
"""Run first for each statement that a mutant changes: one that PostgreSQL refuses to plan would be
noticed by every test, and prove nothing."""

BROKEN = frozenset(
    {"SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError"}
    | {"UnboundLocalError", "UndefinedColumn", "UndefinedFunction", "UndefinedTable"}
    | {"AmbiguousColumn", "DatatypeMismatch", "GroupingError", "InvalidColumnReference"}
)
"""Errors of a mutant that is no program any more."""

FAILED = 1
PASSED = 0


@dataclass(frozen=True, slots=True)
class Verdict:
    """`caught`, `survived`, `broken` (the mutant does not run) or `unclear` (neither passed nor
    failed: out of time, no such test), and by what. `how` is what the failing test said."""

    name: str
    by: str
    seconds: float = 0.0
    how: str = ""

    @property
    def good(self) -> bool:
        return self.name == "caught"


def order(mutant: Mutant) -> list[str]:
    """The tests to run, the proof that the mutant runs at all first."""
    return [RUNS.format(name) for name in mutant.statements] + list(mutant.tests)


def judge(mutant: Mutant, run: Run) -> Verdict:
    """What a run says about a mutant."""
    if run.code is None:
        return Verdict("unclear", "ran out of time")
    if run.code == PASSED:
        return Verdict("survived", "every test passed")
    if run.code != FAILED or not run.failures:
        return Verdict("unclear", f"pytest ended with {run.code}: {run.output.strip()[-300:]}")
    first = run.failures[0]
    how = f"{first['error']} ({first['phase']}): {first['text']}"
    proofs = {RUNS.format(name) for name in mutant.statements}
    # A fixture may judge as well; one that cannot do its work proves nothing.
    judged = first["phase"] == "call" or first["error"] == "AssertionError"
    if not judged or first["error"] in BROKEN or first["test"] in proofs:
        return Verdict("broken", f"{first['test']}: {how}")
    return Verdict("caught", str(first["test"]), how=how)

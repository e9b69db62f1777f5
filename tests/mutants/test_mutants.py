"""The table of mutants fits the code, and the runner tells caught from survived and from broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.copies import Run
from tests.mutants.mutant import ROOT, Edit, Mutant, Rotten, statement
from tests.mutants.report import BEGIN, END, table, told, write
from tests.mutants.run import LIMIT_S, SEED, Workshop, main
from tests.mutants.table import MUTANTS
from tests.mutants.verdict import BROKEN, RUNS, Verdict, judge, order
from tests.schema.test_rights import STATEMENTS

TEST = "tests/unit/test_retry.py::test_a_delay_at_the_cap_is_still_jittered"
SOUND = next(mutant for mutant in MUTANTS if mutant.name == "no-jitter")
HARMLESS = replace(
    SOUND,
    name="harmless",
    edits=(Edit("outbox/retry.py", "Jitter only adds:", "Jitter adds:"),),
)
OF_SETTLE = replace(SOUND, name="of-settle", edits=(statement("settle", "a", "b"),))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_fits_the_code_and_its_tests_exist(mutant: Mutant) -> None:
    """What it breaks was written anew: mend its text, or take it out if nothing like it is left."""
    mutant.check()


def test_mutants_have_names_of_their_own_and_say_what_they_break() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.breaks and mutant.promise for mutant in MUTANTS)


def test_whether_a_changed_statement_can_be_planned_is_tested() -> None:
    assert {name for mutant in MUTANTS for name in mutant.statements} <= {
        name for name in STATEMENTS if isinstance(name, str)
    }


def test_the_page_lists_every_mutant() -> None:
    """`make test-mutants` writes it."""
    assert told() == [mutant.name for mutant in MUTANTS]


def failure(**fields: Any) -> dict[str, Any]:
    return {"test": TEST, "phase": "call", "error": "AssertionError", "text": "", **fields}


@pytest.mark.parametrize(
    ("mutant", "run", "name"),
    [
        (SOUND, Run(1, (failure(),), ""), "caught"),
        (SOUND, Run(1, (failure(phase="teardown"),), ""), "caught"),
        (SOUND, Run(1, (failure(), failure(error="NameError")), ""), "caught"),
        (SOUND, Run(0, (), ""), "survived"),
        (SOUND, Run(1, (failure(phase="setup"),), ""), "caught"),
        (SOUND, Run(1, (failure(phase="setup", error="UndefinedObject"),), ""), "broken"),
        (SOUND, Run(1, (failure(phase="collect", error="SyntaxError"),), ""), "broken"),
        (OF_SETTLE, Run(1, (failure(test=RUNS.format("settle")),), ""), "broken"),
        (SOUND, Run(1, (), "pytest was killed"), "unclear"),
        (SOUND, Run(4, (), "no such test"), "unclear"),
        (SOUND, Run(5, (), "no tests ran"), "unclear"),
        (SOUND, Run(None, (), ""), "unclear"),
        (SOUND, Run(None, (failure(),), ""), "unclear"),
        *((SOUND, Run(1, (failure(error=error),), ""), "broken") for error in sorted(BROKEN)),
    ],
)
def test_only_a_test_that_judged_a_running_program_has_caught_it(
    mutant: Mutant, run: Run, name: str
) -> None:
    assert judge(mutant, run).name == name


def test_a_changed_statement_is_planned_before_it_is_judged() -> None:
    assert order(OF_SETTLE) == [RUNS.format("settle"), *SOUND.tests]


def test_copies_are_broken_tested_and_mended_and_the_checkout_is_left_alone(tmp_path: Path) -> None:
    before = (ROOT / "outbox" / "retry.py").read_bytes()
    workshop = Workshop(tmp_path, 2, SEED)
    results = workshop.run_all([SOUND, HARMLESS], LIMIT_S)
    assert [result.verdict.name for result in results] == ["caught", "survived"]
    assert results[0].verdict.by == TEST
    assert workshop.prove([SOUND]) is None
    gone = workshop.prove([replace(SOUND, tests=(f"{TEST}_gone",))])
    assert gone is not None, "a proof that finds nothing to run proves nothing"
    assert "not found" in gone
    copies = list(tmp_path.glob("*/tree/outbox/retry.py"))
    assert [copy.read_bytes() for copy in copies] == [before] * 2
    assert (ROOT / "outbox" / "retry.py").read_bytes() == before


def test_an_edit_that_fits_nowhere_or_twice_is_rotten(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one two two")
    for old in ("three", "two"):
        with pytest.raises(Rotten, match="not once"):
            Edit("a", old, "x").check(tmp_path)
    with pytest.raises(Rotten, match="changes nothing"):
        Edit("a", "one", "one").check(tmp_path)


def test_a_mutant_whose_test_is_gone_is_rotten() -> None:
    for test in ("tests/unit/test_retry.py::test_nobody", "tests/unit/nowhere.py::test_it"):
        with pytest.raises(Rotten, match="no test"):
            replace(SOUND, tests=(test,)).check()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(SystemExit, match="no such mutant"):
        main(["nobody"])


def test_the_rows_of_those_that_ran_take_the_place_of_the_former_ones(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}{table(['| gone | x |', '| rested | y |'])}{END}below\n")
    verdict = Verdict("caught", "tests/a/test_b.py::test_it_holds[x|y]", 1.4)
    write([(replace(SOUND, breaks="a | b"), verdict)], ["no-jitter", "rested"], page)
    text = page.read_text()
    assert text.startswith(f"above\n{BEGIN}\n2 mutants, all caught.\n")
    assert text.endswith(f"| rested | y |\n\n{END}below\n")
    assert "| no-jitter | a \\| b | I5 | `test_b.py`: it holds[x\\|y] | 1 |\n" in text
    assert told(page) == ["no-jitter", "rested"]
    with pytest.raises(SystemExit, match="no row of nobody"):
        write([], ["nobody"], page)

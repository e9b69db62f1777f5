"""The table of docs/mutants.md: written between two markers, the text around it by people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.verdict import Verdict

PAGE = ROOT / "docs" / "mutants.md"
BEGIN = "<!-- begin: written by make test-mutants -->\n"
END = "<!-- end -->\n"


def write(
    results: Sequence[tuple[Mutant, Verdict]], order: Sequence[str], page: Path = PAGE
) -> None:
    """Renew the rows of these mutants in the page's table, which has those of `order`. The row of
    one that did not run stays as it is. Raises SystemExit where there is none."""
    before, _, rest = page.read_text().partition(BEGIN)
    inside, _, after = rest.partition(END)
    rows = _rows(inside) | {mutant.name: _row(mutant, verdict) for mutant, verdict in results}
    if missing := [name for name in order if name not in rows]:
        raise SystemExit(f"docs/mutants.md has no row of {', '.join(missing)}: run them, too")
    page.write_text(f"{before}{BEGIN}{table([rows[name] for name in order])}{END}{after}")


def table(rows: Sequence[str]) -> str:
    """The table and the sentence above it."""
    return (
        f"\n{len(rows)} mutants, all caught.\n\n"
        "| mutant | what is broken | promise | caught by | s |\n|---|---|---|---|---|\n"
        + "".join(f"{row}\n" for row in rows)
        + "\n"
    )


def told(page: Path = PAGE) -> list[str]:
    """The mutants that the page's table names, in its order."""
    return list(_rows(page.read_text().partition(BEGIN)[2].partition(END)[0]))


def _rows(inside: str) -> dict[str, str]:
    """The table's rows by the names of their mutants."""
    rows = [line for line in inside.splitlines() if line.startswith("| ")][1:]
    return {row.split(" | ")[0].removeprefix("| "): row for row in rows}


def _row(mutant: Mutant, verdict: Verdict) -> str:
    return (
        f"| {mutant.name} | {_cell(mutant.breaks)} | {_cell(mutant.promise)} |"
        f" {_test(verdict.by)} | {verdict.seconds:.0f} |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _test(by: str) -> str:
    path, _, name = by.partition("::")
    return f"`{Path(path).name}`: {_cell(name.removeprefix('test_').replace('_', ' '))}"

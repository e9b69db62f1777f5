"""Writes the results into docs/faults.md, between its markers."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from tests.chaos.scene import Count

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "faults.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
HEAD = (
    "| kind | faults | events | lost | duplicates | in flight at the faults |"
    " wrong signature | out of order | dead | recovery p50 | max |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)
PAPERS = (
    "| kind | e-mails | extra | allowed | documents | twice | messages over rows | twice |"
    " messages over http | again |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def table(counts: Mapping[str, Count]) -> str:
    """The two tables, each with a line that adds everything up."""
    rows = {**counts, "**all**": total(counts.values())}
    first = [HEAD, *(_row(name, count) for name, count in rows.items())]
    second = [PAPERS, *(_papers(name, count) for name, count in rows.items())]
    return "\n".join([*first, "", *second])


def total(counts: Iterable[Count]) -> Count:
    """The sum of several counts."""
    added = Count()
    for count in counts:
        for field in fields(Count):
            setattr(added, field.name, getattr(added, field.name) + getattr(count, field.name))
    return added


def _row(name: str, count: Count) -> str:
    recoveries = count.recoveries_s
    cells = [
        name,
        *(count.faults, f"{count.events:,}", count.lost, count.duplicates, f"{count.bound:,}"),
        *(count.wrong, count.out_of_order, count.dead),
        f"{median(recoveries):.1f} s",
        f"{max(recoveries):.1f} s",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def _papers(name: str, count: Count) -> str:
    cells = [
        *(count.mails, count.mails_again, count.mails_bound),
        *(count.documents, count.documents_again, count.messages, count.messages_again),
        *(count.hints, count.hints_again),
    ]
    return f"| {name} | {' | '.join(f'{cell:,}' for cell in cells)} |"


def write_table(
    counts: Mapping[str, Count], seed: str, jobs: int, rate: float, document: Path = DOCUMENT
) -> None:
    """Replace what stands between the markers."""
    conditions = (
        f"{datetime.now(UTC):%d %B %Y}, `make test-chaos SEED={seed}`,"
        f" {jobs} runs at a time on {os.cpu_count()} cores,"
        f" about {rate:g} events a second each, {platform.system()},"
        f" Python {platform.python_version()}, PostgreSQL 18."
        f" Each kind is one run of its own; requests in all:"
        f" {total(counts.values()).requests:,}."
    )
    text = document.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    document.write_text(
        f"{before}{BEGIN}\n{conditions}\n\n{table(counts)}\n{END}{after}", encoding="utf-8"
    )

"""The list of states stands in Python, in SQL and in a diagram; this compares Python with SQL."""

from __future__ import annotations

import re

import psycopg

from outbox.history import FactName
from outbox.lifecycle import LIVE
from outbox.outcome import Kind
from outbox.store.statements import statement


def _checked_values(database: str, table: str, column: str) -> set[str]:
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE conrelid = %s::regclass AND contype = 'c' AND conname = %s",
            [f"outbox.{table}", f"{table}_{column}_check"],
        ).fetchall()
    assert len(rows) == 1
    return set(re.findall(r"'([a-z_]+)'::text", rows[0][0]))


def test_a_delivery_row_can_be_in_the_live_states_and_in_no_other(database: str) -> None:
    assert _checked_values(database, "delivery", "state") == {str(state) for state in LIVE}


def test_the_journal_takes_the_facts_that_the_fold_knows_and_no_other(database: str) -> None:
    assert _checked_values(database, "journal", "fact") == {str(fact) for fact in FactName}


def test_a_settle_knows_every_verdict_and_no_outcome_is_left_out() -> None:
    text = statement("settle")
    for verdict in ("delivered", "retry", "dead", "release"):
        assert f"'{verdict}'" in text
    assert {str(kind) for kind in Kind} == {
        "delivered",
        "retry",
        "throttled",
        "rejected",
        "denied",
        "ambiguous",
        "internal",
    }

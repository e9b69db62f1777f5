"""Array literals say to PostgreSQL what the driver's own lists say."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outbox.store import arrays

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SMALL = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@pytest.fixture
def connection(database: str) -> Any:
    with psycopg.connect(database, autocommit=True) as made:
        yield made


def read(connection: psycopg.Connection[Any], literal: str, kind: str) -> Any:
    row = connection.execute(f"SELECT %s::{kind}[]".encode(), [literal]).fetchone()
    assert row is not None
    return row[0]


@SMALL
@given(values=st.lists(st.none() | TEXTS))
def test_texts_arrive_as_they_are(connection: Any, values: list[str | None]) -> None:
    assert read(connection, arrays.texts(values), "text") == values


@SMALL
@given(values=st.lists(st.none() | st.floats(allow_nan=False, allow_infinity=False)))
def test_numbers_keep_every_digit(connection: Any, values: list[float | None]) -> None:
    assert read(connection, arrays.numbers(values), "float8") == values


@SMALL
@given(tokens=st.lists(st.integers(0, 2**62)), ids=st.lists(st.uuids()))
def test_tokens_and_ids_are_exact(connection: Any, tokens: list[int], ids: list[UUID]) -> None:
    assert read(connection, arrays.numbers(tokens), "bigint") == tokens
    assert read(connection, arrays.uuids(ids), "uuid") == ids


def test_booleans(connection: Any) -> None:
    assert read(connection, arrays.booleans([True, False]), "boolean") == [True, False]

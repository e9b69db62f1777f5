"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.durations import DURATION_MAX, format_duration, parse_duration
from outbox.errors import UsageError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("250ms", 0.25),
        ("30s", 30),
        ("5m", 300),
        ("2h", 7200),
        ("7d", 604800),
        ("1.5s", 1.5),
        ("0s", 0),
        (" 30s ", 30),
        ("3650d", 315360000),
    ],
)
def test_reads_what_people_write(text: str, seconds: float) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "s",
        "-5s",
        "+5s",
        "5 s",
        "5S",
        "5w",
        "1h30m",
        "1e3s",
        ".5s",
        "5.s",
        "٣s",
        "30s\n5s",
    ],
)
def test_any_other_form_is_refused_with_examples(text: str) -> None:
    with pytest.raises(UsageError, match="write for example 250ms, 30s") as caught:
        parse_duration(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["3651d", "9" * 20 + "d", "87601h"])
def test_more_than_ten_years_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="ten years"):
        parse_duration(text)


def test_endless_digits_are_refused_without_being_computed() -> None:
    with pytest.raises(UsageError):
        parse_duration("9" * 10_000 + "s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0ms"),
        (0.25, "250ms"),
        (90, "90s"),
        (60, "1m"),
        (3600, "1h"),
        (86400, "1d"),
        (1.5, "1500ms"),
    ],
)
def test_writes_the_largest_whole_unit(seconds: float, text: str) -> None:
    assert format_duration(timedelta(seconds=seconds)) == text


@given(st.integers(0, DURATION_MAX // timedelta(milliseconds=1)))
def test_what_is_written_reads_back(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@given(st.text(max_size=40))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        duration = parse_duration(text)
    except UsageError:
        return
    assert timedelta() <= duration <= DURATION_MAX

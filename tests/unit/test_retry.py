"""Retry policies: their written forms, and due times that obey I5."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outbox.durations import DURATION_MAX
from outbox.errors import UsageError
from outbox.retry import (
    ATTEMPTS_MAX,
    DELAYS_MAX,
    RETRY_AFTER_CAP,
    ExponentialSchedule,
    ListSchedule,
    RetryPolicy,
    default_policy,
    format_retry,
    next_delay,
    outlives,
    parse_retry,
)

MS = timedelta(milliseconds=1)
EXP = "exp:base=5s,factor=2,cap=1h,attempts=12"

durations = st.integers(0, DURATION_MAX // MS).map(lambda ms: ms * MS)
short = st.integers(1, 86_400_000).map(lambda ms: ms * MS)
jitters = st.floats(0, 1)
lists = st.lists(durations, min_size=1, max_size=20).map(
    lambda delays: ListSchedule(tuple(sorted(delays)))
)
exponentials = st.builds(
    lambda base, factor, longer, attempts: ExponentialSchedule(
        base, factor, base + longer, attempts
    ),
    short,
    st.floats(1, 100) | st.sampled_from([1.0, 1.0000001, 2.0, 100.0]),
    short,
    st.integers(1, ATTEMPTS_MAX),
)
policies = st.builds(RetryPolicy, lists | exponentials, jitters)
attempts = st.integers(1, 40) | st.integers(1, 10**6) | st.just(10**6)
shares = st.floats(0, 1, exclude_max=True)


def delays(text: str, count: int) -> list[timedelta]:
    policy = parse_retry(text)
    return [policy.base_delay(attempt) for attempt in range(1, count + 1)]


# --- I5 -----------------------------------------------------------------------------------------


@given(policies, attempts)
@example(parse_retry(EXP), 10**6)
@example(parse_retry("exp:base=1ms,factor=100,cap=3650d,attempts=1000000"), 10**6)
def test_base_delays_never_fall(policy: RetryPolicy, attempt: int) -> None:
    assert policy.base_delay(attempt) <= policy.base_delay(attempt + 1)


@given(policies, attempts, st.none() | durations, shares)
def test_the_delay_obeys_the_formula(
    policy: RetryPolicy, attempt: int, after: timedelta | None, share: float
) -> None:
    delay = next_delay(policy, attempt, after=after, random=lambda: share)
    if attempt >= policy.attempts_max:
        assert delay is None
        return
    base = policy.base_delay(attempt)
    floor = max(base, min(after or timedelta(), RETRY_AFTER_CAP))
    assert delay is not None
    assert floor <= delay <= floor + base * policy.jitter + timedelta(microseconds=1)


@given(policies, attempts)
def test_an_exponential_delay_stays_within_its_cap(policy: RetryPolicy, attempt: int) -> None:
    if isinstance(policy.schedule, ExponentialSchedule):
        base, cap = policy.schedule.base, policy.schedule.cap
        assert base <= policy.base_delay(attempt) <= cap


def test_a_delay_at_the_cap_is_still_jittered() -> None:
    policy = parse_retry("exp:base=5s,factor=2,cap=1h,attempts=1000000,jitter=0.5")
    shares = iter([0.0, 0.5, 0.999])
    found = {
        next_delay(policy, 10**6 - 1, after=None, random=lambda: next(shares)) for _ in range(3)
    }
    assert len(found) == 3
    assert min(filter(None, found)) == timedelta(hours=1)


@given(policies, st.integers(-(10**9), 0))
def test_a_negative_retry_after_counts_as_none(policy: RetryPolicy, seconds: int) -> None:
    asked = next_delay(policy, 1, after=timedelta(seconds=seconds), random=lambda: 0.3)
    assert asked == next_delay(policy, 1, after=None, random=lambda: 0.3)


def test_retry_after_lengthens_up_to_its_cap_and_is_not_multiplied_by_jitter() -> None:
    policy = parse_retry("10s,20s")
    assert next_delay(policy, 1, after=timedelta(seconds=60), random=lambda: 0.5) == timedelta(
        seconds=60.5
    )
    capped = next_delay(
        policy, 1, after=timedelta(days=9), after_cap=timedelta(minutes=1), random=lambda: 0.0
    )
    assert capped == timedelta(minutes=1)


def test_the_budget_ends_after_the_last_attempt() -> None:
    policy = parse_retry("1s,5s,5m")
    assert policy.attempts_max == 4
    found = [next_delay(policy, n, after=None, random=lambda: 0.0) for n in range(1, 6)]
    assert found == [timedelta(seconds=1), timedelta(seconds=5), timedelta(minutes=5), None, None]


def test_the_maximum_age_is_judged_apart() -> None:
    hour = timedelta(hours=1)
    assert not outlives(hour, age=hour, max_age=None)
    assert not outlives(hour, age=hour, max_age=2 * hour + MS)
    assert outlives(hour, age=hour, max_age=2 * hour)


# --- written forms ------------------------------------------------------------------------------


@given(policies)
def test_what_is_written_reads_back(policy: RetryPolicy) -> None:
    assert parse_retry(format_retry(policy)) == policy


@pytest.mark.parametrize(
    "text",
    [
        "1s,5s,5m",
        "0ms,250ms",
        EXP,
        "exp:base=5s,factor=1.5,cap=1h,attempts=1",
        "1s,jitter=0",
        "exp:base=1s,factor=2,cap=1m,attempts=3,jitter=1",
    ],
)
def test_the_plain_form_is_kept(text: str) -> None:
    assert format_retry(parse_retry(text)) == text


def test_spaces_around_the_parts_are_allowed() -> None:
    assert parse_retry(" 1s, 5s , jitter = 0.2 ") == parse_retry("1s,5s,jitter=0.2")
    assert parse_retry("exp: base = 5s , cap=1h, factor=2,attempts=12 ") == parse_retry(EXP)


def test_an_exponential_policy_doubles_up_to_its_cap() -> None:
    seconds = [delay.total_seconds() for delay in delays(EXP, 12)]
    assert seconds == [5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 3600, 3600]


def test_a_constant_policy_stays_at_its_base() -> None:
    assert set(delays("exp:base=5s,factor=1,cap=1h,attempts=9", 9)) == {timedelta(seconds=5)}


def test_the_default_is_the_example_schedule_of_standard_webhooks() -> None:
    policy = default_policy()
    hours = [policy.base_delay(n) / timedelta(hours=1) for n in range(4, 10)]
    assert [policy.base_delay(n).total_seconds() for n in (1, 2, 3)] == [5, 300, 1800]
    assert hours == [2, 5, 10, 14, 20, 24]
    assert (policy.attempts_max, policy.jitter) == (10, 0.1)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "1s,5s,5m"),
        (" ", "1s,5s,5m"),
        ("5", "30s"),
        ("1s,,5s", "30s"),
        ("1s,5s,", "30s"),
        ("soon", "30s"),
        ("-1s", "30s"),
        ("5m,1s", "1s stands after 5m"),
        ("1s,5s,4999ms", "rising order"),
        ("0.0001s", "250ms"),
        ("4000d", "ten years"),
        (",".join(["1s"] * (DELAYS_MAX + 1)), "1 to 100"),
        ("1s," * 1000, "longer than 2000"),
        ("jitter=0.5", "30s"),
        ("1s,jitter=", "not a number"),
        ("1s,jitter=nan", "not a number"),
        ("1s,jitter=-0.1", "not a number"),
        ("1s,jitter=1.1", "jitter=0.1"),
        ("1s,jitter=0.1,5s", "30s"),
        ("exp:", "exp:base=5s"),
        ("exp:5s", "exp:base=5s"),
        ("exp:base=5s,factor=2,cap=1h", "lacks attempts"),
        ("exp:factor=2,cap=1h,attempts=3", "lacks base"),
        ("exp:base=5s,base=6s,factor=2,cap=1h,attempts=3", "base stands twice"),
        ("exp:base=5s,factor=2,cap=1h,attempts=3,max=4", "'max=4'"),
        ("exp:base=0s,factor=2,cap=1h,attempts=3", "base=5s"),
        ("exp:base=5s,factor=0.5,cap=1h,attempts=3", "factor=2"),
        ("exp:base=5s,factor=101,cap=1h,attempts=3", "factor=2"),
        ("exp:base=5s,factor=inf,cap=1h,attempts=3", "not a number"),
        ("exp:base=5s,factor=2,cap=1s,attempts=3", "cap=1h"),
        ("exp:base=5s,factor=2,cap=1h,attempts=0", "attempts=12"),
        ("exp:base=5s,factor=2,cap=1h,attempts=2.5", "whole number"),
        ("exp:base=5s,factor=2,cap=1h,attempts=1000001", "attempts=12"),
        ("exp:base=5s,factor=2,cap=1h,attempts=٣", "whole number"),
    ],
)
def test_a_wrong_policy_says_in_one_line_what_to_write(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_retry(text)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=60) | st.from_regex(r"(exp:)?[a-z=0-9,.]{0,40}", fullmatch=True))
def test_any_text_is_a_policy_or_a_usage_error(text: str) -> None:
    said = None
    try:
        assert parse_retry(format_retry(parse_retry(text))) == parse_retry(text)
    except UsageError as error:
        said = str(error)
    assert said is None or said.isprintable()


def test_attempts_count_from_one() -> None:
    with pytest.raises(UsageError, match="count from 1"):
        next_delay(default_policy(), 0, after=None, random=lambda: 0.0)


def test_schedules_made_in_code_are_checked_too() -> None:
    with pytest.raises(UsageError):
        ListSchedule(())
    with pytest.raises(UsageError):
        ListSchedule((timedelta(seconds=-1),))
    with pytest.raises(UsageError):
        RetryPolicy(ListSchedule((MS,)), jitter=float("nan"))

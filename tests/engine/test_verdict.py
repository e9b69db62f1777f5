"""From the outcome of an attempt to what the settle writes."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.outcome import CHARGED, DATABASE_AWAY, PERMANENT, Kind, Outcome
from outbox.retry import parse_retry
from outbox.verdict import INTERNAL_DELAY, judge, policy_of

POLICY = parse_retry("1s,5s,jitter=0.5")


def second(number: float) -> timedelta:
    return timedelta(seconds=number)


@pytest.mark.parametrize("kind", Kind)
def test_the_charge_is_the_outcomes(kind: Kind) -> None:
    verdict = judge(Outcome(kind, "r"), POLICY, 1, None, lambda: 0.0)
    assert verdict.charged == (kind in CHARGED)
    assert verdict.reason == "r"


def test_delivered_and_permanent_outcomes_end_at_once() -> None:
    assert (
        judge(Outcome(Kind.DELIVERED, "http_200"), POLICY, 3, second(0), lambda: 0).name
        == "delivered"
    )
    for kind in PERMANENT:
        assert judge(Outcome(kind, "r"), POLICY, 1, None, lambda: 0).name == "dead"


def test_the_last_attempt_is_followed_by_death_and_says_so() -> None:
    verdicts = [
        judge(Outcome(Kind.RETRY, "http_500"), POLICY, n, None, lambda: 0) for n in (1, 2, 3)
    ]
    assert [v.name for v in verdicts] == ["retry", "retry", "dead"]
    assert [v.delay for v in verdicts] == [second(1), second(5), None]
    assert verdicts[2].ended_by == "attempts"


def test_a_retry_that_would_come_past_the_maximum_age_is_death_now() -> None:
    for left, name in ((second(1.001), "retry"), (second(1), "dead"), (second(-5), "dead")):
        verdict = judge(Outcome(Kind.RETRY, "x"), POLICY, 1, left, lambda: 0)
        assert verdict.name == name
        assert verdict.ended_by == ("max_age" if name == "dead" else None)


def test_our_own_fault_is_retried_at_any_attempt_without_charge() -> None:
    for attempt in (1, 3, 10**6):
        verdict = judge(Outcome(Kind.INTERNAL, "x"), POLICY, attempt, None, lambda: 1.0)
        assert (verdict.name, verdict.charged) == ("retry", False)
        assert verdict.delay == INTERNAL_DELAY * 1.5
    named = Outcome(Kind.INTERNAL, "x", after=DATABASE_AWAY)
    assert judge(named, POLICY, 1, None, lambda: 1.0).delay == DATABASE_AWAY * 1.5


@given(
    kind=st.sampled_from([Kind.RETRY, Kind.THROTTLED, Kind.AMBIGUOUS]),
    attempt=st.integers(1, 10**6),
    after=st.none() | st.timedeltas(timedelta(days=-1), timedelta(days=400)),
    random=st.floats(0, 1, exclude_max=True),
)
def test_due_times_obey_the_formula(
    kind: Kind, attempt: int, after: timedelta | None, random: float
) -> None:
    """I5, also at attempt 10^6."""
    policy = policy_of("exp:base=5s,factor=2,cap=1h,attempts=1000000")
    verdict = judge(Outcome(kind, "x", after=after), policy, attempt, None, lambda: random)
    if attempt == 10**6:
        assert verdict.name == "dead"
        return
    base = policy.base_delay(attempt)
    asked = min(after, timedelta(days=1)) if after is not None else timedelta()
    assert verdict.delay is not None
    assert max(base, asked) <= verdict.delay <= max(base, asked) + base * 0.1


def test_what_was_refused_for_good_is_not_tried_again() -> None:
    for kind in (Kind.REJECTED, Kind.DENIED):
        verdict = judge(Outcome(kind, "r"), POLICY, 1, None, lambda: 0)
        assert (verdict.name, verdict.delay) == ("dead", None)

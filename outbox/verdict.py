"""Turns the outcome of an attempt into what the settle writes. Pure.

The policy is the subscription's, the charge is the outcome's: what our side got wrong costs the
receiver no attempt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache

from outbox.outcome import CHARGED, PERMANENT, Kind, Outcome
from outbox.retry import RETRY_AFTER_CAP, RetryPolicy, next_delay, parse_retry

INTERNAL_DELAY = timedelta(seconds=30)
"""The wait after a fault of our own: long enough for an operator's restart, short enough that
nobody's delivery is late for long. An outcome may name another one."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`name` is delivered, retry, dead or release; `delay` is set for retry; `ended_by` says why
    a delivery is dead when its last outcome alone does not: attempts or max_age."""

    name: str
    charged: bool
    reason: str
    delay: timedelta | None = None
    ended_by: str | None = None


RELEASED = Verdict("release", charged=False, reason="shutdown")


@lru_cache(maxsize=1024)
def _delivered(reason: str) -> Verdict:
    """Nearly all are this one."""
    return Verdict("delivered", Kind.DELIVERED in CHARGED, reason)


@lru_cache(maxsize=1024)
def policy_of(text: str) -> RetryPolicy:
    """The policy of a subscription, read once."""
    return parse_retry(text)


def judge(
    outcome: Outcome,
    policy: RetryPolicy,
    attempt: int,
    age_left: timedelta | None,
    random: Callable[[], float],
) -> Verdict:
    """Decide what follows attempt number `attempt` (from 1) of the present budget.

    `age_left` is the time until the maximum age, None without one.
    """
    if outcome.kind is Kind.DELIVERED:
        return _delivered(outcome.reason)
    charged = outcome.kind in CHARGED
    if outcome.kind in PERMANENT:
        return Verdict("dead", charged, outcome.reason)
    delay: timedelta | None
    if outcome.kind is Kind.INTERNAL:
        wait = min(outcome.after or INTERNAL_DELAY, RETRY_AFTER_CAP)
        delay = wait * (1 + policy.jitter * random())
    else:
        delay = next_delay(policy, attempt, after=outcome.after, random=random)
    if delay is None:
        return Verdict("dead", charged, outcome.reason, ended_by="attempts")
    if age_left is not None and delay >= age_left:
        return Verdict("dead", charged, outcome.reason, ended_by="max_age")
    return Verdict("retry", charged, outcome.reason, delay)

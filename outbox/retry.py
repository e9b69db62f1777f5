"""When a failed delivery is tried again: one pure, capped, overflow-safe calculation.

Owns the two written forms of a retry policy, a list of delays (`1s,5s,5m`, then dead) and an
exponential one (`exp:base=5s,factor=2,cap=1h,attempts=12`), and the due time of I5:

    now + max(policy, min(Retry-After, its cap)) + jitter in [0, j x policy]

Jitter only adds: no receiver is tried sooner than its policy says. Base delays never fall.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise

from outbox.durations import DURATION_MAX, format_duration, parse_duration
from outbox.errors import UsageError

JITTER_DEFAULT = 0.1
RETRY_AFTER_CAP = timedelta(hours=24)
"""The longest Retry-After that is honoured: the longest step of the default schedule."""

DELAYS_MAX = 100
ATTEMPTS_MAX = 1_000_000
FACTOR_MAX = 100.0
_TEXT_MAX = 2000
_MILLISECOND = timedelta(milliseconds=1)
_NUMBER = re.compile(r"\d{1,20}(\.\d{1,20})?(e-\d{1,3})?", re.ASCII)
_EXAMPLES = "write for example 1s,5s,5m or exp:base=5s,factor=2,cap=1h,attempts=12"


@dataclass(frozen=True, slots=True)
class ListSchedule:
    """A delay after each failed attempt, in order; when they are used up the delivery is dead."""

    delays: tuple[timedelta, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.delays) <= DELAYS_MAX:
            raise UsageError(f"a retry list has 1 to {DELAYS_MAX} delays; {_EXAMPLES}")
        for delay in self.delays:
            _check_delay(delay)
        for earlier, later in pairwise(self.delays):
            if later < earlier:
                raise UsageError(
                    f"retry delays must not fall: {format_duration(later)} stands after"
                    f" {format_duration(earlier)}; write them in rising order"
                )

    @property
    def attempts_max(self) -> int:
        return len(self.delays) + 1

    def base_delay(self, attempt: int) -> timedelta:
        return self.delays[min(attempt, len(self.delays)) - 1]

    def __str__(self) -> str:
        return ",".join(format_duration(delay) for delay in self.delays)


@dataclass(frozen=True, slots=True)
class ExponentialSchedule:
    """`base`, `base x factor`, `base x factor^2` ... up to `cap`; `attempts` counts the first."""

    base: timedelta
    factor: float
    cap: timedelta
    attempts: int

    def __post_init__(self) -> None:
        _check_delay(self.base)
        _check_delay(self.cap)
        if not self.base:
            raise UsageError("base must be at least 1ms; write for example base=5s")
        if self.cap < self.base:
            raise UsageError("cap is shorter than base; write for example base=5s,cap=1h")
        if not 1 <= self.factor <= FACTOR_MAX:
            raise UsageError(f"factor must lie between 1 and {FACTOR_MAX:g}; write factor=2")
        if not 1 <= self.attempts <= ATTEMPTS_MAX:
            raise UsageError(f"attempts must lie between 1 and {ATTEMPTS_MAX}; write attempts=12")

    @property
    def attempts_max(self) -> int:
        return self.attempts

    def base_delay(self, attempt: int) -> timedelta:
        """The cap is decided on logarithms: the power itself would overflow."""
        steps = attempt - 1
        if steps * math.log(self.factor) >= math.log(self.cap / self.base):
            return self.base if self.factor == 1 else self.cap
        return min(self.cap, self.base * self.factor**steps)

    def __str__(self) -> str:
        return (
            f"exp:base={format_duration(self.base)},factor={_format_number(self.factor)},"
            f"cap={format_duration(self.cap)},attempts={self.attempts}"
        )


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """A schedule, and the share of each delay that jitter may add at most (0 to 1)."""

    schedule: ListSchedule | ExponentialSchedule
    jitter: float = JITTER_DEFAULT

    def __post_init__(self) -> None:
        if not 0 <= self.jitter <= 1:
            raise UsageError("jitter must lie between 0 and 1; write for example jitter=0.1")

    @property
    def attempts_max(self) -> int:
        """Attempts in one budget, the first included."""
        return self.schedule.attempts_max

    def base_delay(self, attempt: int) -> timedelta:
        """The delay after failed attempt number `attempt` (from 1), without jitter; never falls.

        Defined for every attempt, also past the last: there it stays at the longest delay.
        """
        if attempt < 1:
            raise UsageError(f"attempts count from 1, not {attempt}")
        return self.schedule.base_delay(attempt)


def default_policy() -> RetryPolicy:
    """The example schedule of Standard Webhooks 1.0.0: ten attempts over three days."""
    return parse_retry("5s,5m,30m,2h,5h,10h,14h,20h,24h")


def next_delay(
    policy: RetryPolicy,
    attempt: int,
    *,
    after: timedelta | None,
    random: Callable[[], float],
    after_cap: timedelta = RETRY_AFTER_CAP,
) -> timedelta | None:
    """How long to wait after failed attempt number `attempt` (from 1); None when exhausted.

    `after` is the Retry-After of the receiver, `random` returns a number in [0, 1). Retry-After
    can only lengthen the delay; a negative one counts as none.
    """
    base = policy.base_delay(attempt)
    if attempt >= policy.attempts_max:
        return None
    asked = min(after, after_cap) if after is not None else timedelta()
    return max(base, asked) + base * (policy.jitter * random())


def outlives(delay: timedelta, *, age: timedelta, max_age: timedelta | None) -> bool:
    """True if a try after `delay` would come at or past the maximum age of a delivery.

    `age` is the time it has been owed, without the time it was held. None means no maximum.
    """
    return max_age is not None and age + delay >= max_age


def parse_retry(text: str) -> RetryPolicy:
    """Read a policy in either form, with an optional last item `jitter=0.2`. Raises UsageError."""
    if len(text) > _TEXT_MAX:
        raise UsageError(f"the retry policy is longer than {_TEXT_MAX} characters; {_EXAMPLES}")
    body, jitter = _split_jitter(text.strip())
    if body.startswith("exp:"):
        return RetryPolicy(_parse_exponential(body.removeprefix("exp:")), jitter)
    if not body:
        raise UsageError(f"the retry policy is empty; {_EXAMPLES}")
    return RetryPolicy(ListSchedule(tuple(map(parse_duration, body.split(",")))), jitter)


def format_retry(policy: RetryPolicy) -> str:
    """Write a policy: the inverse of `parse_retry`. The default jitter is left out."""
    if policy.jitter == JITTER_DEFAULT:
        return str(policy.schedule)
    return f"{policy.schedule},jitter={_format_number(policy.jitter)}"


def _split_jitter(text: str) -> tuple[str, float]:
    body, _, last = text.rpartition(",")
    name, _, value = last.partition("=")
    if name.strip() != "jitter" or not body:
        return text, JITTER_DEFAULT
    return body.strip(), _parse_number("jitter", value)


def _parse_exponential(text: str) -> ExponentialSchedule:
    fields: dict[str, str] = {}
    for item in text.split(","):
        name, sign, value = (part.strip() for part in item.partition("="))
        if not sign or name not in ("base", "factor", "cap", "attempts"):
            raise UsageError(f"{item.strip()!r} is no part of an exponential policy; {_EXAMPLES}")
        if name in fields:
            raise UsageError(f"{name} stands twice in the retry policy; {_EXAMPLES}")
        fields[name] = value
    missing = [name for name in ("base", "factor", "cap", "attempts") if name not in fields]
    if missing:
        raise UsageError(f"the retry policy lacks {missing[0]}; {_EXAMPLES}")
    return ExponentialSchedule(
        parse_duration(fields["base"]),
        _parse_number("factor", fields["factor"]),
        parse_duration(fields["cap"]),
        _parse_count("attempts", fields["attempts"]),
    )


def _parse_number(name: str, text: str) -> float:
    if _NUMBER.fullmatch(text.strip()) is None:
        raise UsageError(f"{name}={text.strip()[:40]!r} is not a number; {_EXAMPLES}")
    return float(text)


def _parse_count(name: str, text: str) -> int:
    if re.fullmatch(r"[0-9]{1,9}", text) is None:
        raise UsageError(f"{name}={text[:40]!r} is not a whole number; {_EXAMPLES}")
    return int(text)


def _format_number(value: float) -> str:
    return repr(float(value)).removesuffix(".0")


def _check_delay(delay: timedelta) -> None:
    if not timedelta() <= delay <= DURATION_MAX:
        raise UsageError("a retry delay lies between 0s and ten years")
    if delay % _MILLISECOND:
        raise UsageError("a retry delay has whole milliseconds; write for example 250ms")

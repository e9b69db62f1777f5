"""What a processor may return: a closed set.

A processor never decides what happens next. It reports an `Outcome`; the retry policy and the
settle statement turn it into the next state. Exceptions are translated here, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

from outbox.effects import Effects


class Kind(StrEnum):
    """The seven ways an attempt can end."""

    DELIVERED = "delivered"
    RETRY = "retry"
    THROTTLED = "throttled"
    REJECTED = "rejected"
    DENIED = "denied"
    AMBIGUOUS = "ambiguous"
    INTERNAL = "internal"


CHARGED = frozenset({Kind.DELIVERED, Kind.RETRY, Kind.THROTTLED, Kind.REJECTED, Kind.AMBIGUOUS})
"""Kinds that use up an attempt. `denied` is dead at once; `internal` is our fault, not theirs."""

PERMANENT = frozenset({Kind.REJECTED, Kind.DENIED})
"""Kinds after which no further attempt is made."""

DATABASE_AWAY = timedelta(seconds=2)
"""`after` where PostgreSQL did not take a statement. The settle that says so needs PostgreSQL too:
when it can be written, the next attempt need not wait long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt.

    `reason` is a stable short code (`http_500`, `timeout`, `dns_error`); `after` is the least
    delay the other side asked for (Retry-After); `detail` is what the journal keeps: small,
    JSON-serializable, free of secrets and of the payload. `disable_endpoint` asks that the
    endpoint be disabled (HTTP 410). `effects` are written with the settle.
    """

    kind: Kind
    reason: str
    after: timedelta | None = None
    detail: Mapping[str, object] = field(default_factory=dict)
    disable_endpoint: bool = False
    effects: Effects | None = None


class Failed(Exception):
    """What a processor of the user's raises to say how its attempt ended: raise one of the classes
    below. `reason` is a stable short code that stays in the journal (`rate_limited`), the text is
    for people, `after` the least delay before the next attempt (seconds or a timedelta)."""

    kind: Kind

    def __init__(
        self, text: str = "", *, reason: str | None = None, after: timedelta | float | None = None
    ) -> None:
        super().__init__(text)
        self.reason = self.kind.value if reason is None else str(reason)[:REASON_CHARS_MAX]
        if after is not None and not isinstance(after, timedelta):
            after = timedelta(seconds=after)
        self.after = after


class Retry(Failed):
    """It failed and may work later: tried again as the subscription's policy says."""

    kind = Kind.RETRY


class Throttled(Failed):
    """The other side asks for a pause: as Retry, and its lane is not held for down."""

    kind = Kind.THROTTLED


class Rejected(Failed):
    """It will never work: dead at once."""

    kind = Kind.REJECTED


class Denied(Failed):
    """A rule of ours forbids it: dead at once, and no attempt is charged."""

    kind = Kind.DENIED


class Ambiguous(Failed):
    """Nobody knows whether it took effect: tried again, with the same idempotency key."""

    kind = Kind.AMBIGUOUS


class Internal(Failed):
    """A fault of our own: tried again, and no attempt is charged."""

    kind = Kind.INTERNAL


class Cancelled(BaseException):
    """An attempt is not ours to finish: it was cancelled, its time is over or its lease is lost.
    Not an Exception, so that `except Exception` does not swallow it."""


REASON_CHARS_MAX = 100
ERROR_CHARS_MAX = 500


def from_exception(error: BaseException) -> Outcome:
    """Translate an exception that a processor or transport of ours let out: `internal`."""
    return Outcome(Kind.INTERNAL, "processor_error", detail={"error": _told(error)})


def from_raised(error: Exception) -> Outcome:
    """Translate what a processor of the user's raised: a `Failed` says what it means, everything
    else is a failed attempt, charged."""
    if isinstance(error, Failed):
        text = str(error)[:ERROR_CHARS_MAX]
        detail = {"error": text} if text else {}
        return Outcome(error.kind, error.reason, after=error.after, detail=detail)
    return Outcome(Kind.RETRY, "exception", detail={"error": _told(error)})


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:ERROR_CHARS_MAX]

"""What a processor may return: a closed set.

A processor never decides what happens next. It reports an `Outcome`; the retry policy and the
settle statement turn it into the next state. Exceptions are translated here, once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of one attempt.

    `reason` is a stable short code (`http_500`, `timeout`, `dns_error`); `after` is the least
    delay the other side asked for (Retry-After); `detail` is what the journal keeps: small,
    JSON-serializable, free of secrets and of the payload. `disable_endpoint` asks that the
    endpoint be disabled (HTTP 410).
    """

    kind: Kind
    reason: str
    after: timedelta | None = None
    detail: Mapping[str, object] = field(default_factory=dict)
    disable_endpoint: bool = False


def from_exception(error: BaseException) -> Outcome:
    """Translate an exception that a processor let out: our fault, so `internal`."""
    text = f"{type(error).__name__}: {error}"
    return Outcome(Kind.INTERNAL, "processor_error", detail={"error": text[:500]})

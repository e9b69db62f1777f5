"""Outbox: events from PostgreSQL, delivered at least once.

What an application needs, and nothing else: `emit`, `emit_async` and `emit_many` write events
inside the application's own transaction, `verify` checks a webhook it receives, `processor` makes a
function of its own a destination. Each is loaded when first used, so importing this package pulls
in no database driver, broker or HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outbox.errors import VerificationError
    from outbox.outcome import (
        Ambiguous,
        Cancelled,
        Denied,
        Internal,
        Kind,
        Outcome,
        Rejected,
        Retry,
        Throttled,
    )
    from outbox.processing import Context, Event, processor
    from outbox.signature import Verified, verify
    from outbox.store.emit import emit, emit_async
    from outbox.store.emit_many import Emit, emit_many

    __version__: str

__all__ = [
    "Ambiguous",
    "Cancelled",
    "Context",
    "Denied",
    "Emit",
    "Event",
    "Internal",
    "Kind",
    "Outcome",
    "Rejected",
    "Retry",
    "Throttled",
    "VerificationError",
    "Verified",
    "__version__",
    "emit",
    "emit_async",
    "emit_many",
    "processor",
    "verify",
]

_HOMES = {
    **dict.fromkeys(
        ("Ambiguous", "Cancelled", "Denied", "Internal", "Kind", "Outcome"), "outbox.outcome"
    ),
    **dict.fromkeys(("Rejected", "Retry", "Throttled"), "outbox.outcome"),
    **dict.fromkeys(("Context", "Event", "processor"), "outbox.processing"),
    "Emit": "outbox.store.emit_many",
    "VerificationError": "outbox.errors",
    "Verified": "outbox.signature",
    "emit": "outbox.store.emit",
    "emit_async": "outbox.store.emit",
    "emit_many": "outbox.store.emit_many",
    "verify": "outbox.signature",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = import_module("importlib.metadata").version("outboxd")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

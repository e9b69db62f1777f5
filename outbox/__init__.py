"""Outbox: events from PostgreSQL, delivered at least once.

What an application needs, and nothing else: `emit` and `emit_async` write an event inside the
application's own transaction, `verify` checks a webhook it receives. Each is loaded when first
used, so importing this package pulls in no database driver, broker or HTTP client.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outbox.errors import VerificationError
    from outbox.signature import Verified, verify
    from outbox.store.emit import emit, emit_async

    __version__: str

__all__ = ["VerificationError", "Verified", "__version__", "emit", "emit_async", "verify"]

_HOMES = {
    "VerificationError": "outbox.errors",
    "Verified": "outbox.signature",
    "emit": "outbox.store.emit",
    "emit_async": "outbox.store.emit",
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

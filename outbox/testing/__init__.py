"""Tools for the tests of applications and processors; documented in docs/testing.md.

`ProcessorMachine` checks a processor against crashes, duplicates and retries; `Bench` moves the
real engine step by step; `Clock`, `RecordingBroker` and `Databases` are what both stand on, and the
pytest fixtures `outbox_*` hand them out. Nothing of it is loaded before it is used: pytest loads
`outbox.testing.plugin` in every run of an environment that has this package.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outbox.outcome import Kind, Outcome
    from outbox.testing.bench import Bench, Started
    from outbox.testing.broker import Faults, Message, RecordingBroker
    from outbox.testing.clock import Clock
    from outbox.testing.databases import Databases
    from outbox.testing.machine import ProcessorMachine
    from outbox.work import Work

__all__ = [
    "Bench",
    "Clock",
    "Databases",
    "Faults",
    "Kind",
    "Message",
    "Outcome",
    "ProcessorMachine",
    "RecordingBroker",
    "Started",
    "Work",
]

_HOMES = {
    "Bench": "outbox.testing.bench",
    "Clock": "outbox.testing.clock",
    "Databases": "outbox.testing.databases",
    "Faults": "outbox.testing.broker",
    "Kind": "outbox.outcome",
    "Message": "outbox.testing.broker",
    "Outcome": "outbox.outcome",
    "ProcessorMachine": "outbox.testing.machine",
    "RecordingBroker": "outbox.testing.broker",
    "Started": "outbox.testing.bench",
    "Work": "outbox.work",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

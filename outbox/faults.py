"""Fault points: named steps at which a process under test kills itself. For tests alone.

`OUTBOX_TEST_FAULT=after:settle:3` makes the process send itself SIGKILL the third time it passes
the point `after:settle`. There is a point before and after every statement that daemons and workers
send, named as its file in `sql/statements/`, and around steps outside the database: `send` (a lease
batch goes to the broker), `receive` (ids come in from it), `request` (one attempt), `data` (the
contents of an e-mail, from the first byte to the server's reply), `store` (a rendered document goes
where documents are kept), `broadcast_request` (a batch goes to a Realtime server). `after` a
statement means after its commit, or within the transaction where it is one of several (retention).

Where the variable is unset, which is everywhere but in a test, a point costs one comparison.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import NoReturn

from outbox.errors import ConfigurationError
from outbox.store.statements import sql_folder

VARIABLE = "OUTBOX_TEST_FAULT"
STEPS = ("send", "receive", "request", "data", "store", "broadcast_request")
"""The steps outside the database."""

_FORM = re.compile(r"(before|after):([a-z_]+)(?::([1-9][0-9]{0,8}))?")


@dataclass(frozen=True, slots=True)
class Fault:
    """Kill this process when it passes `point` for the `nth` time."""

    point: str
    nth: int = 1


def parse_fault(text: str) -> Fault:
    """Read `before:STEP`, `after:STEP` or `after:STEP:N`. Raises ConfigurationError."""
    match = _FORM.fullmatch(text)
    if match is None:
        raise ConfigurationError(f"{VARIABLE}: {text!r} is not a fault; write after:settle:3")
    when, step, nth = match.groups()
    if step not in STEPS and not (sql_folder() / "statements" / f"{step}.sql").is_file():
        raise ConfigurationError(
            f"{VARIABLE}: there is no step {step!r}; a step is {', '.join(STEPS)} or the name of"
            " a file in sql/statements"
        )
    return Fault(f"{when}:{step}", int(nth or 1))


_armed: Fault | None = None
_passed = count(1)


def arm(environ: Mapping[str, str]) -> None:
    """Arm the fault that the environment names, if any. Raises ConfigurationError."""
    global _armed, _passed  # noqa: PLW0603 (one process, one fault)
    text = environ.get(VARIABLE)
    _armed = parse_fault(text) if text else None
    _passed = count(1)


def passing(when: str, step: str) -> None:
    """Say that this process passes a point; it may not return."""
    if _armed is not None and _armed.point == f"{when}:{step}":
        _die_at(_armed.nth)


def _die_at(nth: int) -> None:
    # `next` on a count is atomic: points are passed by the broker's threads too.
    if next(_passed) == nth:
        _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")

"""One attempt of a processor, whole or cut off at one of its awaits.

A cut is a cancellation at a chosen await: what a worker does to an attempt whose lease is lost, and
the nearest to a crash that code in this process can be put through. What runs in `finally` runs.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Generator
from datetime import timedelta
from typing import Any

from outbox.outcome import Kind, Outcome, from_exception
from outbox.work import Work
from outbox.worker import Processor

_GRACE_S = 1.0
"""How long an attempt that is cancelled for running past its deadline may take to end."""


class Attempt:
    """One attempt. `awaited` counts how often it has waited; at number `cut_at` (from 0) it is
    cancelled."""

    def __init__(self, process: Processor, work: Work, cut_at: int | None = None) -> None:
        self._process = process
        self._work = work
        self._cut_at = cut_at
        self.awaited = 0

    async def make(self, limit: timedelta) -> Outcome | None:
        """Perform; None if it was cut. Raises AssertionError for a wrong result, a missed deadline,
        and where the processor itself raises it."""
        limit_s = limit.total_seconds()
        task = asyncio.ensure_future(self._counted(asyncio.get_running_loop().time() + limit_s))
        done, _ = await asyncio.wait({task}, timeout=limit_s)
        if not done:
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE_S)
            raise AssertionError(
                f"the processor still ran at its deadline, {limit_s:g} s after it began: bound"
                " every wait by the deadline it is given"
            )
        if task.cancelled():
            return None
        error = task.exception()
        if isinstance(error, AssertionError):
            raise error  # how a test speaks
        return checked(task.result()) if error is None else from_exception(error)

    async def _counted(self, deadline: float) -> object:
        inner = self._process(self._work, deadline)
        assert inspect.isawaitable(inner), f"the processor is no coroutine function: {inner!r}"
        return await _Counted(inner, self._pass)

    def _pass(self) -> None:
        """It waits. Cancelled is the task that waits, and with it what it waits for."""
        if self.awaited == self._cut_at:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        self.awaited += 1


def checked(outcome: object) -> Outcome:
    """What a processor returned, if it is one of the closed set. Raises AssertionError."""
    kinds = ", ".join(Kind)
    assert isinstance(outcome, Outcome), (
        f"the processor returned {outcome!r}: it must return an Outcome ({kinds})"
    )
    assert isinstance(outcome.kind, Kind), (
        f"the outcome's kind is {outcome.kind!r}: it must be a Kind ({kinds})"
    )
    assert outcome.reason, "the outcome has no reason: give a short stable code such as http_500"
    assert outcome.after is None or isinstance(outcome.after, timedelta), (
        f"the outcome's after is {outcome.after!r}: it must be a timedelta or None"
    )
    return outcome


class _Counted:
    """Passes on what an awaitable waits for, and says so each time."""

    def __init__(self, inner: Awaitable[object], waits: Callable[[], None]) -> None:
        self._inner = inner
        self._waits = waits

    def __await__(self) -> Generator[Any, Any, object]:
        inner = self._inner.__await__()
        step: Callable[[Any], Any] = inner.send
        value: Any = None
        while True:
            try:
                waited = step(value)
            except StopIteration as end:
                return end.value
            self._waits()
            try:
                value, step = (yield waited), inner.send
            except BaseException as error:  # noqa: BLE001 (passed on to where it belongs)
                value, step = error, inner.throw

"""`outbox.testing` takes a decorated processor as it is."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

import outbox
from outbox.testing import Bench, Kind, ProcessorMachine

KEPT: dict[UUID, Any] = {}
COUNTED: dict[UUID, int] = {}

SETTINGS = settings(
    max_examples=8,
    stateful_step_count=15,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # making a failure small takes a minute
)


@outbox.processor("keep.once")
async def keep_once(event: outbox.Event, ctx: outbox.Context) -> None:
    await asyncio.sleep(0)
    KEPT[ctx.key] = (event.data["n"], ctx.config["book"])
    await asyncio.sleep(0)
    ctx.emit("test.kept", event.data)


@outbox.processor("count.each")
async def count_each(_event: outbox.Event, ctx: outbox.Context) -> None:
    await asyncio.sleep(0)
    COUNTED[ctx.key] = COUNTED.get(ctx.key, 0) + 1


class Keeps(ProcessorMachine):
    processor = keep_once
    config = {"book": "sales"}  # noqa: RUF012 (as a user writes it)

    async def begin(self) -> None:
        KEPT.clear()

    async def effects(self) -> Mapping[UUID, object]:
        return KEPT


class Counts(ProcessorMachine):
    processor = count_each

    async def begin(self) -> None:
        COUNTED.clear()

    async def effects(self) -> Mapping[UUID, object]:
        return COUNTED


def test_one_that_bears_crashes_passes() -> None:
    run_state_machine_as_test(Keeps, settings=SETTINGS)


def test_one_that_does_not_is_found() -> None:
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Counts, settings=SETTINGS)


def test_the_bench_performs_it_and_its_events_are_written(outbox_bench: Bench) -> None:
    KEPT.clear()
    outbox_bench.emit("test.happened", {"n": 1})
    outbox_bench.route()
    [started] = outbox_bench.take(outbox_bench.broker.deliver())
    outcome = outbox_bench.perform(started.work, keep_once.perform)
    assert outcome is not None
    assert outcome.kind is Kind.RETRY, "it needs its config"
    assert "KeyError" in str(outcome.detail["error"])

"""Schedules: ticks across changes of daylight saving time, one event a tick, what was missed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from cli import main
from outbox.errors import NotFound, UsageError
from outbox.store.connect import connect_hot
from outbox.store.schedules import (
    Scheduler,
    ScheduleSpec,
    add_schedule,
    pause_schedule,
    remove_schedule,
    resume_schedule,
    show_schedule,
)
from outbox.ticks import BEHIND_MAX, TICKS_MAX, coming, plan
from tests.engine.engine import Engine

BERLIN = "Europe/Berlin"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# -- ticks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "after", "ticks"),
    [
        # 02:30 does not exist on 31 March 2030: right after the change, at 03:00 (01:00 UTC).
        ("30 2 * * *", "2030-03-30T12:00", ["2030-03-31T01:00", "2030-04-01T00:30"]),
        # 02:30 comes twice on 27 October 2030: once.
        ("30 2 * * *", "2030-10-26T12:00", ["2030-10-27T00:30", "2030-10-28T01:30"]),
        # A working day's nine o'clock moves with the clock.
        ("0 9 * * 1-5", "2030-03-29T12:00", ["2030-04-01T07:00", "2030-04-02T07:00"]),
        # Every half hour follows the time that passes: none is left out, none comes twice.
        (
            "*/30 * * * *", "2030-10-27T00:15",
            ["2030-10-27T00:30", "2030-10-27T01:00", "2030-10-27T01:30", "2030-10-27T02:00"],
        ),
        ("*/30 * * * *", "2030-03-31T00:45", ["2030-03-31T01:00", "2030-03-31T01:30"]),
    ],
)  # fmt: skip
def test_ticks_follow_the_zone(cron: str, after: str, ticks: list[str]) -> None:
    assert coming(cron, BERLIN, utc(after), len(ticks)) == [utc(tick) for tick in ticks]


def test_what_is_missed_is_skipped_or_emitted_once_or_each() -> None:
    first, now = utc("2030-01-01T00:00"), utc("2030-01-01T05:30")
    hours = [first + timedelta(hours=n) for n in range(7)]
    assert plan("0 * * * *", "UTC", "skip", first, now) == plan_of([], hours[6], 6)
    assert plan("0 * * * *", "UTC", "one", first, now) == plan_of([hours[5]], hours[6], 5)
    assert plan("0 * * * *", "UTC", "all", first, now) == plan_of(hours[:6], hours[6], 0)
    in_time = hours[5] + timedelta(seconds=59)
    assert plan("0 * * * *", "UTC", "skip", first, in_time) == plan_of([hours[5]], hours[6], 5)


def plan_of(ticks: list[datetime], next_at: datetime, skipped: int) -> Any:
    from outbox.ticks import Plan

    return Plan(tuple(ticks), next_at, skipped)


def test_all_is_bounded() -> None:
    first = utc("2030-01-01T00:00")
    found = plan("* * * * *", "UTC", "all", first, first + timedelta(days=2))
    assert len(found.ticks) == TICKS_MAX
    assert found.next_at == found.ticks[-1] + timedelta(minutes=1)
    assert found.skipped == 2 * 24 * 60 + 1 - BEHIND_MAX


# -- events ----------------------------------------------------------------------------------------


def add(engine: Engine, name: str = "hourly", **options: Any) -> dict[str, Any]:
    given = {"cron": "0 * * * *", "timezone": "UTC", "type": "digest.due", "org_id": "acme"}
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return add_schedule(connection, ScheduleSpec(name, **(given | options)))


def call(engine: Engine, action: Callable[..., Any], name: str = "hourly") -> Any:
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return action(connection, name)


def rounds(engine: Engine, now: datetime, daemons: int = 1) -> int:
    """Every daemon looks at the same moment; how many events came of it."""

    async def run() -> int:
        opened = [await connect_hot(engine.url, "replay") for _ in range(daemons)]
        done = await asyncio.gather(*(Scheduler(lambda: now).round(one) for one in opened))
        for one in opened:
            await one.raw.close()
        return sum(done)

    return asyncio.run(run())


def events(engine: Engine) -> list[tuple[Any, ...]]:
    return engine.rows(
        "SELECT type, org_id, subject, payload FROM outbox.event"
        " WHERE type = 'digest.due' ORDER BY id"
    )


def test_a_tick_is_one_event_however_many_daemons_run(engine: Engine) -> None:
    added = add(engine, payload='{"for": "all"}')
    tick = datetime.fromisoformat(added["next_at"])
    assert added["coming"][0] == tick
    assert rounds(engine, tick - timedelta(milliseconds=1)) == 0
    assert rounds(engine, tick, daemons=4) == 1
    assert rounds(engine, tick + timedelta(seconds=30), daemons=2) == 0
    [(kind, org, subject, payload)] = events(engine)
    assert (kind, org, subject) == ("digest.due", "acme", "schedules/hourly")
    assert payload == {
        "schedule": "hourly",
        "tick": tick.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "timezone": "UTC",
        "data": {"for": "all"},
    }
    assert engine.rows("SELECT count(*) FROM outbox.pending") == [(1,)]
    shown = call(engine, show_schedule)
    assert (shown["emitted"], datetime.fromisoformat(shown["last_at"])) == (1, tick)


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("one", 1), ("all", 4)])
def test_ticks_that_no_daemon_emitted(engine: Engine, missed: str, count: int) -> None:
    added = add(engine, missed=missed)
    tick = datetime.fromisoformat(added["next_at"])
    assert rounds(engine, tick + timedelta(hours=3, minutes=5), daemons=3) == count
    shown = call(engine, show_schedule)
    assert (shown["emitted"], shown["skipped"]) == (count, 4 - count)
    assert datetime.fromisoformat(shown["next_at"]) == tick + timedelta(hours=4)


def test_a_pause_emits_nothing_and_misses_nothing(engine: Engine) -> None:
    tick = datetime.fromisoformat(add(engine, missed="all")["next_at"])
    assert call(engine, pause_schedule)["state"] == "paused"
    assert rounds(engine, tick + timedelta(hours=5)) == 0
    engine.run("UPDATE outbox.schedule SET next_at = next_at - interval '5 hours'")
    shown = call(engine, resume_schedule)
    assert (shown["state"], datetime.fromisoformat(shown["next_at"])) == ("active", tick)
    call(engine, remove_schedule)
    assert rounds(engine, tick) == 0
    for action in (show_schedule, pause_schedule, resume_schedule, remove_schedule):
        with pytest.raises(NotFound):
            call(engine, action)


@pytest.mark.parametrize(
    "options",
    [
        {"cron": "0 9 * *"}, {"cron": "@daily"}, {"cron": "99 * * * *"}, {"cron": "0 0 30 2 *"},
        {"timezone": "Europe/Nowhere"}, {"timezone": "../etc"}, {"type": "no type"},
        {"type": "outbox.x"}, {"payload": "{"}, {"missed": "some"},
    ],
)  # fmt: skip
def test_what_cannot_be_scheduled_is_refused(engine: Engine, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        add(engine, **options)
    assert engine.rows("SELECT 1 FROM outbox.schedule") == []


def test_the_command_line(
    database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database)

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["schedules", *args])
        out, err = capsys.readouterr()
        return code, out, err

    command = (
        "add",
        "digest",
        "--cron",
        "0 9 * * 1-5",
        "--timezone",
        BERLIN,
        "--type",
        "digest.due",
    )
    code, out, _ = run(*command, "--json")
    assert code == 0
    assert len(json.loads(out)["coming"]) == 3
    assert run(*command)[0] == 2, "the name is taken"
    assert "0 9 * * 1-5" in run("list")[1]
    assert json.loads(run("list", "--json")[1])[0]["missed"] == "skip"
    assert json.loads(run("pause", "digest", "--json")[1])["next_at"] is None
    assert json.loads(run("resume", "digest", "--json")[1])["state"] == "active"
    assert run("show", "digest")[0] == 0
    assert run("remove", "digest")[0] == 0
    code, _, err = run("show", "digest")
    assert (code, err) == (9, "Error: there is no schedule 'digest'; see: outbox schedules list\n")

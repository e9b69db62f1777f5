"""A daemon that dies at every step of its broadcasts: over rows each message is there once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import pytest

from outbox.broadcast import Broadcaster
from outbox.outcome import Kind, Outcome
from outbox.store.broadcasts import Broadcasts, Message
from outbox.store.connect import connect_hot
from tests.broadcast.conftest import Station
from tests.engine.mortal import Died, MortalHot

MENDED = "UPDATE outbox.delivery SET lease_until = now() - interval '1 s' WHERE state = 'leased'"


class Remembering:
    """A transport that takes everything."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    async def send(self, messages: Sequence[Message]) -> list[Outcome]:
        self.sent += [str(m.id) for m in messages]
        return [Outcome(Kind.DELIVERED, "broadcast")] * len(messages)


def die_after(station: Station, steps: int, http: Remembering | None) -> bool:
    """Broadcast and die at that step; false if there was nothing left to die at."""

    async def run() -> bool:
        hot = await connect_hot(station.url, "mortal")
        mortal = MortalHot(hot.raw, hot.direct)
        try:
            store = Broadcasts(mortal)
            caster = Broadcaster(http=http, jitter=lambda: 0.0)
            with mortal.dying(steps):
                while await caster.round(store) == 0:
                    pass
            return False
        except Died:
            return True
        finally:
            await hot.raw.close()

    return asyncio.run(run())


@pytest.mark.parametrize("way", ["at once", "in halves", "by the function"])
def test_over_rows_a_message_is_there_once_wherever_a_daemon_dies(
    station: Station, way: str
) -> None:
    """I11: the message and its settle are one transaction, also where a bad one is looked for."""
    station.subscribe_broadcast()
    if way != "at once":
        station.run(
            "ALTER TABLE realtime.messages ADD CHECK (payload #>> '{record,status}' <> 'bad')"
        )
    if way == "by the function":
        station.run("ALTER TABLE realtime.messages DROP COLUMN updated_at")
    steps, dead = 0, 0
    while True:
        statuses = ["a", "bad" if way != "at once" else "b", "c"]
        for status in statuses:
            station.emit(payload=json.dumps({"status": status}))
        station.route(1000)
        died = die_after(station, steps, None)
        station.run(MENDED)
        station.expire()
        # What the function only warned of is tried again by the policy.
        for _ in range(3):
            station.run("UPDATE outbox.delivery SET due_at = now() WHERE state = 'scheduled'")
            station.broadcast()
        dead += way != "at once"
        assert station.states() == ({"dead": dead} if dead else {})
        counts = "SELECT count(*), count(DISTINCT payload ->> 'id') FROM realtime.messages"
        n = (steps + 1) * 3 - dead
        assert station.rows(counts) == [(n, n)]
        if not died:
            break
        steps += 1
    assert steps > (3 if way == "at once" else 12)
    station.check()


def test_over_http_a_message_may_be_repeated_and_none_is_lost(station: Station) -> None:
    """The same id each time, which clients know."""
    station.subscribe_broadcast(transport="http")
    http = Remembering()
    steps = 0
    while True:
        station.emit(2)
        station.route(1000)
        died = die_after(station, steps, http)
        station.run(MENDED)
        station.expire()
        station.broadcast(http)
        assert station.states() == {}
        assert len(set(http.sent)) == (steps + 1) * 2
        if not died:
            break
        steps += 1
    assert steps > 5
    assert len(http.sent) > len(set(http.sent))
    station.check()

"""The relay's loop against a real database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

from outbox.errors import BrokerUnavailable
from outbox.relay import Relay
from outbox.store.connect import HotConnection, connect_hot
from tests.engine.engine import Engine
from tests.engine.running import until

SLOW = "exists($.a[*] ? (@ == $.b[*]))"


class Hands:
    """A broker that remembers, and refuses when told to."""

    def __init__(self) -> None:
        self.sent: list[UUID] = []
        self.refuses = False
        self.refused = 0

    def send(self, _token: int, ids: Sequence[UUID]) -> None:
        if self.refuses:
            self.refused += 1
            raise BrokerUnavailable("the broker refuses")
        self.sent += ids

    def depth(self) -> int:
        if self.refuses:
            raise BrokerUnavailable("the broker refuses")
        return 0


@asynccontextmanager
async def relaying(url: str, hands: Hands) -> AsyncIterator[Relay]:
    async def open_connection() -> HotConnection:
        return await connect_hot(url, "relay")

    relay = Relay(open_connection, hands.send, hands.depth)
    running = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        relay.stop()
        await asyncio.wait_for(running, 30)


def test_a_filter_that_takes_too_long_stops_nobody_else(engine: Engine) -> None:
    """Its subscription is disabled and what it may match is held; the others go on."""
    slow = engine.subscribe(org="a", filter=SLOW)
    engine.subscribe(org="a", filter="$.a[0] == 0")
    engine.subscribe(org="b")
    one, other = (",".join(map(str, range(n, n + 50_000))) for n in (0, 100_000))
    payload = f'{{"a": [{one}], "b": [{other}]}}'
    engine.emit(3, org="b")
    engine.emit(2, org="a", payload=payload)
    engine.emit(3, org="b")

    async def run() -> None:
        hands = Hands()
        async with relaying(engine.url, hands):
            await until(lambda: len(hands.sent) == 8, 60)

    asyncio.run(run())
    assert engine.one("SELECT state FROM outbox.subscription WHERE id = %s", slow) == "disabled"
    held = engine.rows(
        "SELECT subscription_id, held_reason FROM outbox.delivery WHERE state = 'held'"
    )
    assert held == [(slow, "disabled")] * 2
    engine.check()


def test_what_the_broker_refused_is_given_back_and_sent_later_free_of_charge(
    engine: Engine,
) -> None:
    engine.subscribe()

    async def run() -> None:
        hands = Hands()
        async with relaying(engine.url, hands):
            await until(lambda: engine.one("SELECT last_value FROM outbox.event_id") == 1)
            hands.refuses = True
            engine.emit(50)
            await until(lambda: engine.states() in ({"scheduled": 50}, {}))
            hands.refuses = False
            await until(lambda: len(set(hands.sent)) == 50)
        assert len(hands.sent) == 50

    asyncio.run(run())
    assert engine.states() == {"leased": 50}
    assert engine.one("SELECT count(*) FROM outbox.delivery WHERE attempts + expiries > 0") == 0
    engine.check()


def test_two_relays_route_each_event_once(engine: Engine) -> None:
    engine.subscribe()

    async def run() -> None:
        one, two = Hands(), Hands()
        async with relaying(engine.url, one), relaying(engine.url, two):
            for _ in range(20):
                engine.emit(10)
                await asyncio.sleep(0)
            await until(lambda: len(one.sent) + len(two.sent) == 200)
        assert len({*one.sent, *two.sent}) == 200

    asyncio.run(run())
    assert engine.one("SELECT count(*) FROM outbox.journal WHERE fact = 'routed'") == 200

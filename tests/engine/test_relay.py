"""The relay's loop against a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest

from outbox.store.connect import connect_hot
from outbox.store.dispatch import Claim, Dispatch
from outbox.store.statements import statement
from tests.engine.engine import Engine, another
from tests.engine.running import Hands, relaying, until

SLOW = "exists($.a[*] ? (@ == $.b[*]))"


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
            await until(lambda: hands.refused > 0 and set(engine.states()) == {"scheduled"})
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


@pytest.mark.parametrize("step", ["route", "lease_due", "tend"])
def test_a_relay_leases_under_the_dispatch_lock(engine: Engine, step: str) -> None:
    """Otherwise two of them would give away the same permits."""
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )

    async def run() -> None:
        connection = await connect_hot(engine.url, "relay")
        dispatch = Dispatch(connection, 30.0)
        steps: dict[str, Callable[[], Awaitable[object]]] = {
            "route": lambda: dispatch.route(Claim(10), 10, 1),
            "lease_due": lambda: dispatch.lease_due([], 10, 1),
            "tend": lambda: dispatch.tend(10),
        }
        with another(engine.url) as second, second.transaction():
            second.execute(statement("dispatch_lock"))
            going = asyncio.ensure_future(steps[step]())
            await until(lambda: going.done() or bool(engine.one(waiting)))
            assert not going.done(), "it did not wait"
        await going
        await connection.raw.close()

    asyncio.run(run())


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
def test_permits_are_exact_whatever_isolation_is_the_databases_default(
    engine: Engine, level: str
) -> None:
    """A snapshot from before the wait for the lock would not show what the other one leased."""
    lane = engine.endpoint(concurrency=1)
    engine.subscribe(endpoint_id=lane)
    name = engine.one("SELECT current_database()")
    engine.run(f"ALTER DATABASE {name} SET default_transaction_isolation = '{level}'")
    engine.emit(1)

    async def run() -> None:
        connection = await connect_hot(engine.url, "relay")
        with another(engine.url) as second, second.transaction():
            second.execute(statement("dispatch_lock"))
            going = asyncio.ensure_future(Dispatch(connection, 30.0).route(Claim(10), 10))
            waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            await until(lambda: bool(engine.one(waiting)))
            engine.route(10, connection=second)
            engine.emit(1)
        assert (await going).leased == 0
        await connection.raw.close()

    asyncio.run(run())
    assert engine.states() == {"leased": 1, "scheduled": 1}


def test_one_organizations_backlog_does_not_hide_anothers_event(engine: Engine) -> None:
    """I15: claims in order alternate with fair ones."""
    for org in ("a", "b"):
        engine.subscribe(org=org)
    engine.emit(1000, org="a")
    [other] = engine.emit(1, org="b")

    async def run() -> int:
        hands = Hands()
        async with relaying(engine.url, hands):
            await until(lambda: len(hands.sent) == 1001, 60)
        theirs: UUID = engine.one("SELECT id FROM outbox.delivery WHERE event_id = %s", other)
        return hands.sent.index(theirs.hex)

    assert asyncio.run(run()) < 100

"""Destinations that are no endpoint: their own lane, limits and configuration, and the events that
an attempt brings about with its settle."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import psycopg
import pytest

import outbox
from outbox.effects import HOPS_MAX, Effects, Emission
from outbox.outcome import Kind, Outcome
from outbox.store.attempts import Attempts, StoredSetup
from outbox.store.statements import statement
from outbox.store.subscriptions import KindSpec, Rule, add_kind, pause_subscription
from outbox.work import Work
from tests.cli.helpers import wait_until
from tests.engine.engine import Engine
from tests.engine.running import DELIVERED, Scripted, until, working

SPEC = KindSpec("processor", {"table": "contacts"}, "sync.xero", timeout=timedelta(seconds=20))


def subscribe(engine: Engine, spec: KindSpec = SPEC, org: str = "acme") -> int:
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return add_kind(connection, spec, Rule(("orders.*",)), org)


def perform(engine: Engine, outcome: Outcome = DELIVERED) -> Sequence[Work]:
    """Deliver what is pending with one outcome; what the processor was given."""
    leases = engine.leases()

    async def run() -> Sequence[Work]:
        processor = Scripted(outcome=outcome)
        processor.gate.set()
        async with working(engine.url, processor, kind="sync.xero") as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        return processor.begun

    return asyncio.run(run())


def emitting(*events: Emission, rows: dict[str, object] | None = None) -> Outcome:
    return replace(DELIVERED, effects=Effects(events, rows or {}))


# -- what a processor is given ---------------------------------------------------------------------


def test_a_processor_gets_the_configuration_of_the_revision_that_routed(engine: Engine) -> None:
    subscription = subscribe(engine)
    engine.emit()
    leases = engine.leases()
    engine.run("""UPDATE outbox.subscription SET config = '{"table": "other"}', revision = 2""")
    parameters = {"lane": None, "subscription_id": subscription}
    engine.connection.execute(statement("note_revisions"), parameters)

    async def run() -> Work:
        processor = Scripted()
        processor.gate.set()
        async with working(engine.url, processor, kind="sync.xero") as running:
            await running.give(leases)
            await running.finish()
        [work] = processor.begun
        return work

    work = asyncio.run(run())
    assert (work.kind, work.endpoint) == ("sync.xero", None)
    assert work.setup is not None
    assert work.setup.config == {"table": "contacts"}
    assert (work.setup.subscription_id, work.setup.revision) == (subscription, 1)
    assert work.setup.timeout == timedelta(seconds=20)
    engine.check()


def test_an_attempt_that_outlasts_its_timeout_is_stopped_and_retried(engine: Engine) -> None:
    subscribe(engine, replace(SPEC, timeout=timedelta(milliseconds=50)))
    engine.emit()
    leases = engine.leases()

    async def run() -> Scripted:
        processor = Scripted()  # its gate never opens
        async with working(engine.url, processor, kind="sync.xero") as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        return processor

    assert asyncio.run(run()).cancelled == [leases[0][0]]
    assert engine.facts(leases[0][0]) == [("attempt_failed", "timeout", True, 1)]


def test_a_worker_without_the_processor_charges_nothing(engine: Engine) -> None:
    subscribe(engine)
    engine.emit()
    [(delivery, _)] = leases = engine.leases()

    async def run() -> None:
        async with working(engine.url, Scripted()) as running:
            await running.give(leases)
            await running.finish()

    asyncio.run(run())
    assert engine.facts(delivery) == [("attempt_failed", "no_processor", False, 0)]


def test_a_connection_lost_before_the_configuration_came_costs_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I11: taken and not begun, it is settled uncharged over the next connection."""
    subscribe(engine)
    engine.emit()
    [(delivery, _)] = leases = engine.leases()

    async def lost(_attempts: Attempts, _wanted: object) -> list[StoredSetup]:
        raise psycopg.OperationalError("the connection is lost")

    async def run() -> Scripted:
        processor = Scripted()
        async with working(engine.url, processor, kind="sync.xero") as running:
            with monkeypatch.context() as patch:
                patch.setattr(Attempts, "setups", lost)
                await running.give(leases)
                await until(lambda: len(running.opened) == 3)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()
        return processor

    assert asyncio.run(run()).begun == []
    assert engine.facts(delivery) == [("released", "shutdown", False, 0)]
    engine.check()


# -- limits ----------------------------------------------------------------------------------------


def test_its_own_concurrency_and_rate_are_permits(engine: Engine) -> None:
    subscribe(engine, replace(SPEC, concurrency=2))
    subscribe(engine, replace(SPEC, rate_per_s=0.1), org="b")
    engine.emit(5)
    assert len(engine.leases()) == 2
    engine.emit(9, org="b")
    assert len(engine.leases()) == 1  # the next token comes in ten seconds
    assert engine.due() == []
    later = engine.now() + timedelta(seconds=31)
    engine.expire(later)
    assert len(engine.due(now=later)) == 2 + 1


def test_a_pause_holds_and_an_organization_sees_its_own(engine: Engine) -> None:
    subscription = subscribe(engine)
    with psycopg.connect(engine.url, autocommit=True) as connection:
        pause_subscription(connection, subscription, "acme")
    engine.emit()
    engine.emit(org="rival")
    assert engine.leases() == []
    assert engine.states() == {"held": 1}


# -- what an attempt brings about ------------------------------------------------------------------


def events(engine: Engine) -> list[tuple[Any, ...]]:
    return engine.rows(
        "SELECT type, org_id, subject, payload::text, headers ->> 'outbox-hops' FROM outbox.event"
        " WHERE type <> 'orders.paid' ORDER BY id"
    )


def test_events_that_follow_are_written_with_the_settle(engine: Engine) -> None:
    """The bytes of a payload stay, the organization is that of the delivery, hops are counted,
    whatever the processor says of them."""
    subscribe(engine)
    engine.emit(headers=json.dumps({"outbox-hops": "2"}))
    perform(engine, emitting(
        Emission("contacts.synced", '{"a" : 1.50}', subject="contacts/7",
                 headers={"x": "y", "outbox-hops": "0"}),
        Emission("outbox.document.rendered", "{}"),
    ))  # fmt: skip
    assert events(engine) == [
        ("contacts.synced", "acme", "contacts/7", '{"a" : 1.50}', "3"),
        ("outbox.document.rendered", "acme", None, "{}", "3"),
    ]
    assert engine.rows("SELECT org FROM outbox.pending") == [("acme",), ("acme",)]
    engine.check()


@pytest.mark.parametrize("kind", [Kind.RETRY, Kind.REJECTED])
def test_an_attempt_that_failed_brings_about_nothing(engine: Engine, kind: Kind) -> None:
    subscribe(engine)
    engine.emit()
    perform(engine, replace(emitting(Emission("a.b", "1")), kind=kind))
    assert events(engine) == []


def test_who_lost_its_lease_brings_about_nothing(engine: Engine) -> None:
    """I3: effects are fenced like the settle that carries them, also beside one that holds."""
    subscribe(engine)
    held, lost = engine.emit(2)
    leases = engine.leases()

    async def process(work: Work, _deadline: float) -> Outcome:
        begun.append(work)
        await gate.wait()
        return emitting(Emission("a.b", str(work.event_id)))

    begun: list[Work] = []
    gate = asyncio.Event()

    async def run() -> None:
        async with working(engine.url, process, kind="sync.xero") as running:
            await running.give(leases)
            await until(lambda: len(begun) == 2)
            engine.run("UPDATE outbox.delivery SET token = token + 1 WHERE event_id = %s", lost)
            gate.set()
            await running.finish()

    asyncio.run(run())
    assert [row[3] for row in events(engine)] == [str(held)]
    assert engine.states() == {"leased": 1}


def test_options_of_emit_hold_and_a_key_is_used_once(engine: Engine) -> None:
    subscribe(engine)
    engine.emit(2)
    later = engine.now() + timedelta(hours=1)
    emission = Emission(
        "a.b", "1", ordering_key="k", deliver_at=later, dedupe_key="once",
        dedupe_for=timedelta(days=1),
    )  # fmt: skip
    perform(engine, emitting(emission))
    found = engine.rows("SELECT ordering_key, deliver_at FROM outbox.event WHERE type = 'a.b'")
    assert found == [("k", later)]


def test_events_of_one_key_keep_the_order_in_which_they_were_emitted(engine: Engine) -> None:
    """I8: the order of a key is that of ids, whatever else an event names."""
    subscribe(engine)
    engine.emit(2)
    perform(engine, emitting(*(
        Emission("a.b", str(n), ordering_key="k", dedupe_key=key and f"{key}{n}")
        for n, key in enumerate(["z", None, "y", "x", None, "a"])
    )))  # fmt: skip
    once = [int(row[3]) for row in events(engine)]
    assert once == [0, 1, 2, 3, 4, 5, 1, 4], "the other delivery's keys are used by then"


def test_settles_with_the_same_deduplication_keys_do_not_deadlock(engine: Engine) -> None:
    """Each writes its first event, then waits for an ordering key that another transaction holds;
    when that ends, each needs the deduplication key which the other has used."""
    subscribe(engine)
    engine.emit(2)
    leases = engine.leases()
    engine.take(leases)

    def settle(number: int, url: str) -> None:
        keys = [("a", "x"), ("c", "y")] if number == 0 else [("b", "y"), ("d", "x")]
        events = [
            {"type": "a.b", "payload": number, "ordering_key": order, "dedupe_key": key}
            for order, key in keys
        ]
        delivery, token = leases[number]
        params = {
            "now": None, "ids": [delivery], "tokens": [token], "verdicts": ["delivered"],
            "charged": [True], "reasons": ["x"], "delays_s": [None], "details": [None],
            "effects": [json.dumps({"emit": events})],
        }  # fmt: skip
        with psycopg.connect(url) as connection:
            connection.execute(statement("settle"), params)

    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    with psycopg.connect(engine.url) as holder, ThreadPoolExecutor(2) as pool:
        for order in ("c", "d"):
            outbox.emit(holder, "a.b", 1, org="acme", ordering_key=order)
        settled = []
        for number in range(2):
            settled.append(pool.submit(settle, number, engine.url))
            wait_until(lambda n=number: engine.one(waiting) == n + 1)  # type: ignore[misc]
        holder.commit()
        for future in settled:
            future.result(30)
    assert engine.one("SELECT count(*) FROM outbox.dedupe") == 2
    assert engine.states() == {}


def test_effects_that_postgresql_refuses_undo_their_own_attempt_alone(engine: Engine) -> None:
    subscribe(engine)
    good, bad = engine.emit(2)
    leases = engine.leases()

    async def process(work: Work, _deadline: float) -> Outcome:
        return emitting(Emission("not a type" if work.event_id == bad else "a.b", "1"))

    async def run() -> None:
        async with working(engine.url, process, kind="sync.xero") as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0)
            await running.finish()

    asyncio.run(run())
    assert [row[0] for row in events(engine)] == ["a.b"]
    event_of = "SELECT DISTINCT event_id FROM outbox.journal WHERE delivery_id = %s"
    by_event = {engine.one(event_of, delivery): delivery for delivery, _ in leases}
    assert engine.facts(by_event[good]) == [("delivered", "http_200", True, 1)]
    assert engine.facts(by_event[bad]) == [("attempt_failed", "effects_refused", False, 0)]
    engine.check()


def test_above_eight_hops_a_delivery_is_dead(engine: Engine) -> None:
    """What processors emit cannot feed itself for ever."""
    subscribe(engine)
    engine.emit(headers=json.dumps({"outbox-hops": str(HOPS_MAX)}))
    assert len(perform(engine)) == 1
    engine.emit(headers=json.dumps({"outbox-hops": str(HOPS_MAX + 1)}))
    assert perform(engine) == []
    assert engine.rows("SELECT reason FROM outbox.dead_letter") == [("too_many_hops",)]

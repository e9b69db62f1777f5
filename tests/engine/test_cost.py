"""What a delivery costs the database when many are under way: statements, transactions that write,
bytes of WAL. Counted over a relay and a worker at work, never timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from outbox.outcome import Outcome
from outbox.relay import Relay
from outbox.store import connect as store_connect
from outbox.store.connect import HotConnection, connect_hot
from outbox.work import Work
from tests.engine.engine import Engine
from tests.engine.running import DELIVERED, real_endpoint, until, working

DELIVERIES = 5_000
STATEMENTS_MAX = 0.1
TRANSACTIONS_MAX = 0.1
WAL_BYTES_MAX = 2_048
_SPENT = (
    "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint,"
    " pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint"
)


async def deliver(work: Work, _deadline: float) -> Outcome:
    return DELIVERED


async def drain(engine: Engine) -> None:
    """A relay and a worker, until everything is settled."""

    async def open_connection() -> HotConnection:
        return await connect_hot(engine.url, "relay")

    async with working(engine.url, deliver) as running:

        def hand_over(token: int, ids: Sequence[str]) -> None:
            running.worker.accept(token, ids)

        relay = Relay(open_connection, hand_over, lambda: 0)
        task = asyncio.create_task(relay.run())
        await until(
            lambda: (
                not engine.one(
                    "SELECT EXISTS (SELECT FROM outbox.pending)"
                    " OR EXISTS (SELECT FROM outbox.delivery)"
                )
            ),
            60,
        )
        relay.stop()
        await task
        await running.finish()


def test_a_delivery_costs_a_tenth_of_a_statement_and_two_kilobytes_of_wal(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no more when more are waiting. The events' own rows are not counted: they are the
    application's. Images of whole pages are few: a first drain has touched most pages."""
    sent: Counter[str] = Counter()
    real = store_connect._Answering.execute

    async def counted(self: Any, query: Any, *args: Any, **options: Any) -> Any:
        text = query if isinstance(query, str) else query.decode()
        sent[text.strip().partition("\n")[0]] += 1
        return await real(self, query, *args, **options)

    real_endpoint(engine, concurrency=100_000)
    engine.emit(1_000)
    monkeypatch.setattr(store_connect._Answering, "execute", counted)
    asyncio.run(drain(engine))
    few = sent.total() / 1_000
    sent.clear()
    engine.emit(DELIVERIES, payload='{"note": "' + "x" * 900 + '"}')
    [(xids, wal)] = engine.rows(_SPENT)
    asyncio.run(drain(engine))
    [(xids_then, wal_then)] = engine.rows(_SPENT)
    spent = (sent.total(), xids_then - xids, wal_then - wal)
    statements, transactions, wal_bytes = (one / DELIVERIES for one in spent)
    told = f"{statements=} {transactions=} {wal_bytes=} {sent.most_common(12)}"
    assert engine.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'") == 6_000
    assert 0 < statements <= min(few, STATEMENTS_MAX), f"{few} each for a thousand; {told}"
    assert 0 < transactions <= TRANSACTIONS_MAX, told
    assert 0 < wal_bytes <= WAL_BYTES_MAX, told

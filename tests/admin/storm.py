"""Everybody at once over one database: writers, relays, workers, operators, replays, redaction,
rebuild, retention. Each does a bounded number of rounds; then the storm ends and all is delivered.

The books are kept here, apart from the journal, because retention clears that meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import psycopg
from psycopg import errors as pg

from outbox.store import endpoints
from outbox.store.attempts import Attempts, Settlement
from outbox.store.connect import HotConnection, connect, connect_hot
from outbox.store.dead import Selection, discard, redrive
from outbox.store.deliveries import cancel_deliveries
from outbox.store.dispatch import Claim, Dispatch
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.rebuild import Report, verify
from outbox.store.rebuild_mend import apply
from outbox.store.redaction import redact, sweep
from outbox.store.replay import Choice, create_replay
from outbox.store.replay_counts import count_replay
from outbox.store.replaying import replay_once
from outbox.store.retention import RetentionConfig, tend_retention
from outbox.store.subscriptions import Rule, pause_subscription, resume_subscription
from tests.admin.helpers import RING, URL, Connection

BUSY = (pg.QueryCanceled, pg.LockNotAvailable)
"""What the loops meet on a busy machine, where they simply go on. A deadlock is not among them."""
RETRY = "exp:base=1s,factor=1,cap=1s,attempts=1000"
KEEP = RetentionConfig(
    keep=timedelta(seconds=1), dead_keep=timedelta(days=1), rows_max=20, rounds_max=20
)
LEASE_S = 1.0
CALM_WITHIN_S = 60
KEYS = ("a", "b", "c", None)


@dataclass
class Books:
    """Delivery ids: what is owed, and what is known to have ended, and how."""

    owed: dict[UUID, int] = field(default_factory=dict)
    events: list[int] = field(default_factory=list)
    ended: dict[str, set[UUID]] = field(default_factory=dict)
    redacted: set[int] = field(default_factory=set)
    done: Counter[str] = field(default_factory=Counter)

    def end(self, how: str, ids: set[UUID]) -> None:
        self.ended.setdefault(how, set()).update(ids)

    def unaccounted(self) -> set[UUID]:
        """What is owed and never ended."""
        over = set().union(*self.ended.values())
        return {key for key, event in self.owed.items() if event not in self.redacted} - over


class Storm:
    """One database, its endpoints (unordered, block, park, skip), and everybody around it."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.books = Books()
        self.failed: list[tuple[str, BaseException]] = []
        self._seed = seed
        self._writes = 0
        self._leases: deque[tuple[UUID, int]] = deque()
        self._over = threading.Event()
        """The rounds are over: from then on every attempt succeeds."""
        self._calm = threading.Event()
        """Nothing is left to do."""
        self.lanes: list[int] = []
        self.subscriptions: list[int] = []
        with connect(url, autocommit=True) as connection:
            for order in (None, "block", "park", "skip"):
                rule = Rule(("*",), retry=RETRY, order=order)
                added = add_endpoint(connection, EndpointSpec(URL, "acme", rule), RING)
                self.lanes.append(added.id)
                self.subscriptions.append(added.subscription_id)

    # -- running ------------------------------------------------------------------------------

    def rage(self, rounds: int) -> None:
        """Everybody at once; returns when all have done their rounds and all work is done."""
        self._writes = rounds * 2
        actions: list[tuple[str, int, Callable[[random.Random, Connection], None]]] = [
            ("write", self._writes, self._write),
            ("write late", rounds, self._write_late),
            ("cancel", rounds, self._cancel),
            ("pause", rounds, self._pause),
            ("pause subscription", rounds, self._pause_subscription),
            ("redrive", rounds, self._redrive),
            ("discard", rounds, self._discard),
            ("redact", rounds // 2, self._redact),
            ("rebuild", rounds // 2, self._rebuild),
            ("replay", rounds // 2, self._replay),
            ("rotate", rounds // 2, self._rotate),
        ]
        storm = [
            threading.Thread(target=self._operator, args=action, name=action[0])
            for action in actions
        ]
        storm.append(threading.Thread(target=self._hot, args=("retention", self._retain)))
        loops = [
            threading.Thread(target=self._hot, args=(f"{kind} {n}", loop))
            for n in range(2)
            for kind, loop in (("relay", self._relay), ("worker", self._worker))
        ]
        for thread in storm + loops:
            thread.start()
        for thread in storm[:-1]:
            thread.join()
        self._over.set()
        self._settle_down()
        for thread in storm[-1:] + loops:
            thread.join()

    def _operator(
        self, name: str, rounds: int, action: Callable[[random.Random, Connection], None]
    ) -> None:
        rng = random.Random(f"{self._seed} {name}")
        try:
            with connect(self.url, autocommit=True) as connection:
                for number in range(rounds):
                    self._keep_pace(name, number / rounds)
                    if self.failed:
                        return
                    action(rng, connection)
                    self.books.done[name] += 1
        except BaseException as error:
            self.failed.append((name, error))

    def _keep_pace(self, name: str, share: float) -> None:
        """Wait until the writer has done the same share of its rounds, and for that one until
        relays have: so that everybody meets everybody. The second half meets a cleared slot."""
        leader, total = ("relay 0", 2) if name == "write" else ("write", 1)
        done = self.books.done
        while not self.failed and (
            done[leader] < share * self._writes * total or (share > 0.5 and not done["cleared"])
        ):
            sleep(0.001)

    def _hot(
        self, name: str, loop: Callable[[random.Random, HotConnection], Awaitable[None]]
    ) -> None:
        rng = random.Random(f"{self._seed} {name}")

        async def run() -> None:
            connection = await connect_hot(self.url, "storm")
            try:
                while not self._calm.is_set():
                    with suppress(*BUSY):
                        await loop(rng, connection)
                        self.books.done[name] += 1
            finally:
                await connection.raw.close()

        try:
            asyncio.run(run())
        except BaseException as error:
            self.failed.append((name, error))
            self._calm.set()

    def _settle_down(self) -> None:
        """The storm is over: everything active, every letter redriven, until nothing is owed."""
        with connect(self.url, autocommit=True) as connection:
            for lane in self.lanes:
                endpoints.resume_endpoint(connection, lane)
            for subscription in self.subscriptions:
                resume_subscription(connection, subscription)
            until = monotonic() + CALM_WITHIN_S
            while not self.failed and self._left(connection):
                redrive(connection, Selection())
                if monotonic() > until:
                    self.failed.append(("calm", AssertionError(f"still owed: {left(self.url)}")))
        self._calm.set()

    def _left(self, connection: Connection) -> int:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM outbox.pending) + (SELECT count(*) FROM outbox.delivery)"
            " + (SELECT count(*) FROM outbox.dead_letter)"
            " + (SELECT count(*) FROM outbox.order_signal)"
        ).fetchone()
        assert row is not None
        return int(row[0])

    # -- the loops ----------------------------------------------------------------------------

    async def _relay(self, rng: random.Random, connection: HotConnection) -> None:
        dispatch = Dispatch(connection, LEASE_S)
        token = rng.getrandbits(62)
        claim = Claim(rng.randint(1, 30), orgs_max=rng.choice((0, 8)))
        routed = await dispatch.route(claim, 50, token)
        due = await dispatch.lease_due(await dispatch.due(16), 50, token)
        self._leases.extend((UUID(key), token) for key in (*routed.ids, *due.ids))
        await dispatch.expire(50, 1000)
        await dispatch.advance(50)
        await dispatch.tend(50)
        await asyncio.sleep(0)

    async def _worker(self, rng: random.Random, connection: HotConnection) -> None:
        attempts = Attempts(connection)
        leases: list[tuple[UUID, int]] = []
        with suppress(IndexError):
            while len(leases) < 40:
                leases.append(self._leases.popleft())
        if not leases:
            await asyncio.sleep(0.002)
            return
        kept = [lease for lease in leases if self._over.is_set() or rng.random() < 0.9]
        taken = {t.id for t in await attempts.take([(i.hex, token) for i, token in kept])}
        ended = [self._judged(rng, *lease) for lease in kept if lease[0] in taken]
        settled = await attempts.settle(ended)
        self.books.end(
            "delivered", {s.id for s in ended if s.verdict == "delivered" and s.id in settled}
        )

    def _judged(self, rng: random.Random, key: UUID, token: int) -> Settlement:
        chances = (1, 0, 0, 0) if self._over.is_set() else (5, 2, 2, 1)
        [verdict] = rng.choices(("delivered", "retry", "dead", "release"), chances)
        delay_s = 0.0 if verdict == "retry" else None
        detail = json.dumps({"status": 500, "response": "no"}) if verdict == "dead" else None
        return Settlement(key, token, verdict, verdict != "release", "http_500", delay_s, detail)

    async def _retain(self, rng: random.Random, connection: HotConnection) -> None:
        tended = await tend_retention(connection, KEEP)
        self.books.done["cleared"] += len(tended.cleared)
        self.books.done["carried"] += tended.carried
        await asyncio.sleep(0.05)

    # -- writers ------------------------------------------------------------------------------

    def _write(self, rng: random.Random, connection: Connection) -> None:
        with connection.transaction():
            found = self._emit(rng, connection)
        self._owe(found)

    def _write_late(self, rng: random.Random, connection: Connection) -> None:
        """The relays' floor may be past these ids when they commit, or they never do."""
        kept = rng.random() < 0.7
        with connection.transaction(force_rollback=not kept):
            found = self._emit(rng, connection)
            connection.execute("SELECT pg_sleep(0.01)")
        if kept:
            self._owe(found)

    def _emit(self, rng: random.Random, connection: Connection) -> list[tuple[int, UUID]]:
        """Emit some events; event and delivery ids of everything that is owed for them."""
        rows = connection.execute(
            "WITH e AS MATERIALIZED (SELECT outbox.emit('orders.paid', to_json(i), 'acme',"
            " ordering_key => %(key)s) AS id FROM generate_series(1, %(n)s) i) SELECT id FROM e",
            {"key": rng.choice(KEYS), "n": rng.randint(1, 6)},
        ).fetchall()
        return connection.execute(
            "SELECT e.id, outbox.delivery_id(e.id, e.created_at, s, 0, i.salt)"
            " FROM outbox.event e, unnest(%s::bigint[]) s, outbox.installation i"
            " WHERE e.id = ANY (%s)",
            [self.subscriptions, [row[0] for row in rows]],
        ).fetchall()

    def _owe(self, found: list[tuple[int, UUID]]) -> None:
        self.books.owed.update((key, event) for event, key in found)
        self.books.events.extend({event for event, _ in found})

    # -- operators ----------------------------------------------------------------------------

    def _some(self, connection: Connection, table: str, n: int) -> list[UUID]:
        query = f"SELECT id FROM outbox.{table} ORDER BY random() LIMIT {n}"
        return [row[0] for row in connection.execute(query.encode())]

    def _cancel(self, rng: random.Random, connection: Connection) -> None:
        done = cancel_deliveries(connection, self._some(connection, "delivery", 5))
        self.books.end("cancelled", set(done.cancelled))

    def _pause(self, rng: random.Random, connection: Connection) -> None:
        lane = rng.choice(self.lanes)
        endpoints.pause_endpoint(connection, lane)
        endpoints.resume_endpoint(connection, lane)

    def _pause_subscription(self, rng: random.Random, connection: Connection) -> None:
        subscription = rng.choice(self.subscriptions)
        pause_subscription(connection, subscription)
        resume_subscription(connection, subscription)

    def _redrive(self, rng: random.Random, connection: Connection) -> None:
        lane = rng.choice([None, *self.lanes])
        redrive(connection, Selection(org="acme", endpoint_id=lane), rows_max=7)

    def _discard(self, rng: random.Random, connection: Connection) -> None:
        for key in self._some(connection, "dead_letter", 2):
            if discard(connection, Selection(ids=[key]), "no use").discarded:
                self.books.end("discarded", {key})

    def _rotate(self, rng: random.Random, connection: Connection) -> None:
        endpoints.rotate_secret(connection, rng.choice(self.lanes), RING)

    def _redact(self, rng: random.Random, connection: Connection) -> None:
        events = sorted(rng.sample(self.books.events, min(3, len(self.books.events))))
        self.books.redacted.update(events)
        done = redact(connection, events, "asked for", batch_events=2)
        sweep(connection, done.xid)

    def _rebuild(self, rng: random.Random, connection: Connection) -> None:
        with connect(self.url, autocommit=True) as reader:
            mended = apply(reader, connection, rows_max=200)
        assert mended.report.equal, described(mended.report)
        assert not +mended.done

    def _replay(self, rng: random.Random, connection: Connection) -> None:
        mode = rng.choice(("redeliver", "redeliver", "re-emit"))
        events = tuple(rng.sample(self.books.events, min(10, len(self.books.events))))
        choice = Choice(events=events, missed=False)
        count_replay(connection, choice, mode)
        made = create_replay(connection, choice, why="once more", mode=mode)

        async def carry_out() -> None:
            hot = await connect_hot(self.url, "replay")
            try:
                state: str | None = "running"
                while state == "running":
                    with suppress(*BUSY):
                        state = (await replay_once(hot, made.replay["id"], events_max=3)).state
            finally:
                await hot.raw.close()

        asyncio.run(carry_out())


def described(report: Report) -> str:
    """What differs, some of each kind."""
    return "\n".join(
        f"{kind}: {[item.told() for item in items[:3]]}" for kind, items in report.samples.items()
    )


def deadlocks(url: str) -> int:
    """How many deadlocks the server ever broke in this database. Sessions report theirs at their
    end at the latest."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    assert row is not None
    return int(row[0])


def equal(url: str) -> Report:
    """The comparison of projections with facts."""
    with connect(url, autocommit=True) as connection:
        return verify(connection)


def left(url: str) -> dict[str, Any]:
    """What is still there of what should have ended."""
    tables = ("pending", "delivery", "dead_letter", "order_signal")
    with psycopg.connect(url) as connection:
        counts = {
            table: connection.execute(f"SELECT count(*) FROM outbox.{table}".encode()).fetchone()
            for table in tables
        }
    return {table: row[0] for table, row in counts.items() if row is not None and row[0]}

"""Drives the real statements on a database whose clock is ours, and checks each step.

A step is what one process does: it runs a statement and either learns what came of it, or dies
before it hears (`FORGOTTEN`), or dies with its transaction open (`UNDONE`). Whoever would wait for
a lock that another session holds gives up at once, as if it had died before it began.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from psycopg import errors as pg

from outbox.fronts import Fronts, zipped
from outbox.history import DeliveryState, apply
from outbox.store import arrays
from outbox.store.attempts import Settlement
from outbox.store.connect import connect_hot
from outbox.store.dispatch import Claim, Leased, Routed, split_ids
from outbox.store.statements import statement
from tests.engine.engine import LEASE_S, made_hot, open_hot
from tests.engine.mortal import Died, Mortal, MortalHot
from tests.property import clock
from tests.property.model import EXPIRIES_MAX, Lane, Lease, Model, Spec, Sub, queue_of, verify
from tests.property.snapshot import Fact, Row, Snapshot, read
from tests.property.story import agree, fold_known, told_by

Connection = psycopg.Connection[Row]
Cursor = psycopg.Cursor[Row]
T = TypeVar("T")
Linked = TypeVar("Linked", bound=Connection)

LINKS = 3
"""Processes and operators, each with a connection of its own."""
WRITERS = 2
"""Connections of the application, for transactions that stay open."""


class Fate(Enum):
    """What becomes of a process at a step."""

    DONE = "done"
    FORGOTTEN = "forgotten"
    UNDONE = "undone"


_WIPE = (
    "event journal pending delivery dead_letter dedupe order_signal lane_rate lane_health replay"
    " secret subscription_revision subscription endpoint node email email_recipient suppression"
    " artifact artifact_stray"
).split()
_BEGIN = """
    SELECT setval('outbox.event_id', 1, false), setval('outbox.object_id', 1, false),
           setval('outbox.ring_slot', 0, true), setval('outbox.bell', 2, true);
    UPDATE outbox.ring SET opened_at = CASE WHEN slot = 0 THEN clock_timestamp() END
    WHERE opened_at IS DISTINCT FROM CASE WHEN slot = 0 THEN clock_timestamp() END;
"""


class Arena:
    """One database for all examples of a process, and the connections to it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.admin = psycopg.connect(url, autocommit=True)
        self.admin.execute("SET session_replication_role = replica")
        self.admin.execute("SET lock_timeout = '5s'")
        for name in ("delivery", "dead_letter"):  # a vacuum would change what `wipe` tells of
            self.admin.execute(f"ALTER TABLE outbox.{name} SET (autovacuum_enabled = off)".encode())
        self.reader = open_hot(url)
        self.links = [self._open(Mortal) for _ in range(LINKS)]
        self.writers = [self._open(psycopg.Connection) for _ in range(WRITERS)]
        for writer in self.writers:
            writer.autocommit = False
        self.runner = asyncio.Runner()
        hot = self.run(connect_hot(url, "property"))
        self.hot = MortalHot(hot.raw, hot.direct)
        self.run(self.hot.raw.execute("SET lock_timeout = '5ms'"))
        self.relays = [self.run(connect_hot(url, "relay")) for _ in range(2)]
        self.shop: object = None
        self._used = 0

    def _open(self, kind: type[Linked]) -> Linked:
        connection = made_hot(kind.connect(self.url, autocommit=True))
        connection.execute("SET lock_timeout = '5ms'")
        connection.execute("SET idle_in_transaction_session_timeout = 0")
        return connection

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(coroutine)

    def close(self) -> None:
        for hot in (self.hot, *self.relays):
            self.run(hot.raw.close())
        self.runner.close()
        for connection in (self.admin, self.reader, *self.links, *self.writers):
            connection.close()

    def wipe(self) -> None:
        """Back to an empty database at T0. Cheap deletes; now and then the bloat goes too.

        Deliveries that are due at the same moment go in the order of their places in the table, so
        the places are the same for each example: else one that is run again may go another way.
        """
        self._used += 1
        clock.turn(self.admin, clock.T0)
        for connection in self.writers:
            connection.rollback()
        names = ", ".join(f"outbox.{name}" for name in _WIPE)
        deletes = "TRUNCATE outbox.delivery, outbox.dead_letter;" + "".join(
            f"DELETE FROM outbox.{name};" for name in _WIPE
        )
        if self._used % 100 == 0:
            deletes = f"SET outbox.retention = 'on'; TRUNCATE {names};"
        self.admin.execute((deletes + _BEGIN).encode())


@dataclass
class World:
    """One example: a model, the tables as last seen, and a clock."""

    arena: Arena
    model: Model = field(default_factory=Model)
    now: datetime = clock.T0
    tokens: Any = field(default_factory=lambda: itertools.count(1))
    folded: dict[UUID, DeliveryState] = field(default_factory=dict)
    open: dict[int, set[int]] = field(default_factory=dict)
    oldest: dict[int, int] = field(default_factory=dict)
    fronts: Fronts = field(default_factory=Fronts)
    broken: bool = False

    def __post_init__(self) -> None:
        self.arena.wipe()
        self.seen: Snapshot = read(self.arena.reader, self.now)

    # -- steps ----------------------------------------------------------------------------------

    def pass_time(self, wait: timedelta) -> None:
        self.now += wait
        clock.turn(self.arena.admin, self.now)

    def step(
        self,
        act: Callable[[Connection], Cursor],
        spec: Callable[[Snapshot, Snapshot, list[Row]], Spec],
        fate: Fate = Fate.DONE,
        who: int = 0,
    ) -> list[Row] | None:
        """Let process `who` run a statement, and check what came of it; None where the process
        died or was refused. Everything goes out in one flight."""
        connection = self.arena.links[who]
        found: list[Row] | None = None
        try:
            with connection.pipeline(), connection.transaction(force_rollback=fate is Fate.UNDONE):
                cursor = act(connection)
            if fate is not Fate.UNDONE:
                found = cursor.fetchall() if cursor.description else []
        except pg.LockNotAvailable:
            pass
        rows = found
        self.look(_nothing if rows is None else lambda before, after: spec(before, after, rows))
        return rows if fate is Fate.DONE else None

    def call(
        self,
        act: Callable[[Connection], T],
        spec: Callable[[Snapshot, Snapshot, T | None], Spec],
        who: int = 0,
        dies: int | None = None,
    ) -> T | None:
        """The same for a function of the store that runs transactions of its own.

        With `dies` its process ends before so many of its steps (statements and commits): then
        each delivery has changed as it should, or not at all, and the spec is given no result.
        """
        try:
            with self.arena.links[who].dying(dies):
                result = act(self.arena.links[who])
        except pg.LockNotAvailable:
            self.look(_nothing)
            return None
        except Died:
            self.look(lambda before, after: spec(before, after, None).perhaps())
            return None
        self.look(lambda before, after: spec(before, after, result))
        return result

    def look(self, spec: Callable[[Snapshot, Snapshot], Spec]) -> None:
        """Read the tables, compare them with the model, fold what is new."""
        self.broken = True
        next_at = self.now + clock.STEP
        before, after = self.seen, read(self.arena.reader, next_at)
        due = spec(before, after)
        new = verify(before, after, due, self.now)
        assert after.state_of == self.model.states(), "only an operator changes configuration"
        self.seen, self.now = after, next_at
        self.follow(before, after, new)
        self.broken = False

    def follow(self, before: Snapshot, after: Snapshot, new: Iterable[Fact]) -> None:
        """I1 and I13: what the new facts fold to is what the tables hold; nothing is missing."""
        for told in sorted((t for fact in new for t in told_by(fact)), key=lambda t: t.at):
            self.folded[told.delivery_id] = apply(self.folded.get(told.delivery_id), told)
        agree(after, self.folded)
        for delivery_id in before.rows.keys() - after.rows.keys():
            self.model.ended[delivery_id] = self.folded[delivery_id].state
        for delivery_id in after.rows:
            self.model.ended.pop(delivery_id, None)
        ended = self.model.ended
        lost = [i for i in self.model.matched if i not in after.rows and i not in ended]
        assert not lost, f"I1: lost: {lost}"

    # -- the relay ------------------------------------------------------------------------------

    def route(self, claim: Claim, window: int, fate: Fate = Fate.DONE, who: int = 0) -> list[Lease]:
        token = next(self.tokens)
        params = {"now": None, **asdict(claim), "orgs_skipped": list(claim.orgs_skipped)}
        params |= {"window": window, "token": token, "lease_s": LEASE_S, **self.oldest_known()}
        fronts = {lane: at for lane, _, at in self.fronts.known(queue=0)}
        params |= {"front_lanes": list(fronts), "fronts": list(fronts.values())}

        def spec(before: Snapshot, after: Snapshot, rows: list[Row]) -> Spec:
            [row] = rows
            routed = Routed.of(row)
            self.oldest.update(routed.oldest)
            self.fronts.clear(routed.now, [(lane, 0) for lane in routed.clear])
            self.fronts.put([(lane, 0, due) for lane, due in routed.waits])
            found = self.model.route(before, after, self.now, claim, window, token, fronts)
            _handed(row[0], after, token)
            assert row[1] == len(found.claimed)
            return found

        return _leases(self.step(lambda c: locked(c, "route", params), spec, fate, who), token)

    def oldest_known(self) -> dict[str, list[int]]:
        """Of each lane the oldest live lease that a relay has seen: what it counts from."""
        return {"lanes": list(self.oldest), "oldest": list(self.oldest.values())}

    def lease_due(
        self,
        window: int,
        fate: Fate = Fate.DONE,
        who: int = 0,
        *,
        walk: bool = True,
        places_max: int = 1000,
        later_max: int = 1000,
    ) -> list[Lease]:
        """After a walk, or by what is known."""
        token = next(self.tokens)
        if walk:
            self.walk()
        places = self.fronts.due(self.now.timestamp(), places_max)
        params: dict[str, Any] = {"now": None, "later_max": later_max}
        params |= arrays.columns(places, "due_lanes", "due_queues", "fronts")
        params |= {"window": window, "token": token, "lease_s": LEASE_S, **self.oldest_known()}

        def spec(before: Snapshot, after: Snapshot, rows: list[Row]) -> Spec:
            leased = Leased.of(rows[0])
            self.oldest.update(leased.oldest)
            self.fronts.looked(leased.now, leased.met)
            _handed(rows[0][0], after, token)
            return self.model.lease_due(before, after, self.now, window, token, places, later_max)

        return _leases(self.step(lambda c: locked(c, "lease_due", params), spec, fate, who), token)

    def walk(self) -> None:
        """Find where something waits: afterwards nothing that is due lies behind a front."""
        found = self.arena.reader.execute(
            "SELECT lane, queue, extract(epoch FROM due_at)::float8"
            " FROM outbox.due_walk(0, 9223372036854775807, 1000)"
        ).fetchall()
        now = self.now.timestamp()
        self.fronts.walked(now, [(row[0], row[1], row[2]) for row in found], 0, math.inf)
        fronts = {(lane, queue): front for lane, queue, front in self.fronts.due(now, 1000)}
        for row in self.seen.deliveries.values():
            due = row.due_at.timestamp()
            if row.state == "scheduled" and row.lane > 0 and due <= now:
                assert fronts[row.lane, queue_of(row)] <= due, "a walk missed what is due"

    def expire(self, fate: Fate = Fate.DONE, who: int = 0, rows_max: int = 1000) -> None:
        params = {
            "now": None,
            "since_s": None,
            "rows_max": rows_max,
            "expiries_max": EXPIRIES_MAX,
        }

        def spec(before: Snapshot, after: Snapshot, rows: list[Row]) -> Spec:
            [row] = rows
            found = self.model.expire(before, self.now, rows_max)
            changed = sum(1 for i in found.rows if before.rows[i] != after.rows.get(i))
            assert changed == min(rows_max, len(found.rows)) == row[0] + row[1]
            self.fronts.put(zipped(*row[3:]))
            return found

        self.step(lambda c: run(c, "expire_leases", params), spec, fate, who)

    def tend(self, fate: Fate = Fate.DONE, who: int = 0) -> None:
        params = {"now": None, "rows_max": 1000}
        self.step(
            lambda c: locked(c, "tend_due", params),
            lambda before, _, __: self.model.tend(before, self.now),
            fate,
            who,
        )

    def release(self, leases: Sequence[Lease], fate: Fate = Fate.DONE, who: int = 0) -> None:
        token = leases[0][1]
        ids = [lease[0] for lease in leases if lease[1] == token]

        def released(before: Snapshot, _: Snapshot, rows: list[Row]) -> Spec:
            self.fronts.put([(row[0], row[1], row[2]) for row in rows])
            return self.model.release(before, [(i, token) for i in ids])

        self.step(
            lambda c: run(c, "release", {"token": token, "ids": ids}),
            released,
            fate,
            who,
        )

    # -- the worker -----------------------------------------------------------------------------

    def take(self, leases: Sequence[Lease], fate: Fate = Fate.DONE, who: int = 0) -> list[Row]:
        params = {"now": None, **pairs(leases)}

        def spec(before: Snapshot, _: Snapshot, found: list[Row]) -> Spec:
            due = self.model.take(before, self.now, leases)
            assert {row[0] for row in found} == due.rows.keys(), "I2, I3: what a take starts"
            for row in found:
                self._content(before, row)
            return due

        return self.step(lambda c: run(c, "take", params), spec, fate, who) or []

    def _content(self, before: Snapshot, row: Row) -> None:
        """A worker is told the event it is about, and the attempt that it makes."""
        delivery = before.deliveries[row[0]]
        event = before.events[delivery.event_slot, delivery.event_id]
        assert row[3] == delivery.attempts + 1, "I4: attempts rise by one"
        assert (row[4], row[5], row[7], row[9], row[10]) == (
            event.id,
            event.type,
            event.payload,
            event.org_id,
            event.subject,
        )
        sub = self.model.subs[delivery.subscription_id]
        assert sub.org in (None, event.org_id), "I14: an event of another organization"
        endpoint = None if sub.lane.own else sub.lane.id
        assert (row[11], row[14], row[16]) == (sub.id, sub.retry, endpoint)
        assert row[12] == ("sync.x" if sub.lane.kind == "processor" else sub.lane.kind)

    def settle(
        self, ended: Sequence[Settlement], fate: Fate = Fate.DONE, who: int = 0
    ) -> set[UUID]:
        params = settling(ended)
        # As a worker does: what was delivered and brings about nothing has a statement of its own.
        plain = all(s.verdict == "delivered" and s.effects is None for s in ended)
        names = ("now", "ids", "tokens", "reasons", "details") if plain else tuple(params)
        name, params = _SETTLES[plain], {key: params[key] for key in names}

        def ours(found: list[Row]) -> set[UUID]:
            if not plain:
                return {row[0] for row in found}
            return {s.id for s in ended} if found[0][1] is None else set(found[0][1])

        def spec(before: Snapshot, after: Snapshot, found: list[Row]) -> Spec:
            due = self.model.settle(before, self.now, ended)
            assert ours(found) == due.rows.keys(), "I3: what a settle ends"
            due.emitted = self.effects(before, after, [s for s in ended if s.id in due.rows])
            return due

        found = self.step(lambda c: run(c, name, params), spec, fate, who)
        return set() if found is None else ours(found)

    def effects(
        self, _before: Snapshot, _after: Snapshot, _ended: Sequence[Settlement]
    ) -> set[int]:
        """Check what these attempts, which were settled, brought about; returns the new events."""
        return set()

    def extend(self, leases: Sequence[Lease], fate: Fate = Fate.DONE, who: int = 0) -> None:
        params = {"now": None, **pairs(leases), "lease_s": LEASE_S}
        self.step(
            lambda c: run(c, "extend", params),
            lambda before, _, __: self.model.extend(before, self.now, leases),
            fate,
            who,
        )

    # -- the application ------------------------------------------------------------------------

    def emit(
        self, n: int, event_type: str, org: str | None, payload: int, **options: Any
    ) -> list[int]:
        """Emit `n` events in one transaction of their own."""
        ids: list[int] = []

        def spec(_: Snapshot, after: Snapshot, rows: list[Row]) -> Spec:
            ids.extend(row[0] for row in rows)
            self.check_events(after, ids, event_type, org, payload, options)
            return Spec(emitted=set(ids))

        self.step(lambda c: emit(c, n, event_type, org, payload, **options), spec)
        return ids

    def emit_once(
        self, event_type: str, org: str | None, payload: int, key: str, ordering_key: str | None
    ) -> None:
        """Emit under a deduplication key that lives for a minute."""
        first, until = self.model.dedupe.get((org, key), (0, self.now))

        def spec(before: Snapshot, after: Snapshot, rows: list[Row]) -> Spec:
            [(event_id,)] = rows
            if until > self.now:
                assert event_id == first, "the first event's id"
                return Spec()
            self.model.dedupe[org, key] = (event_id, self.now + timedelta(seconds=60))
            self.check_events(after, [event_id], event_type, org, payload, options)
            return Spec(emitted={event_id})

        options = {"ordering_key": ordering_key}
        unique = {"dedupe_key": key, "dedupe_for": timedelta(seconds=60)}
        self.step(lambda c: emit(c, 1, event_type, org, payload, **options, **unique), spec)

    def begin_emit(
        self, writer: int, n: int, event_type: str, org: str | None, **more: Any
    ) -> None:
        """Emit in a transaction that stays open; it may be open already."""
        connection = self.arena.writers[writer]
        try:
            cursor = emit(connection, n, event_type, org, 2, **more)
        except pg.LockNotAvailable:
            self.end_emit(writer, commit=False)
            return
        self.open.setdefault(writer, set()).update(row[0] for row in cursor)
        self.look(_nothing)

    def end_emit(self, writer: int, *, commit: bool) -> None:
        connection = self.arena.writers[writer]
        (connection.commit if commit else connection.rollback)()
        made = self.open.pop(writer, set())
        self.look(lambda *_: Spec(emitted=made if commit else set()))

    def check_events(
        self,
        after: Snapshot,
        ids: Sequence[int],
        event_type: str,
        org: str | None,
        payload: int,
        options: dict[str, Any],
    ) -> None:
        events = {event_id: event for (_, event_id), event in after.events.items()}
        for event_id in ids:
            event = events[event_id]
            assert (event.type, event.org_id, event.payload) == (event_type, org, str(payload))
            for name in ("deliver_at", "expires_at", "ordering_key", "subject"):
                assert getattr(event, name) == options.get(name)

    # -- the end --------------------------------------------------------------------------------

    def finish(self) -> None:
        """Nothing goes wrong any more: route, lease, deliver, until nothing is owed but by the
        dead. Time passes; what a worker took it delivers. Limits are lifted, to make it short."""
        for writer in list(self.open):
            self.end_emit(writer, commit=True)
        self.arena.reader.execute(
            "UPDATE outbox.endpoint SET concurrency = 1000, rate_per_s = NULL"
        )
        self.arena.reader.execute(
            "UPDATE outbox.subscription SET concurrency_max = 1000, rate_per_s_max = NULL"
            " WHERE endpoint_id IS NULL"
        )
        for lane in self.model.lanes.values():
            lane.concurrency, lane.rate = 1000, None
            self.report(lane, delivered=True)
        owed = len(self.seen.pending) + len(self.seen.deliveries)
        for _ in range(100 + 3 * owed):  # of one ordered key each takes two rounds
            if not (self.seen.pending or self.seen.deliveries):
                break
            leases = self.route(Claim(1000), 1000) if self.seen.pending else []
            leases += self.lease_due(1000)
            taken = self.take(leases) if leases else []
            if taken:
                self.settle([self.perform(row) for row in taken])
                continue
            self.rest()
            self.pass_time(max(timedelta(seconds=1), self._next() - self.now))
        assert not self.seen.pending, "I1: events are left unrouted"
        assert not self.seen.deliveries, f"I11: work does not end: {self.seen.deliveries}"
        agree(self.seen, fold_known(self.seen))

    def perform(self, row: Row) -> Settlement:
        """An attempt of what was taken, with which nothing goes wrong."""
        return Settlement(row[0], row[1], "delivered", True, "http_200", None, None)

    def rest(self) -> None:
        """What a relay does when there is nothing to hand out."""
        self.expire()
        self.tend()

    def _next(self) -> datetime:
        """When something is due, or a lease ends."""
        times = [row.lease_until or row.due_at for row in self.seen.deliveries.values()]
        return min((at for at in times if at > self.now), default=self.now)

    def report(self, lane: Lane, *, delivered: bool, who: int = 0) -> None:
        """A worker says how attempts went: what answers heals, what does not opens its circuit."""
        params = {
            "now": None,
            "lanes": [lane.id],
            "delivered": [delivered],
            "failures": [0 if delivered else 50],
            "down": [0 if delivered else 50],
            "open_failures": 20,
            "open_after_s": 5.0,
            "probe_s_min": 5.0,
            "probe_s_max": 60.0,
        }
        self.step(lambda c: run(c, "lane_report", params), lambda *_: Spec(), who=who)

    # -- configuring ----------------------------------------------------------------------------

    def endpoint(self, org: str | None, concurrency: int, rate: float | None) -> Lane:
        query = (
            "INSERT INTO outbox.endpoint (org_id, url, concurrency, rate_per_s, disable_after)"
            " VALUES (%s, 'http://127.0.0.1:9/x', %s, %s, NULL) RETURNING id"
        )
        [(made,)] = self.arena.reader.execute(query, [org, concurrency, rate]).fetchall()
        lane = Lane(made, org, concurrency, rate)
        lane.tokens, lane.at = max(1.0, (rate or 0) / 10), self.now
        self.model.lanes[made] = lane
        return lane

    def own(
        self,
        org: str | None,
        concurrency: int,
        rate: float | None,
        kind: str = "processor",
        config: dict[str, Any] | None = None,
        **fields: Any,
    ) -> Sub:
        """A subscription without an endpoint: a lane of its own."""
        [(made,)] = self.arena.reader.execute("SELECT nextval('outbox.object_id')").fetchall()
        made = -made if kind == "broadcast" else made
        lane = Lane(made, org, concurrency, rate, own=True, kind=kind)
        lane.tokens, lane.at = max(1.0, (rate or 0) / 10), self.now
        self.model.lanes[made] = lane
        return self.subscribe(lane, config=config, **fields)

    def subscribe(self, lane: Lane, config: dict[str, Any] | None = None, **fields: Any) -> Sub:
        sub = Sub(id=0, lane=lane, org=lane.org, active_from=self.now, **fields)
        where: dict[str, Any] = {"kind": "webhook", "endpoint_id": lane.id}
        if lane.own:
            where = {"id": abs(lane.id), "kind": lane.kind, "config": config and json.dumps(config)}
            where["processor"] = "sync.x" if lane.kind == "processor" else None
            where |= {"concurrency_max": lane.concurrency, "rate_per_s_max": lane.rate}
        columns: dict[str, Any] = {
            **where,
            "lane": lane.id,
            "org_id": sub.org,
            "all_orgs": sub.org is None,
            "patterns": list(sub.patterns),
            "filter": None if sub.above is None else f"$ > {sub.above}",
            "retry": sub.retry,
            "max_age": sub.max_age,
            "active_from": sub.active_from,
            "order_mode": sub.order_mode,
        }
        query = (
            f"INSERT INTO outbox.subscription ({', '.join(columns)})"
            f" VALUES ({', '.join(['%s'] * len(columns))}) RETURNING id"
        )
        reader = self.arena.reader
        [(sub.id,)] = reader.execute(query.encode(), list(columns.values())).fetchall()
        reader.execute(statement("note_revisions"), {"lane": lane.id, "subscription_id": None})
        self.model.subs[sub.id] = sub
        self.seen = read(reader, self.now)
        return sub


def _nothing(*_: object) -> Spec:
    return Spec()


def _handed(packed: bytes | None, after: Snapshot, token: int) -> None:
    """What goes to the broker is what is leased, once each."""
    ids = [UUID(each) for each in split_ids(packed)]
    leased = {row.id for row in after.deliveries.values() if row.token == token}
    assert len(ids) == len(leased)
    assert set(ids) == leased, "I2: leases that nobody hears of"


def emit(
    connection: Connection, n: int, event_type: str, org: str | None, payload: int, **options: Any
) -> Cursor:
    """Emit in the caller's transaction, as SQL does."""
    given = {"type": event_type, "org_id": org, **options}
    names = "".join(f", {name} => %({name})s" for name in given)
    query = (
        f"SELECT outbox.emit(payload => to_json(%(payload)s::int){names})"
        " FROM generate_series(1, %(n)s)"
    )
    return connection.execute(query.encode(), {**given, "payload": payload, "n": n})


def run(connection: Connection, name: str, params: dict[str, Any]) -> Cursor:
    """Send a statement."""
    return connection.execute(statement(name), params, binary=True)


def locked(connection: Connection, name: str, params: dict[str, Any]) -> Cursor:
    """Send a statement under the dispatch lock."""
    connection.execute(statement("dispatch_lock"))
    return run(connection, name, params)


def _leases(found: list[Row] | None, token: int) -> list[Lease]:
    return [(UUID(each), token) for row in found or () for each in split_ids(row[0])]


def pairs(leases: Sequence[Lease]) -> dict[str, Any]:
    return {"ids": [lease[0] for lease in leases], "tokens": [lease[1] for lease in leases]}


_SETTLES = {True: "settle_delivered", False: "settle"}


def settling(ended: Sequence[Settlement]) -> dict[str, Any]:
    """The parameters of a settle."""
    return {
        "now": None,
        "ids": [s.id for s in ended],
        "tokens": [s.token for s in ended],
        "verdicts": [s.verdict for s in ended],
        "charged": [s.charged for s in ended],
        "reasons": [s.reason for s in ended],
        "delays_s": [s.delay_s for s in ended],
        "details": [s.detail for s in ended],
        "effects": [s.effects for s in ended],
    }

"""A database driven statement by statement, on an injected clock where a statement takes one."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from outbox.fronts import Front
from outbox.history import DeliveryState, Fact, FactName, fold
from outbox.lifecycle import State
from outbox.store import arrays
from outbox.store import connect as store_connect
from outbox.store.dispatch import ID_MAX, Claim, Expired, Leased, Routed
from outbox.store.statements import statement

Row = tuple[Any, ...]
Connection = psycopg.Connection[Row]
Lease = tuple[UUID, int]
Opened = TypeVar("Opened", bound=Connection)

LEASE_S = 30.0


def open_hot(url: str) -> Connection:
    """A connection with the session settings of the loops."""
    return made_hot(psycopg.connect(url, autocommit=True))


def made_hot(connection: Opened) -> Opened:
    """The same with a connection of whatever kind."""
    connection.execute(store_connect._SESSION)
    connection.prepare_threshold = 0
    return connection


class Engine:
    """One database. Every step may be given `now`; the default is the server's clock."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.connection = open_hot(url)
        self._tokens = itertools.count(1)

    def close(self) -> None:
        self.connection.close()

    # -- asking -------------------------------------------------------------------------------

    def rows(self, query: str, *values: Any) -> list[Row]:
        return self.connection.execute(query.encode(), values or None).fetchall()

    def run(self, query: str, *values: Any) -> None:
        self.connection.execute(query.encode(), values or None)

    def one(self, query: str, *values: Any) -> Any:
        [(value,)] = self.rows(query, *values)
        return value

    def now(self) -> datetime:
        value: datetime = self.one("SELECT clock_timestamp()")
        return value.astimezone(UTC)

    # -- configuring --------------------------------------------------------------------------

    def endpoint(self, org: str | None = "acme", **fields: Any) -> int:
        """A bare endpoint; `fields` are columns."""
        columns = {"org_id": org, "url": "http://127.0.0.1:9/x", **fields}
        return int(self._insert("endpoint", columns))

    def subscribe(
        self, patterns: Sequence[str] = ("*",), org: str | None = "acme", **fields: Any
    ) -> int:
        """A subscription; `endpoint_id` is made where not given. The past counts as active."""
        endpoint_id = fields.pop("endpoint_id", None) or self.endpoint(org)
        columns = {
            "kind": "webhook",
            "endpoint_id": endpoint_id,
            "lane": endpoint_id,
            "org_id": org,
            "all_orgs": org is None,
            "patterns": list(patterns),
            "retry": "5s,10s",
            "active_from": datetime(2000, 1, 1, tzinfo=UTC),
            **fields,
        }
        return int(self._insert("subscription", columns))

    def lane_of(self, subscription: int) -> int:
        return int(self.one("SELECT lane FROM outbox.subscription WHERE id = %s", subscription))

    def _insert(self, table: str, columns: dict[str, Any]) -> Any:
        names = ", ".join(columns)
        marks = ", ".join(["%s"] * len(columns))
        query = f"INSERT INTO outbox.{table} ({names}) VALUES ({marks}) RETURNING id"
        return self.one(query, *columns.values())

    def emit(self, n: int = 1, org: str | None = "acme", **options: Any) -> list[int]:
        """Emit `n` events; the payload is 1, 2, 3 ... unless given as JSON text."""
        given = {"type": "orders.paid", "org_id": org, **options}
        payload = "%(payload)s" if "payload" in given else "to_json(i)"
        names = "".join(f", {name} => %({name})s" for name in given if name != "payload")
        query = f"SELECT outbox.emit(payload => {payload}{names}) FROM generate_series(1, %(n)s) i"
        return [row[0] for row in self.connection.execute(query.encode(), {**given, "n": n})]

    # -- the relay ----------------------------------------------------------------------------

    def route(
        self,
        window: int = 0,
        *,
        claim: Claim | None = None,
        now: datetime | None = None,
        connection: Connection | None = None,
        oldest: Mapping[int, int] | None = None,
        fronts: Sequence[tuple[int, float]] = (),
        drawn: bool = False,
    ) -> tuple[Routed, int]:
        """Route; returns what was done and the token."""
        claim, token = claim or Claim(10_000), next(self._tokens)
        row = self._locked(
            "route",
            {
                "now": now,
                **asdict(claim),
                "orgs_skipped": list(claim.orgs_skipped),
                "window": window,
                "token": None if drawn else token,
                "lease_s": LEASE_S,
                "lanes": list(oldest or ()),
                "oldest": list((oldest or {}).values()),
                **arrays.columns(fronts, "front_lanes", "fronts"),
            },
            connection,
        )
        return Routed.of(row), token

    def leases(self, window: int = 10_000, **options: Any) -> list[Lease]:
        """Route and return the leases."""
        routed, token = self.route(window, **options)
        return [(UUID(delivery_id), token) for delivery_id in routed.ids]

    def lease_due(
        self,
        window: int = 10_000,
        *,
        now: datetime | None = None,
        places: Sequence[Front] | None = None,
        later_max: int | None = None,
        connection: Connection | None = None,
        oldest: Mapping[int, int] | None = None,
        drawn: bool = False,
    ) -> tuple[Leased, int]:
        """Lease at these places; where none are given, wherever something waits."""
        token = next(self._tokens)
        places = self.walk() if places is None else places
        row = self._locked(
            "lease_due",
            {
                "now": now,
                **arrays.columns(places, "due_lanes", "due_queues", "fronts"),
                "window": window,
                "later_max": window if later_max is None else later_max,
                "token": None if drawn else token,
                "lease_s": LEASE_S,
                "lanes": list(oldest or ()),
                "oldest": list((oldest or {}).values()),
            },
            connection,
        )
        return Leased.of(row), token

    def walk(self, beyond: int = 0, lanes_max: int = 1000) -> list[Front]:
        """Where something waits, and since when, in the lanes for workers."""
        query = (
            "SELECT lane, queue, extract(epoch FROM due_at)::float8"
            " FROM outbox.due_walk(%s, 9223372036854775807, %s)"
        )
        return [(row[0], row[1], row[2]) for row in self.rows(query, beyond, lanes_max)]

    def due(self, window: int = 10_000, **options: Any) -> list[Lease]:
        """Lease what is due and return the leases."""
        leased, token = self.lease_due(window, **options)
        return [(UUID(delivery_id), token) for delivery_id in leased.ids]

    def expire(
        self,
        now: datetime | None = None,
        *,
        rows_max: int = 1000,
        expiries_max: int = 3,
        since_s: float | None = None,
    ) -> Expired:
        params = {
            "now": now,
            "since_s": since_s,
            "rows_max": rows_max,
            "expiries_max": expiries_max,
        }
        return Expired(*self._row("expire_leases", params)[:3])

    def tend(self, now: datetime | None = None, rows_max: int = 1000) -> int:
        return int(self._locked("tend_due", {"now": now, "rows_max": rows_max})[0])

    def release(self, leases: Sequence[Lease]) -> None:
        for delivery_id, token in leases:
            params = {"token": token, "ids": [delivery_id]}
            self.connection.execute(statement("release"), params)

    # -- the worker ---------------------------------------------------------------------------

    def take(self, leases: Sequence[Lease], now: datetime | None = None) -> list[Row]:
        """Start leases; the rows that came back, as take.sql returns them."""
        return self._rows("take", {"now": now, **_pairs(leases)})

    def settle(
        self,
        leases: Sequence[Lease],
        verdict: str,
        *,
        charged: bool = True,
        reason: str = "x",
        delay_s: float | None = None,
        detail: str | None = None,
        now: datetime | None = None,
    ) -> set[UUID]:
        n = len(leases)
        if verdict == "plain":  # delivered, by the statement for those that bring about nothing
            more = {"reasons": [reason] * n, "details": [detail] * n}
            row = self._row("settle_delivered", {"now": now, **_pairs(leases), **more})
            ours = {lease[0] for lease in leases} if row[1] is None else set(row[1])
            assert len(ours) == row[0]
            return ours
        params = {
            "now": now,
            **_pairs(leases),
            "verdicts": [verdict] * n,
            "charged": [charged] * n,
            "reasons": [reason] * n,
            "delays_s": [delay_s] * n,
            "details": [detail] * n,
            "effects": [None] * n,
        }
        return {row[0] for row in self._rows("settle", params)}

    def extend(
        self, leases: Sequence[Lease], lease_s: float, now: datetime | None = None
    ) -> set[UUID]:
        params = {"now": now, **_pairs(leases), "lease_s": lease_s}
        return {row[0] for row in self._rows("extend", params)}

    # -- looking ------------------------------------------------------------------------------

    def states(self) -> dict[str, int]:
        """How many deliveries are in which state, dead letters included."""
        query = (
            "SELECT state, count(*) FROM (SELECT state FROM outbox.delivery"
            " UNION ALL SELECT 'dead' FROM outbox.dead_letter) x GROUP BY 1"
        )
        return {row[0]: row[1] for row in self.rows(query)}

    def delivery(self, delivery_id: UUID) -> dict[str, Any]:
        """A live delivery as it stands, or an empty dictionary."""
        with psycopg.ClientCursor(self.connection, row_factory=psycopg.rows.dict_row) as cursor:
            cursor.execute("SELECT * FROM outbox.delivery WHERE id = %s", [delivery_id])
            return cursor.fetchone() or {}

    def facts(self, delivery_id: UUID) -> list[Row]:
        """(fact, reason, charged, attempt) of a delivery's journal, its routing left out."""
        query = (
            "SELECT fact, reason, charged, attempt FROM outbox.journal"
            " WHERE delivery_id = %s ORDER BY at"
        )
        return self.rows(query, delivery_id)

    def routed(self, event_id: int) -> list[Any]:
        """What the one `routed` fact of an event lists."""
        query = "SELECT detail FROM outbox.journal WHERE fact = 'routed' AND event_id = %s"
        return self.one(query, event_id) or []

    def check(self) -> None:
        """I13: what the journal folds to is what the tables hold, for every delivery ever made."""
        held = {
            row[0]: row[1:]
            for row in self.rows(
                "SELECT id, CASE state WHEN 'leased' THEN 'scheduled' ELSE state END, attempts,"
                " budget, expiries, due_at FROM outbox.delivery UNION ALL"
                " SELECT id, 'dead', attempts, budget, expiries, NULL FROM outbox.dead_letter"
            )
        }
        folded = self.folded()
        assert held.keys() <= folded.keys()
        for delivery_id, state in folded.items():
            told = (state.state, state.attempts, state.budget, state.expiries, state.due_at)
            if delivery_id in held:
                assert held[delivery_id] == told
            else:
                assert state.state in {State.DELIVERED, State.CANCELLED, State.DISCARDED}

    def folded(self) -> dict[UUID, DeliveryState]:
        """The fold of the whole journal, by delivery."""
        facts: dict[UUID, list[Fact]] = {}
        for at, item, due_at in self.rows(
            "SELECT j.at, d.item, (d.item ->> 'due_at')::timestamptz FROM outbox.journal j,"
            " jsonb_array_elements(j.detail) AS d (item)"
            " WHERE j.fact = 'routed' AND j.detail IS NOT NULL"
        ):
            born = State.HELD if item["held"] else State.SCHEDULED
            delivery_id = UUID(item["delivery"])
            assert delivery_id not in facts, "routed twice"
            fact = Fact(FactName.ROUTED, at, delivery_id, due_at=due_at, state=born)
            facts[delivery_id] = [fact]
        for delivery_id, name, at, attempt, charged, budget, reason, due_at in self.rows(
            "SELECT delivery_id, fact, at, attempt, charged, budget, reason, due_at"
            " FROM outbox.journal WHERE delivery_id IS NOT NULL ORDER BY at"
        ):
            facts[delivery_id].append(
                Fact(FactName(name), at, delivery_id, attempt, charged, budget, reason, due_at)
            )
        states = {delivery_id: fold(told) for delivery_id, told in facts.items()}
        return {delivery_id: state for delivery_id, state in states.items() if state is not None}

    # -- sending ------------------------------------------------------------------------------

    def _locked(
        self, name: str, params: dict[str, Any], connection: Connection | None = None
    ) -> Row:
        used = connection or self.connection
        with used.transaction():
            used.execute(statement("dispatch_lock"))
            return self._row(name, params, used)

    def _row(self, name: str, params: dict[str, Any], connection: Connection | None = None) -> Row:
        [row] = self._rows(name, params, connection)
        return row

    def _rows(
        self, name: str, params: dict[str, Any], connection: Connection | None = None
    ) -> list[Row]:
        used = connection or self.connection
        return used.execute(statement(name), params, binary=True).fetchall()


def _pairs(leases: Sequence[Lease]) -> dict[str, Any]:
    return {"ids": [lease[0] for lease in leases], "tokens": [lease[1] for lease in leases]}


@contextmanager
def another(url: str) -> Iterator[Connection]:
    """A second hot connection."""
    with open_hot(url) as connection:
        yield connection


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


__all__ = ["ID_MAX", "LEASE_S", "Claim", "Connection", "Engine", "Lease", "another", "seconds"]

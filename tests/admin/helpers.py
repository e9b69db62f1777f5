"""A database with endpoints in it, driven step by step through the product's own statements."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from uuid import UUID

import psycopg

from outbox.history import DeliveryState, Fact, FactName, fold
from outbox.lifecycle import State
from outbox.secrets import KeyRing
from outbox.store.attempts import Attempts, Settlement
from outbox.store.connect import HotConnection, connect, connect_hot
from outbox.store.dispatch import Claim, Dispatch, Leased
from outbox.store.endpoints import AddedEndpoint, EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule

Connection = psycopg.Connection[tuple[Any, ...]]
Result = TypeVar("Result")

RING = KeyRing([bytes(range(32))])
URL = "https://hooks.example.com/in"


class Shop:
    """One database. `connection` is an operator's; relay and worker steps open their own."""

    def __init__(self, url: str, connection: Connection) -> None:
        self.url = url
        self.connection = connection
        self._tokens = itertools.count(1)

    def endpoint(self, org: str | None = "acme", **fields: Any) -> AddedEndpoint:
        rule = fields.pop("rule", Rule(("*",)))
        return add_endpoint(self.connection, EndpointSpec(URL, org, rule, **fields), RING)

    def emit(self, org: str = "acme", n: int = 1, **options: Any) -> list[int]:
        names = "".join(f", {name} => %({name})s" for name in options)
        query = (
            "SELECT outbox.emit('orders.paid', to_json(i), %(org)s"
            f"{names}) FROM generate_series(1, %(n)s) i"
        )
        return [row[0] for row in self.rows(query, org=org, n=n, **options)]

    def rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        return self.connection.execute(query.encode(), parameters or None).fetchall()

    def one(self, query: str, **parameters: Any) -> Any:
        [(value,)] = self.rows(query, **parameters)
        return value

    def hot(self, step: Callable[[HotConnection], Awaitable[Result]]) -> Result:
        """Run one step of a relay or a worker on a connection of its own."""

        async def run() -> Result:
            connection = await connect_hot(self.url, "test")
            try:
                return await step(connection)
            finally:
                await connection.raw.close()

        return asyncio.run(run())

    def route(self, window: int = 0) -> list[tuple[UUID, int]]:
        """Route everything pending; the leases handed out."""
        token = next(self._tokens)
        routed = self.hot(lambda c: Dispatch(c, 30).route(Claim(10_000), window, token))
        return [(UUID(delivery_id), token) for delivery_id in routed.ids]

    def lease(self, window: int = 1000) -> list[tuple[UUID, int]]:
        """Lease what is due."""
        token = next(self._tokens)

        async def lease_due(connection: HotConnection) -> Leased:
            dispatch = Dispatch(connection, 30)
            return await dispatch.lease_due(await dispatch.due(), window, token)

        leased = self.hot(lease_due)
        return [(UUID(delivery_id), token) for delivery_id in leased.ids]

    def take(self, leases: list[tuple[UUID, int]]) -> set[UUID]:
        keys = [(delivery_id.hex, token) for delivery_id, token in leases]
        return {taken.id for taken in self.hot(lambda c: Attempts(c).take(keys))}

    def settle(self, leases: list[tuple[UUID, int]], verdict: str, reason: str = "x") -> set[UUID]:
        return self.hot(lambda c: Attempts(c).settle(settlements(leases, verdict, reason)))

    def attempt(self, verdict: str, reason: str = "http_500") -> list[UUID]:
        """Route and lease what is there, take it, settle it; the ids."""
        leases = self.route(1000) + self.lease()
        assert self.take(leases) == {delivery_id for delivery_id, _ in leases}
        self.settle(leases, verdict, reason)
        return [delivery_id for delivery_id, _ in leases]

    def kill(self, n: int = 1, org: str = "acme", reason: str = "http_500") -> list[UUID]:
        """Dead letters of new events, in order of id."""
        self.emit(org, n)
        return sorted(self.attempt("dead", reason))

    def states(self) -> dict[str, int]:
        """How many deliveries are in which state, dead letters included."""
        return dict(
            self.rows(
                "SELECT state, count(*) FROM (SELECT state FROM outbox.delivery"
                " UNION ALL SELECT 'dead' FROM outbox.dead_letter) x GROUP BY 1"
            )
        )

    def facts(self, delivery_id: UUID) -> list[tuple[str, str | None]]:
        """Fact and reason of a delivery's journal, in order, its routing left out."""
        query = "SELECT fact, reason FROM outbox.journal WHERE delivery_id = %(id)s ORDER BY at"
        return [(row[0], row[1]) for row in self.rows(query, id=delivery_id)]

    def check(self) -> None:
        """I13: what the journal folds to is what the tables hold, for every delivery ever made."""
        folded = {state.delivery_id: state for state in self._folded()}
        live = {
            row[0]: row[1:]
            for row in self.rows(
                "SELECT id, CASE state WHEN 'leased' THEN 'scheduled' ELSE state END, attempts,"
                " budget, expiries, due_at FROM outbox.delivery UNION ALL"
                " SELECT id, 'dead', attempts, budget, expiries, NULL FROM outbox.dead_letter"
            )
        }
        for delivery_id, state in folded.items():
            told = (state.state, state.attempts, state.budget, state.expiries, state.due_at)
            if delivery_id in live:
                assert live[delivery_id] == told
            else:
                assert state.state in {State.DELIVERED, State.CANCELLED, State.DISCARDED}
        assert live.keys() <= folded.keys()

    def _folded(self) -> Iterator[DeliveryState]:
        for routed_at, item in self.rows(
            "SELECT at, jsonb_array_elements(detail) FROM outbox.journal WHERE fact = 'routed'"
            " AND detail IS NOT NULL"
        ):
            delivery_id = UUID(item["delivery"])
            state = State.HELD if item["held"] else State.SCHEDULED
            due_at = self.one("SELECT %(due)s::timestamptz", due=item["due_at"])
            facts = [Fact(FactName.ROUTED, routed_at, delivery_id, state=state, due_at=due_at)]
            facts += [
                Fact(
                    FactName(fact),
                    at,
                    delivery_id,
                    attempt=attempt or 0,
                    charged=charged,
                    budget=budget,
                    due_at=due,
                    **_carried(detail if fact == "carried" else {}),
                )
                for fact, at, attempt, charged, budget, due, detail in self.rows(
                    "SELECT fact, at, attempt, charged, budget, due_at, detail FROM outbox.journal"
                    " WHERE delivery_id = %(id)s ORDER BY at",
                    id=delivery_id,
                )
            ]
            folded = fold(facts)
            assert folded is not None
            yield folded


def _carried(detail: dict[str, Any]) -> dict[str, Any]:
    """What a `carried` fact says in its detail."""
    if not detail:
        return {}
    return {"state": State(detail["state"]), "expiries": detail["expiries"]}


def settlements(leases: list[tuple[UUID, int]], verdict: str, reason: str) -> list[Settlement]:
    charged = verdict != "release"
    delay_s = 3600.0 if verdict == "retry" else None
    return [
        Settlement(delivery_id, token, verdict, charged, reason, delay_s, None)
        for delivery_id, token in leases
    ]


@contextmanager
def shop_at(url: str) -> Iterator[Shop]:
    with connect(url, autocommit=True) as connection:
        yield Shop(url, connection)


class Behind:
    """Something that runs in a thread on a connection of its own, and is expected to wait."""

    def __init__(self, url: str, action: Callable[[Connection], object]) -> None:
        self.result: object = None
        self._error: BaseException | None = None
        self._started = threading.Event()
        self._pid = 0
        self._thread = threading.Thread(target=self._run, args=(url, action), daemon=True)
        self._thread.start()
        self._started.wait(30)

    def _run(self, url: str, action: Callable[[Connection], object]) -> None:
        try:
            with connect(url, autocommit=True) as connection:
                self._pid = connection.info.backend_pid
                self._started.set()
                self.result = action(connection)
        except BaseException as error:
            self._error = error
        finally:
            self._started.set()

    def until_it_waits(self, watcher: Connection) -> None:
        """Return when it waits for a lock."""
        blocked = "SELECT cardinality(pg_blocking_pids(%s)) > 0"
        while watcher.execute(blocked, [self._pid]).fetchone() != (True,):
            assert self._thread.is_alive(), "it did not wait"

    def join(self) -> Any:
        self._thread.join(60)
        if self._error is not None:
            raise self._error
        return self.result

"""A database with a delivery in every state that facts can lead to, made by the real statements."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from outbox.store.connect import connect
from outbox.store.dead import Selection, discard, redrive
from outbox.store.deliveries import align, cancel_deliveries
from outbox.store.rebuild import Report, verify
from outbox.store.rebuild_mend import Mended, apply
from outbox.store.statements import statement
from tests.engine.engine import Engine, Lease, seconds

SLICE = 7
"""So small that every test crosses the border of many slices."""

Rows = dict[str, list[tuple[Any, ...]]]


def as_daemon(url: str) -> str:
    """The same database with the rights of the daemon's role."""
    return f"{url}?options=-crole%3Doutbox_daemon"


def verified(url: str, *, rows_max: int = SLICE) -> Report:
    with connect(as_daemon(url), autocommit=True) as connection:
        return verify(connection, rows_max=rows_max)


def applied(url: str, *, rows_max: int = SLICE) -> Mended:
    with (
        connect(as_daemon(url), autocommit=True) as reader,
        connect(as_daemon(url), autocommit=True) as writer,
    ):
        return apply(reader, writer, rows_max=rows_max)


class Scene(Engine):
    """An engine with operators' steps; `rows` of the projections can be remembered and compared."""

    def operator(self) -> psycopg.Connection[Any]:
        return self.connection

    def attempt(
        self, verdict: str, leases: Sequence[Lease] | None = None, **options: Any
    ) -> list[UUID]:
        """Lease what is pending or due, take and settle it; the ids."""
        if leases is None:
            leases = self.leases(1000) + self.due()
        self.take(leases)
        self.settle(leases, verdict, **options)
        return [delivery_id for delivery_id, _ in leases]

    def move(self, subscription: int, state: str) -> None:
        """Pause, resume or remove a subscription, with what that means for its deliveries."""
        parameters = {"id": subscription, "org_id": None, "state": state}
        sources = [s for s in ("active", "paused", "disabled") if s != state]
        with self.connection.transaction():
            self.connection.execute(statement("config_lock"))
            self.connection.execute(
                statement("subscription_state"), {**parameters, "from_states": sources}
            )
        align(self.connection, self.lane_of(subscription))

    def advance(self, now: datetime | None = None) -> None:
        """Give ordered keys their turns until nobody waits for one."""
        while self.one("SELECT count(*) FROM outbox.order_signal"):
            params = {"now": now or self.now() + seconds(1), "since_s": None, "rows_max": 100}
            self._locked("order_advance", params)

    def projections(self) -> Rows:
        """Every row of the projections. Leases are no facts, `again` (and `queue`,
        made of it) is a hint: left out."""
        unlike = "- '{token,lease_until,started_at,again,queue}'::text[]"
        return {
            table: self.rows(f"SELECT to_jsonb(t) {unlike} FROM outbox.{table} t ORDER BY t.id")
            for table in ("delivery", "dead_letter", "pending")
        }

    def facts_digest(self) -> Any:
        """All facts, as one value."""
        return self.rows(
            "SELECT (SELECT md5(string_agg(j::text, '' ORDER BY j::text)) FROM outbox.journal j),"
            " (SELECT md5(string_agg(e::text, '' ORDER BY e::text)) FROM outbox.event e)"
        )

    def ids(self, condition: str) -> list[UUID]:
        """Live deliveries that meet a condition."""
        return [
            row[0]
            for row in self.rows(f"SELECT id FROM outbox.delivery WHERE {condition} ORDER BY id")
        ]


def furnish(scene: Scene) -> None:
    """Deliveries in every state, some through many facts."""
    lane = scene.endpoint(concurrency=1000)
    aged = timedelta(days=3)
    plain = scene.subscribe(["orders.paid"], endpoint_id=lane, max_age=aged)
    scene.subscribe(["never.*"], endpoint_id=lane)

    # Ended: delivered at once and after retries, cancelled, discarded.
    scene.emit(5)
    scene.attempt("delivered")
    scene.emit(3)
    scene.attempt("retry", delay_s=0)
    scene.attempt("delivered")
    scene.emit(2)
    scene.route()
    cancel_deliveries(scene.operator(), scene.ids("true"))
    scene.emit(2)
    given_up = scene.attempt("dead")
    discard(scene.operator(), Selection(ids=given_up), "not wanted")
    # Nobody wanted these.
    scene.emit(2, org="nobody")
    scene.emit(1, type="other.thing")
    scene.route()

    # Dead: at once, after a redrive, expired.
    scene.emit(2)
    scene.attempt("dead", reason="http_410", detail='{"status": 410}')
    scene.emit(2)
    again = scene.attempt("dead")
    redrive(scene.operator(), Selection(ids=again))
    scene.attempt("retry", delay_s=0)
    scene.attempt("dead", reason="http_500")
    soon = scene.now() + seconds(30)
    scene.emit(2, expires_at=soon)
    scene.route()
    scene.tend(soon + seconds(1))

    # Live: redriven, retried, expired once, held and released, waiting for long.
    scene.emit(2)
    redrive(scene.operator(), Selection(ids=scene.attempt("dead")))
    scene.emit(3)
    scene.attempt("retry", scene.leases(1000), delay_s=3600)
    scene.emit(2)
    scene.take(scene.leases(1000))
    scene.expire(scene.now() + seconds(31))
    scene.emit(2, deliver_at="2090-01-01", expires_at="2091-01-01")
    scene.route()
    scene.move(plain, "paused")
    scene.move(plain, "active")

    # Held, in all ways: before and while it is paused.
    held = scene.subscribe(["invoices.*"], max_age=aged)
    scene.emit(2, type="invoices.sent")
    scene.route()
    scene.move(held, "paused")
    scene.emit(2, type="invoices.sent")
    scene.route()

    # A removed subscription, whose deliveries nobody has tended yet.
    removed = scene.subscribe(["gone.*"])
    scene.emit(2, type="gone.away")
    scene.route()
    scene.run("UPDATE outbox.subscription SET state = 'removed' WHERE id = %s", removed)

    # Ordered by key: turns, a dead one that bars the others, one that had them parked.
    for mode in ("block", "park", "skip"):
        scene.subscribe([f"{mode}.*"], order_mode=mode)
        for key in ("a", "b"):
            scene.emit(3, type=f"{mode}.x", ordering_key=key)
        scene.route()
        first = [lease for lease in scene.due() if _is(scene, lease, f"{mode}.x")]
        scene.attempt("dead", first[:1], reason="http_500")
        scene.attempt("delivered", first[1:])
        scene.advance()

    # Leased, started or not; pending.
    scene.emit(3)
    scene.take(scene.leases(1000)[:1])
    scene.emit(3)


def _is(scene: Scene, lease: Lease, type_: str) -> bool:
    return bool(
        scene.one(
            "SELECT count(*) FROM outbox.delivery d JOIN outbox.event e ON e.id = d.event_id"
            " WHERE d.id = %s AND e.type = %s",
            lease[0],
            type_,
        )
    )

"""Past deliveries of every fate, and replays driven batch by batch."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from time import monotonic
from typing import Any
from uuid import UUID

from outbox.store.dead import Selection, discard
from outbox.store.deliveries import cancel_deliveries
from outbox.store.dispatch import Dispatch
from outbox.store.endpoints import pause_endpoint, remove_endpoint
from outbox.store.redaction import redact
from outbox.store.replay import Choice, create_replay, show_replay
from outbox.store.replay_counts import count_replay
from outbox.store.replaying import Batch, replay_once
from outbox.store.statements import statement
from tests.admin.helpers import Shop

ALL = Choice()


class Past(Shop):
    """A shop with a past."""

    def replay(self, choice: Choice = ALL, mode: str = "redeliver", **fields: Any) -> str:
        """Make a replay and carry it out; its id."""
        replay_id = self.make(choice, mode, **fields)
        self.carry_out(replay_id)
        return replay_id

    def make(self, choice: Choice = ALL, mode: str = "redeliver", **fields: Any) -> str:
        given = {"why": "a test", **fields}
        return str(create_replay(self.connection, choice, mode=mode, **given).replay["id"])

    def batch(self, replay_id: str, **options: Any) -> Batch:
        """One batch."""
        return self.hot(lambda c: replay_once(c, replay_id, **options))

    def carry_out(self, replay_id: str, **options: Any) -> None:
        """Batches until it does not run any more."""
        while self.batch(replay_id, **options).state == "running":
            pass

    def counts(self, replay_id: str) -> dict[str, int]:
        """Pairs by fate, as the replay tells them."""
        counts = dict(show_replay(self.connection, replay_id)["counts"])
        counts.pop("events", None)
        return counts

    def counted(
        self, choice: Choice = ALL, mode: str = "redeliver", judge_max: int = 5000
    ) -> dict[str, int]:
        """Pairs by fate, as a dry run tells them."""
        counts: Counter[str] = Counter()
        for group in count_replay(self.connection, choice, mode, judge_max=judge_max).groups:
            counts[group["fate"]] += group["n"]
        return dict(counts)

    def deliver(self, n: int = 1, org: str = "acme", **options: Any) -> list[UUID]:
        """Delivered ones of new events, in order of event."""
        events = self.emit(org, n, **options)
        done = set(self.attempt("delivered", "http_200"))
        return [delivery for delivery in self.ids_of(events) if delivery in done]

    def ids_of(self, events: list[int]) -> list[UUID]:
        """The routed deliveries of events."""
        rows = self.rows(
            "SELECT (i.value ->> 'delivery')::uuid FROM outbox.journal j,"
            " jsonb_array_elements(j.detail) i (value)"
            " WHERE j.fact = 'routed' AND j.event_id = ANY (%(events)s) ORDER BY j.event_id, i",
            events=events,
        )
        return [row[0] for row in rows]

    def live(self, delivery_id: UUID) -> dict[str, Any]:
        """A live delivery as it stands, or an empty dictionary."""
        rows = self.rows(
            "SELECT to_jsonb(d) FROM outbox.delivery d WHERE id = %(i)s", i=delivery_id
        )
        return dict(rows[0][0]) if rows else {}

    def facts_of(self, delivery_id: UUID) -> list[tuple[Any, ...]]:
        """Fact, reason, budget, attempt, charged."""
        return self.rows(
            "SELECT fact, reason, budget, attempt, charged FROM outbox.journal"
            " WHERE delivery_id = %(i)s ORDER BY at",
            i=delivery_id,
        )

    def journal(self) -> set[str]:
        """Every fact and every event there is, as text."""
        rows = self.rows(
            "SELECT to_jsonb(j)::text FROM outbox.journal j"
            " UNION ALL SELECT to_jsonb(e)::text FROM outbox.event e"
        )
        return {row[0] for row in rows}

    def now(self) -> datetime:
        moment: datetime = self.one("SELECT clock_timestamp()")
        return moment

    def every_fate(self) -> dict[str, UUID]:
        """A delivery of each fate, by the fate that a redelivery gives it. Those of organization
        b are held, those of c have no destination any more."""
        _, stopped, gone = (self.endpoint(org).id for org in ("acme", "b", "c"))
        pause_endpoint(self.connection, stopped)
        fates = {"redelivered": self.deliver()[0], "redriven": self.kill()[0]}
        fates["redacted"] = self.deliver(subject="persons/1")[0]
        persons = self.one("SELECT id FROM outbox.event WHERE subject = 'persons/1'")
        fates["removed"] = self.deliver(org="c")[0]
        remove_endpoint(self.connection, gone)
        redact(self.connection, [persons], "a test")
        fates["discarded"] = self.kill()[0]
        discard(self.connection, Selection([fates["discarded"]]), "a test")
        fates["cancelled"] = self.scheduled()
        cancel_deliveries(self.connection, [fates["cancelled"]], reason="a test")
        fates["expired"] = self.scheduled(expires_at="2001-01-01")
        assert self.hot(lambda c: Dispatch(c, 30).tend(100))
        fates["held"] = self.scheduled(org="b")
        self.emit()
        [(fates["leased"], _)] = self.route(1)
        fates["already_due"] = self.scheduled()
        fates["due_now"] = self.scheduled(deliver_at="2100-01-01")
        return fates

    def scheduled(self, org: str = "acme", **options: Any) -> UUID:
        """A routed delivery that nobody leased."""
        events = self.emit(org, **options)
        self.route()
        [delivery_id] = self.ids_of(events)
        return delivery_id

    def advance(self) -> None:
        """Give ordered keys their next turn, as a relay does."""
        parameters = {"now": None, "since_s": None, "rows_max": 100}
        with self.connection.transaction():
            self.connection.execute(statement("dispatch_lock"))
            self.connection.execute(statement("order_advance"), parameters)

    def until_waits(self) -> None:
        """Return when some session waits for a lock of another."""
        waits = (
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        until = monotonic() + 30
        while not self.one(waits):
            assert monotonic() < until, "nobody waits"

"""The model of the machine: what must be true of deliveries and of who performs them.

Owns the history of one example: what was taken, performed, settled, and what it left behind. Pure:
it is told what happened and raises AssertionError where that may not be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

from outbox.outcome import CHARGED, PERMANENT, Kind, Outcome
from outbox.store.attempts import Settlement
from outbox.testing.bench import Standing, Started
from outbox.work import Work


@dataclass(slots=True)
class _Record:
    """What is known of one delivery. `attempts` are the charged ones of the present budget, `ended`
    is delivered or dead, `performed` says that the processor has reported it as delivered, whether
    or not that could be settled; `work` and `effect` are those of that moment."""

    event_id: int
    attempts: int = 0
    ended: str | None = None
    performed: bool = False
    work: Work | None = None
    effect: object = None


class Ledger:
    """The deliveries of one example, under a policy of `attempts_max` attempts."""

    def __init__(self, attempts_max: int) -> None:
        self._attempts_max = attempts_max
        self._records: dict[UUID, _Record] = {}
        self._events: list[int] = []

    def __len__(self) -> int:
        return len(self._events)

    @property
    def dead(self) -> list[UUID]:
        """Dead letters, in order of their events."""
        return [i for i, record in self._in_order() if record.ended == "dead"]

    @property
    def ended(self) -> list[UUID]:
        """What is owed no more."""
        return [i for i, record in self._in_order() if record.ended is not None]

    @property
    def unended(self) -> list[UUID]:
        """What is still owed."""
        return [i for i, record in self._in_order() if record.ended is None]

    @property
    def delivered(self) -> dict[UUID, Work]:
        """What was delivered and settled, and how it was performed."""
        ended = ((i, r.work) for i, r in self._in_order() if r.ended == "delivered")
        return {i: work for i, work in ended if work is not None}

    def name(self, delivery_id: UUID) -> str:
        """A name that is the same whenever the example is played again."""
        return f"the delivery of event {self._events.index(self._records[delivery_id].event_id)}"

    # -- what happened --------------------------------------------------------------------------

    def emitted(self, event_id: int) -> None:
        """An event was committed; names count from 0."""
        self._events.append(event_id)

    def taken(self, started: Started) -> None:
        """A worker may try it: only what is owed, within the policy."""
        work = started.work
        record = self._records.setdefault(started.id, _Record(work.event_id))
        name = self.name(started.id)
        assert record.ended is None, f"{name} is tried although it is {record.ended}"
        assert work.attempt == record.attempts + 1, f"{name}: attempt {work.attempt} is miscounted"
        assert work.attempt <= self._attempts_max, f"{name}: more attempts than the policy has"

    def performed(
        self, started: Started, outcome: Outcome | None, effects: Mapping[UUID, object]
    ) -> None:
        """It was performed (cut off, where there is no outcome) and now shows these effects."""
        record = self._records[started.id]
        told = "cut off" if outcome is None else str(outcome.kind)
        self._nothing_done_changed(started.id, told, effects)
        if outcome is None:
            return
        assert not (record.performed and outcome.kind in PERMANENT), (
            f"not idempotent: {self.name(started.id)} had been delivered, and performed again it is"
            f" {told} ({outcome.reason}); a duplicate must be delivered too"
        )
        if outcome.kind is Kind.DELIVERED and not record.performed:
            record.performed, record.work = True, started.work
            record.effect = effects.get(started.id)

    def settled(self, started: Started, outcome: Outcome, settlement: Settlement) -> None:
        """An outcome was settled in time: what follows is what the rules say."""
        record = self._records[started.id]
        record.attempts += outcome.kind in CHARGED
        used_up = outcome.kind in CHARGED and record.attempts >= self._attempts_max
        if outcome.kind is Kind.DELIVERED:
            expected = "delivered"
        else:
            expected = "dead" if outcome.kind in PERMANENT or used_up else "retry"
        verdict = settlement.verdict
        assert verdict == expected, f"{self.name(started.id)} is {verdict}, not {expected}"
        record.ended = None if expected == "retry" else expected

    def redriven(self, delivery_id: UUID) -> None:
        """A dead letter has a fresh budget."""
        record = self._records[delivery_id]
        record.attempts, record.ended = 0, None

    # -- what is seen ---------------------------------------------------------------------------

    def compare(self, standing: Mapping[UUID, Standing]) -> None:
        """The tables hold what the history says; leases that ran out too often die unasked."""
        for delivery_id, one in standing.items():
            record = self._records.setdefault(delivery_id, _Record(one.event_id))
            name = self.name(delivery_id)
            if one.state == "dead" and record.ended is None and one.reason == "lease_expired":
                record.ended = "dead"
            assert one.attempts == record.attempts, (
                f"{name} has {one.attempts} attempts charged, not {record.attempts}"
            )
            assert (one.state == "dead") == (record.ended == "dead"), f"{name} is {one.state}"
            assert record.ended != "delivered", f"{name} is {one.state} although it was delivered"
        lost = [i for i in self.unended if i not in standing]
        assert not lost, f"{self.name(lost[0])} is lost"

    def compare_effects(
        self, disturbed: Mapping[UUID, object], undisturbed: Mapping[UUID, object]
    ) -> None:
        """What was delivered has left what one undisturbed attempt leaves."""
        for delivery_id in self.delivered:
            assert disturbed.get(delivery_id) == undisturbed.get(delivery_id), (
                f"{self.name(delivery_id)} was disturbed and left something else than one"
                f" undisturbed attempt leaves\nwith faults:    {disturbed.get(delivery_id)!r}"
                f"\nwithout faults: {undisturbed.get(delivery_id)!r}"
            )

    def _nothing_done_changed(
        self, performed: UUID, told: str, effects: Mapping[UUID, object]
    ) -> None:
        for delivery_id, record in self._records.items():
            if record.performed and effects.get(delivery_id) != record.effect:
                raise AssertionError(
                    f"not idempotent: {self.name(performed)} was performed ({told}), and the effect"
                    f" of {self.name(delivery_id)}, already delivered, changed"
                    f"\nbefore: {record.effect!r}\nafter:  {effects.get(delivery_id)!r}"
                )

    def _in_order(self) -> list[tuple[UUID, _Record]]:
        return sorted(self._records.items(), key=lambda item: item[1].event_id)

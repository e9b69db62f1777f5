"""Replays in the database: choose past events, make, show, pause and end a replay.

A replay is a row with a filter, a position and counts. Its batches move the position in the
transaction that changes the deliveries (`outbox/store/replaying.py`), so it goes on exactly where
a crash left it. Promises: the same id is one replay; facts of the past stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

import psycopg

from outbox.errors import NotFound, UsageError
from outbox.store.endpoints import show_endpoint
from outbox.store.statements import statement
from outbox.store.subscriptions import check_patterns, show_subscription

Connection = psycopg.Connection[tuple[Any, ...]]

MODES = ("redeliver", "re-emit", "backfill")
IDS_MAX = 1000
"""Ids that one replay names at most; more are chosen by a filter."""
RATE_MAX = 1_000_000.0
WHY_CHARS_MAX = 500
LIST_MAX = 1000
_ID_CHARS_MAX = 100
_DERIVED = {"delivery_events", "from"}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which past pairs of event and subscription: those that meet every condition given.

    `events` and `deliveries` are one condition: any of these. `missed` means only pairs that died;
    `ignore_expiry` takes what is past its expiry too, and then without one.
    """

    events: tuple[int, ...] = ()
    deliveries: tuple[UUID, ...] = ()
    patterns: tuple[str, ...] = ()
    subject: str | None = None
    org: str | None = None
    subscription_id: int | None = None
    endpoint_id: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    missed: bool = False
    ignore_expiry: bool = False

    def check(self, mode: str) -> None:
        """Raise UsageError unless this is a choice that the mode can follow."""
        if mode not in MODES:
            raise UsageError(f"modes are {', '.join(MODES)}")
        if len(self.events) + len(self.deliveries) > IDS_MAX:
            raise UsageError(f"a replay names at most {IDS_MAX} ids; choose the rest by a filter")
        if self.patterns:
            check_patterns(self.patterns)
        if self.missed and self.endpoint_id is None and self.subscription_id is None:
            raise UsageError("what was missed, by whom? Name an endpoint or a subscription")
        if None not in (self.since, self.until) and self.since >= self.until:  # type: ignore[operator]
            raise UsageError("the time range is empty: its start must lie before its end")
        if mode == "backfill":
            self._check_backfill()

    def _check_backfill(self) -> None:
        if self.subscription_id is None:
            raise UsageError("a backfill needs the subscription that gets the past events")
        if self.missed or self.deliveries or self.endpoint_id is not None:
            raise UsageError(
                "a backfill chooses events alone, for one subscription: leave deliveries,"
                " the endpoint and what was missed out"
            )

    def document(self) -> dict[str, Any]:
        """As JSON, without what was not asked for."""
        fields: dict[str, Any] = {
            "events": sorted(set(self.events)),
            "deliveries": sorted({str(delivery) for delivery in self.deliveries}),
            "patterns": list(self.patterns),
            "subject": self.subject,
            "subscription": self.subscription_id,
            "endpoint": self.endpoint_id,
            "since": self.since.isoformat() if self.since else None,
            "until": self.until.isoformat() if self.until else None,
            "missed": self.missed,
            "ignore_expiry": self.ignore_expiry,
        }
        return {name: value for name, value in fields.items() if value not in (None, [], False)}


@dataclass(frozen=True, slots=True)
class Plan:
    """A choice as the statements take it: `named` are the events of which every delivery counts,
    `events` all that are looked at (None: any)."""

    mode: str
    org: str | None
    patterns: list[str] | None
    subject: str | None
    subscription_id: int | None
    endpoint_id: int | None
    since: datetime | None
    until: datetime | None
    missed: bool
    ignore_expiry: bool
    named: list[int] | None
    deliveries: list[UUID] | None
    events: list[int] | None

    @classmethod
    def of(cls, mode: str, org: str | None, document: dict[str, Any]) -> Plan:
        """The plan of a replay's filter as it is stored."""
        moments = [document.get(name) for name in ("since", "until")]
        since, until = (datetime.fromisoformat(text) if text else None for text in moments)
        named, deliveries = document.get("events"), document.get("deliveries")
        events = sorted({*(named or ()), *document.get("delivery_events", ())})
        return cls(
            mode=mode,
            org=org,
            patterns=document.get("patterns"),
            subject=document.get("subject"),
            subscription_id=document.get("subscription"),
            endpoint_id=document.get("endpoint"),
            since=since,
            until=until,
            missed=document.get("missed", False),
            ignore_expiry=document.get("ignore_expiry", False),
            named=named,
            deliveries=[UUID(text) for text in deliveries] if deliveries else None,
            events=events if named or deliveries else None,
        )

    def look(self) -> dict[str, Any]:
        """Parameters of replay_look.sql that stay the same."""
        return {
            "mode": self.mode,
            "events": self.events,
            "patterns": self.patterns,
            "subject": self.subject,
            "org_id": self.org,
            "since": self.since,
            "until": self.until,
            "subscription_id": self.subscription_id,
            "endpoint_id": self.endpoint_id,
            "missed": self.missed,
        }

    def batch(self) -> dict[str, Any]:
        """Parameters of replay_batch.sql that stay the same."""
        return {
            "mode": self.mode,
            "org_id": self.org,
            "subscription_id": self.subscription_id,
            "endpoint_id": self.endpoint_id,
            "deliveries": self.deliveries,
            "named": self.named,
            "missed": self.missed,
            "ignore_expiry": self.ignore_expiry,
        }


@dataclass(frozen=True, slots=True)
class Made:
    """A replay as it stands, and whether this call made it."""

    replay: dict[str, Any]
    new: bool


def create_replay(
    connection: Connection,
    choice: Choice,
    *,
    why: str,
    mode: str = "redeliver",
    replay_id: str | None = None,
    rate_per_s: float = 1000.0,
    made_by: str | None = None,
) -> Made:
    """Make a replay; the daemon's background work carries it out. With an id that exists, that
    replay is returned as it stands. Raises UsageError if it differs from what is asked for."""
    if not 1 <= len(why) <= WHY_CHARS_MAX:
        raise UsageError(f"say why in 1 to {WHY_CHARS_MAX} characters")
    if not 0 < rate_per_s <= RATE_MAX:
        raise UsageError(f"the rate must be above 0 and at most {RATE_MAX:.0f} a second")
    document, position, ceiling = chosen(connection, choice, mode)
    document["from"] = position  # progress is told from here
    replay_id = uuid4().hex[:12] if replay_id is None else replay_id
    _check_id(replay_id)
    parameters = {
        "id": replay_id,
        "mode": mode,
        "org_id": choice.org,
        "filter": json.dumps(document),
        "made_by": made_by,
        "why": why,
        "rate_per_s": rate_per_s,
        "position": position,
        "ceiling": ceiling,
    }
    with connection.transaction():
        new = connection.execute(statement("replay_add"), parameters).fetchone() is not None
    replay = show_replay(connection, replay_id)
    same = (replay["mode"], replay["org"], _asked(replay["filter"]))
    if same != (mode, choice.org, _asked(document)):
        raise UsageError(
            f"the replay {replay_id} exists and was made with another filter;"
            f" see: outbox replay show {replay_id}"
        )
    return Made(replay, new)


def list_replays(
    connection: Connection, org: str | None = None, state: str | None = None
) -> list[dict[str, Any]]:
    """Replays, newest first."""
    parameters = {"id": None, "org_id": org, "state": state, "rows_max": LIST_MAX}
    return [row[0] for row in connection.execute(statement("replay_list"), parameters)]


def show_replay(connection: Connection, replay_id: str, org: str | None = None) -> dict[str, Any]:
    """One replay with its progress and counts. Raises NotFound."""
    parameters = {"id": replay_id, "org_id": org, "state": None, "rows_max": 1}
    row = connection.execute(statement("replay_list"), parameters).fetchone()
    if row is None:
        raise _unknown(replay_id)
    return dict(row[0])


def pause_replay(connection: Connection, replay_id: str, org: str | None = None) -> str:
    """Stop before the next batch; the state it is in now. Raises NotFound."""
    return _move(connection, replay_id, org, "paused", ("running",))


def resume_replay(connection: Connection, replay_id: str, org: str | None = None) -> str:
    """Go on where it was paused. Raises NotFound."""
    return _move(connection, replay_id, org, "running", ("paused",))


def abort_replay(connection: Connection, replay_id: str, org: str | None = None) -> str:
    """End it for good; what it did stays done. Raises NotFound."""
    return _move(connection, replay_id, org, "aborted", ("running", "paused"))


def _move(
    connection: Connection, replay_id: str, org: str | None, state: str, sources: Sequence[str]
) -> str:
    parameters = {"id": replay_id, "org_id": org, "state": state, "from_states": list(sources)}
    with connection.transaction():
        row = connection.execute(statement("replay_move"), parameters).fetchone()
    if row is None:
        raise _unknown(replay_id)
    if row[1] != state:
        raise UsageError(f"the replay {replay_id} is {row[0]} and cannot become {state}")
    return str(row[1])


def chosen(connection: Connection, choice: Choice, mode: str) -> tuple[dict[str, Any], int, int]:
    """The filter as it is stored, and its range of event ids. Raises UsageError, NotFound."""
    choice.check(mode)
    document = choice.document()
    if choice.subscription_id is not None:
        _check_subscription(connection, choice, mode)
    if choice.endpoint_id is not None:
        _check_owner(show_endpoint(connection, choice.endpoint_id, None), choice.org, "endpoint")
    if choice.deliveries:
        document["delivery_events"] = _events_of(connection, choice)
    plan = Plan.of(mode, choice.org, document)
    parameters = {"since": plan.since, "until": plan.until, "events": plan.events}
    row = connection.execute(statement("replay_bounds"), parameters).fetchone()
    assert row is not None
    return document, row[0], row[1]


def _check_subscription(connection: Connection, choice: Choice, mode: str) -> None:
    assert choice.subscription_id is not None
    found = show_subscription(connection, choice.subscription_id)
    _check_owner(found, choice.org, "subscription")
    if mode == "backfill" and found["state"] == "removed":
        raise UsageError(f"the subscription {choice.subscription_id} is removed")


def _check_owner(found: dict[str, Any], org: str | None, kind: str) -> None:
    # One that gets all organizations' events belongs to none and may still be named with one.
    if org is not None and not found["all_orgs"] and found["org"] != org:
        raise NotFound(
            f"there is no {kind} {found['id']} in organization {org}; see: outbox {kind}s list"
        )


def _events_of(connection: Connection, choice: Choice) -> list[int]:
    wanted = set(choice.deliveries)
    parameters = {"ids": list(wanted), "org_id": choice.org}
    found: dict[UUID, int] = dict(
        connection.execute(statement("replay_resolve"), parameters).fetchall()
    )
    missing = wanted - found.keys()
    if missing:
        raise NotFound(f"there is no delivery {min(missing)}; see: outbox deliveries list")
    return sorted(set(found.values()))


def _asked(document: dict[str, Any]) -> dict[str, Any]:
    """A stored filter without what was derived from it."""
    return {name: value for name, value in document.items() if name not in _DERIVED}


def _check_id(replay_id: str) -> None:
    good = replay_id.isascii() and all(c.isalnum() or c in "._:-" for c in replay_id)
    if not good or not 1 <= len(replay_id) <= _ID_CHARS_MAX:
        raise UsageError(
            f"a replay's id has 1 to {_ID_CHARS_MAX} letters, digits, dots, colons, _ and -"
        )


def _unknown(replay_id: str) -> NotFound:
    return NotFound(f"there is no replay {replay_id}; see: outbox replay list")

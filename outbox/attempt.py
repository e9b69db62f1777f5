"""Between the store's rows and a processor's words: what was taken becomes `Work`, what came of it
a `Settlement`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import orjson

from outbox.effects import HOPS_HEADER, Effects, Emission, hops_of
from outbox.outcome import Kind, Outcome
from outbox.pulse import Pulse
from outbox.store.attempts import Settlement, Taken
from outbox.verdict import INTERNAL_DELAY, RELEASED, Verdict, judge, policy_of
from outbox.work import Endpoint, Setup, Work


class Tried(Protocol):
    """What was leased and tried, of which a settlement is made."""

    @property
    def id(self) -> UUID: ...
    @property
    def token(self) -> int: ...
    @property
    def attempt(self) -> int: ...
    @property
    def retry(self) -> str: ...
    @property
    def age_left_s(self) -> float | None: ...
    @property
    def headers(self) -> str | None: ...


def work_of(taken: Taken, endpoint: Endpoint | None = None, setup: Setup | None = None) -> Work:
    """What a processor gets."""
    return Work(
        delivery_id=taken.id,
        event_id=taken.event_id,
        type=taken.type,
        occurred_at=taken.occurred_at,
        payload=taken.payload.encode(),
        attempt=taken.attempt,
        body_format=taken.body_format,
        endpoint=endpoint,
        org_id=taken.org_id,
        subject=taken.subject,
        headers=None if taken.headers is None else orjson.loads(taken.headers),
        generation=taken.generation or 0,
        original_id=taken.original_id,
        kind=taken.kind,
        setup=setup,
        pulse=None if setup is None else Pulse(),
    )


def settlement_of(taken: Tried, outcome: Outcome | None, jitter: Callable[[], float]) -> Settlement:
    """How an attempt ends; without an outcome it is given back."""
    verdict, detail, effects = RELEASED, None, None
    if outcome is not None:
        age_left = None if taken.age_left_s is None else timedelta(seconds=taken.age_left_s)
        verdict = judge(outcome, policy_of(taken.retry), taken.attempt, age_left, jitter)
        detail = _detail(outcome, verdict)
        if outcome.effects is not None:
            effects = _effects(outcome.effects, taken, outcome.kind is Kind.DELIVERED)
    delay_s = None if verdict.delay is None else verdict.delay.total_seconds()
    name, charged, reason = verdict.name, verdict.charged, verdict.reason
    return Settlement(taken.id, taken.token, name, charged, reason, delay_s, detail, effects)


def without_effects(settlement: Settlement) -> Settlement:
    """How an attempt ends whose effects PostgreSQL refuses: our fault, to be looked into."""
    delay_s = INTERNAL_DELAY.total_seconds()
    return settlement._replace(
        verdict="retry",
        charged=False,
        reason="effects_refused",
        delay_s=delay_s,
        detail=None,
        effects=None,
    )


def fitting(ended: list[Settlement], bytes_max: int) -> list[Settlement]:
    """The first of these, one at least, whose effects have at most `bytes_max` characters."""
    size = 0
    for n, one in enumerate(ended):
        size += len(one.effects or "")
        if n and size > bytes_max:
            return ended[:n]
    return ended


def _effects(effects: Effects, taken: Tried, delivered: bool) -> str | None:
    """Events follow from what was delivered alone; rows say what became of any attempt."""
    if not delivered:
        return orjson.dumps(effects.rows, default=str).decode() if effects.rows else None
    headers = None if taken.headers is None else orjson.loads(taken.headers)
    hops = str(hops_of(headers) + 1)
    emit = [_emission(one, hops) for one in effects.emit]
    return orjson.dumps({**effects.rows, "emit": emit}, default=str).decode()


def _emission(one: Emission, hops: str) -> dict[str, Any]:
    return {
        "type": one.type,
        "payload": orjson.Fragment(one.payload),
        "subject": one.subject,
        "headers": {**one.headers, HOPS_HEADER: hops},
        "ordering_key": one.ordering_key,
        "deliver_at": _moment(one.deliver_at),
        "expires_at": _moment(one.expires_at),
        "dedupe_key": one.dedupe_key,
        "dedupe_for_s": None if one.dedupe_for is None else one.dedupe_for.total_seconds(),
    }


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def _plain(value: object) -> object:
    """What orjson does not know: a mapping that is no dict, else its text."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def _detail(outcome: Outcome, verdict: Verdict) -> str | None:
    detail = outcome.detail
    if verdict.ended_by is not None:
        detail = {**detail, "ended_by": verdict.ended_by}
    if not detail:
        return None
    try:
        return orjson.dumps(detail, default=_plain).decode()
    except (orjson.JSONEncodeError, ValueError):
        # Failing to keep a response must never cost a delivery.
        return '{"error": "the detail could not be kept"}'

"""Tells the story of one delivery: its facts in order, each in a sentence, with times and gaps.

Pure: takes what `delivery_show.sql` returns. The words are for people; programs read `--json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

QUOTE_CHARS_MAX = 300


@dataclass(frozen=True, slots=True)
class Line:
    """What happened at one time. `notes` are quotes that belong to it: answers, errors."""

    at: datetime
    text: str
    notes: tuple[str, ...] = ()


def tell(delivery: Mapping[str, Any]) -> Iterator[Line]:
    """The story, from the event to the last fact, then what it waits for."""
    facts = delivery["journal"]
    if delivery["event_at"] is not None:
        yield Line(_time(delivery["event_at"]), f"event {delivery['event']} written")
    if facts and facts[0]["fact"] not in {"routed", "replayed"}:
        yield Line(_time(facts[0]["at"]), "what happened before is past retention")
    held = False
    for fact in facts:
        yield Line(_time(fact["at"]), _SAID[fact["fact"]](fact, delivery, held), _notes(fact))
        held = _held_after(fact, held)


def waits_for(delivery: Mapping[str, Any]) -> str | None:
    """What a live delivery waits for; None for one that has ended."""
    if delivery["state"] == "scheduled":
        return f"scheduled: due at {delivery['due_at']}"
    if delivery["state"] == "held":
        return f"held: {_HELD.get(delivery['held_reason'], delivery['held_reason'])}"
    if delivery["state"] == "leased":
        if delivery["started_at"] is None:
            return f"leased until {delivery['lease_until']}: on its way to a worker"
        return f"being tried since {delivery['started_at']}{_progress(delivery)}"
    return None


def _progress(delivery: Mapping[str, Any]) -> str:
    told = delivery.get("progress") or {}
    percent = "" if told.get("percent") is None else f"{told['percent']:g} %"
    said = " ".join(part for part in (percent, told.get("note")) if part)
    return f": {said}" if said else ""


def gap(seconds: float) -> str:
    """A time between two facts, short: `+35 ms`, `+5.2 s`, `+3 min`, `+2.5 h`, `+9 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"+{seconds / size:.1f}".removesuffix(".0") + f" {unit}"
    return f"+{round(max(0.0, seconds) * 1000)} ms"


def lines(delivery: Mapping[str, Any]) -> Iterator[str]:
    """The story as text, one line a fact, quotes below."""
    before: datetime | None = None
    for line in tell(delivery):
        passed = "" if before is None else gap((line.at - before).total_seconds())
        before = line.at
        yield _clean(f"{line.at.isoformat(timespec='milliseconds')}  {passed:>9}  {line.text}")
        for note in line.notes:
            yield _clean(f"{'':42}{note}")
    waiting = waits_for(delivery)
    if waiting is not None:
        yield _clean(f"{'':42}now {waiting}")


def _clean(text: str) -> str:
    # One fact is one line, whatever a receiver answered.
    return "".join(c if c.isprintable() else " " for c in text).rstrip()


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _held_after(fact: Mapping[str, Any], held: bool) -> bool:
    if fact["fact"] == "routed":
        return fact["reason"] is not None
    if fact["fact"] == "carried":
        return (fact.get("detail") or {}).get("state") == "held"
    return fact["fact"] == "held" or (held and fact["fact"] not in {"released", "redriven"})


def _notes(fact: Mapping[str, Any]) -> tuple[str, ...]:
    detail = fact.get("detail")
    if not isinstance(detail, dict) or fact["fact"] == "carried":
        return ()
    quotes = []
    for name, word in (("error", "error"), ("response", "answer")):
        text = detail.get(name)
        if text:
            cut = str(text)[:QUOTE_CHARS_MAX]
            quotes.append(f"{word}: {cut}{'...' if len(str(text)) > len(cut) else ''}")
    return tuple(quotes)


# -- the words ------------------------------------------------------------------------------------

Fact = Mapping[str, Any]
_HELD = {
    "paused": "its destination is paused",
    "disabled": "its destination is disabled",
    "order": "an earlier one of its key comes first",
    "adopted": "the database was adopted; see: outbox adopt --release",
}
_ENDED_BY = {"attempts": "; its attempts are used up", "max_age": "; its maximum age comes first"}


def _routed(fact: Fact, delivery: Fact, _held: bool) -> str:
    text = f"routed by subscription {delivery['subscription']}, revision {fact.get('revision')}"
    if fact["reason"] is not None:
        return f"{text}; held: {_HELD.get(fact['reason'], fact['reason'])}"
    due = fact["due_at"]
    return f"{text}; due at {due}" if due and _time(due) > _time(fact["at"]) else text


def _attempt_failed(fact: Fact, _delivery: Fact, _held: bool) -> str:
    after = gap((_time(fact["due_at"]) - _time(fact["at"])).total_seconds())[1:]
    return f"{_attempt(fact)} failed: {fact['reason']}{_took(fact)}; the next in {after}"


def _delivered(fact: Fact, _delivery: Fact, _held: bool) -> str:
    return f"{_attempt(fact)} delivered: {fact['reason']}{_took(fact)}"


def _dead(fact: Fact, _delivery: Fact, _held: bool) -> str:
    if fact["reason"] == "lease_expired":
        return "dead: every worker that began it died or hung"
    if fact["reason"] == "parked":
        return "dead: parked behind a dead letter of its key"
    ended_by = _ENDED_BY.get(str((fact.get("detail") or {}).get("ended_by")), "")
    return f"{_attempt(fact)} failed: {fact['reason']}{_took(fact)}; dead{ended_by}"


def _lease_expired(fact: Fact, _delivery: Fact, _held: bool) -> str:
    if fact["charged"]:
        return "the worker that began it died or hung: its lease ran out"
    return "its lease ran out before a worker began: the message was lost or late"


def _redriven(fact: Fact, _delivery: Fact, _held: bool) -> str:
    return f"redriven: attempts of budget {fact['budget']} begin"


def _replayed(fact: Fact, _delivery: Fact, _held: bool) -> str:
    generation = (fact.get("detail") or {}).get("generation")
    again = f" as generation {generation}" if generation else ""
    return f"replayed{again} by {fact['reason']}: due at {fact['due_at'] or fact['at']}"


def _released(fact: Fact, _delivery: Fact, held: bool) -> str:
    if held:
        return f"released: {fact['reason']}"
    return f"given back unfinished ({fact['reason']}): due at once"


_CALLED_OFF = {
    "duplicate": "an earlier event had used its key",
    "debounced": "a later event of its key came",
}


def _cancelled(fact: Fact, _delivery: Fact, _held: bool) -> str:
    return f"cancelled: {_CALLED_OFF.get(fact['reason'], fact['reason'])}"


def _rescheduled(fact: Fact, _delivery: Fact, _held: bool) -> str:
    return f"rescheduled: due at {fact['due_at']}"


def _held(fact: Fact, _delivery: Fact, _held_before: bool) -> str:
    return f"held: {_HELD.get(fact['reason'], fact['reason'])}"


def _redacted(fact: Fact, _delivery: Fact, _held_before: bool) -> str:
    by = (fact.get("detail") or {}).get("by")
    return f"contents erased by {by}: {fact['reason']}"


def _plain(word: str) -> Callable[[Fact, Fact, bool], str]:
    return lambda fact, _delivery, _held: f"{word}: {fact['reason']}"


def _attempt(fact: Fact) -> str:
    if not fact["charged"]:
        return "an attempt that is not charged"
    budget = f" of budget {fact['budget']}" if (fact["budget"] or 1) > 1 else ""
    return f"attempt {fact['attempt']}{budget}"


def _took(fact: Fact) -> str:
    took = (fact.get("detail") or {}).get("duration_ms")
    return "" if took is None else f" in {took} ms"


_SAID: Mapping[str, Callable[[Fact, Fact, bool], str]] = {
    "routed": _routed,
    "attempt_failed": _attempt_failed,
    "delivered": _delivered,
    "dead": _dead,
    "lease_expired": _lease_expired,
    "redriven": _redriven,
    "replayed": _replayed,
    "cancelled": _cancelled,
    "expired": lambda _fact, _delivery, _held: "dead: it expired before it was delivered",
    "discarded": _plain("given up"),
    "held": _held,
    "released": _released,
    "carried": lambda _fact, _delivery, _held: "carried to a newer slot of the log",
    "redacted": _redacted,
    "rescheduled": _rescheduled,
}

"""What a transaction that is held open costs: throughput and latency with it against without.

Webhooks are offered at a steady rate for some time, and again for as long while the transaction is
open. The rate is 800 a second, or half of what this machine reached just before where that is less.
When it ends, the backlog must be gone soon. `without` comes first in every pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from outbox.bench import books, disk
from outbox.bench.deliveries import JOBS, ORG, WRITE_JOBS, add_receiver, receive, set_up
from outbox.bench.feed import Feed, Stretch
from outbox.bench.rates import medians
from outbox.bench.report import Found, Goal, percentile, spread
from outbox.bench.rig import Rig
from outbox.errors import LossDetected
from outbox.store.connect import connect
from outbox.store.endpoints import Connection

PER_S = 800.0
SHARE = 0.5
"""Of the peak, where the machine cannot do `PER_S`: so that it is not the machine's limit that the
two are compared at."""
THROUGHPUT_LEAST = 0.9
GONE_S_MAX = 60.0
LATE_S_MAX = 1.0
"""How soon an event must be delivered after its transaction committed late."""

_EMIT = """
SELECT outbox.emit('bench.late', json_build_object('record', json_build_object('id', 0)), %(org)s)
"""
_DELIVERED = """
SELECT count(*) FROM outbox.journal
WHERE event_id > %(mark)s AND fact = 'delivered'
  AND at BETWEEN to_timestamp(%(begin)s) AND to_timestamp(%(end)s)
"""
_LATE = """
SELECT extract(epoch FROM at)::float8 FROM outbox.journal
WHERE event_id = %(id)s AND fact = 'delivered'
"""

Hold = Callable[[Connection], int | None]


def snapshot(connection: Connection) -> None:
    """A snapshot that is held: every row that dies from now on stays."""
    connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    connection.execute("SELECT count(*) FROM outbox.subscription")


def writer(connection: Connection) -> int:
    """A writer with an xid that has emitted an event; its id."""
    row = connection.execute(_EMIT.encode(), {"org": ORG}).fetchone()
    assert row is not None
    return int(row[0])


@dataclass(frozen=True, slots=True)
class Half:
    """One of a pair: deliveries a second while events were offered, milliseconds at the 99th
    percentile, seconds until the backlog was gone, by part the microseconds of processor time that
    an event took, milliseconds of each write to the disk meanwhile; for a writer, how late its
    event came."""

    per_s: float
    p50_ms: float
    p99_ms: float
    gone_s: float
    cpu_us: Mapping[str, float]
    disk_ms: list[float]
    late_s: float | None


def held(rig: Rig, _goal: Goal, hold: Hold) -> Found:
    """The value is the p99 with the transaction open against the p99 without, a median of pairs."""
    port, receiver, tally = receive(rig)
    set_up(rig, JOBS)
    add_receiver(rig, port)
    rig.start_outbox()
    feed = Feed(rig, WRITE_JOBS)
    events = int(rig.choose(10_000, 2_000, rig.asked.events))
    runs = int(rig.choose(1, 1, rig.asked.runs))
    seconds = rig.choose(600.0, 20.0, rig.asked.seconds)
    feed.warm(min(events, 300))
    peak = feed.drain(events).rate
    rate = min(PER_S, SHARE * peak)
    pairs = [(_half(rig, feed, rate, seconds), _half(rig, feed, rate, seconds, hold))
             for _ in range(runs)]  # fmt: skip
    late = sum(one.late_s is not None for pair in pairs for one in pair)
    p99 = spread([it.p99_ms / without.p99_ms for without, it in pairs], 3)
    throughput = spread([it.per_s / without.per_s for without, it in pairs], 3)
    gone_s = max(it.gone_s for _, it in pairs)
    late_s = max((it.late_s for _, it in pairs if it.late_s is not None), default=None)
    holds = {
        "throughput": throughput["median"] >= THROUGHPUT_LEAST,
        "backlog_gone": gone_s <= GONE_S_MAX,
        "late_event": late_s is None or late_s <= LATE_S_MAX,
    }
    counts = feed.balance(None if tally is None else lambda: _less(tally(), late))
    detail = {
        "ratio": p99,
        "throughput_ratio": {**throughput, "goal": THROUGHPUT_LEAST, "met": holds["throughput"]},
        "without": _told([without for without, _ in pairs]),
        "held": _told([it for _, it in pairs]),
        "backlog_gone_s": {"max": gone_s, "goal": GONE_S_MAX, "met": holds["backlog_gone"]},
        "counts": counts | {"late": late},
    }
    if late_s is not None:
        detail["late_event_s"] = {"max": late_s, "goal": LATE_S_MAX, "met": holds["late_event"]}
    conditions = {
        "offered_per_s": round(rate, 1),
        "peak_per_s": round(peak, 1),
        "events": events,
        "payload_bytes": 930,
        "batch": "what is due every 20 ms",
        "runs": runs,
        "duration_s": {"without": seconds, "held": seconds},
        "processes": {"relay": 1, "worker": 1, "receiver": receiver},
    }
    return Found(float(p99["median"]), all(holds.values()), conditions, detail)


def _less(told: Mapping[str, int], late: int) -> dict[str, Any]:
    """The receiver's counts without the events of the writers."""
    return {name: count - late for name, count in told.items()}


def _told(halves: list[Half]) -> dict[str, Any]:
    return {
        "delivered_per_s": round(median(one.per_s for one in halves), 1),
        "p50_ms": round(median(one.p50_ms for one in halves), 1),
        "p99_ms": round(median(one.p99_ms for one in halves), 1),
        "cpu_us_each": medians([one.cpu_us for one in halves]),
        "disk_ms": disk.told([wait for one in halves for wait in one.disk_ms]),
    }


def _half(rig: Rig, feed: Feed, rate: float, seconds: float, hold: Hold | None = None) -> Half:
    """Offer for so long, while the transaction is open, if there is one."""
    folder = rig.folder if rig.postgres else None
    with disk.disk_waits(folder) as waits, _held(rig, hold) as (late, commit):
        since = books.mark(rig.url)
        # The event of the writer has its id already, and is none of those that are offered.
        since = replace(since, event=max(since.event, late or 0))
        before = rig.used()
        stretch = feed.offer(rate, seconds, since)
        after, released_at = rig.used(), books.server_time(rig.url)
        commit()
        rig.wait_until_settled()
    counts = books.read_counts(rig.url, since)
    counts.balance(stretch.events)
    waits_ms = books.read_waits_ms(rig.url, since)
    return Half(
        _delivered(rig, stretch) / stretch.took_s,
        percentile(waits_ms, 0.5),
        percentile(waits_ms, 0.99),
        round(max(0.0, counts.ended_at - released_at), 2),
        {name: (after[name] - before[name]) / stretch.events * 1e6 for name in before},
        waits,
        None if late is None else _late_s(rig, late, released_at),
    )


@contextmanager
def _held(rig: Rig, hold: Hold | None) -> Iterator[tuple[int | None, Callable[[], None]]]:
    """A transaction that stays open until what is given is called: the id of its event."""
    if hold is None:
        yield None, lambda: None
        return
    with connect(rig.url) as connection:
        late = hold(connection)
        yield late, connection.commit


def _delivered(rig: Rig, stretch: Stretch) -> int:
    params = {"mark": stretch.since.event, "begin": stretch.began_at, "end": stretch.ended_at}
    with connect(rig.url, autocommit=True) as connection:
        row = connection.execute(_DELIVERED, params).fetchone()
    assert row is not None
    return int(row[0])


def _late_s(rig: Rig, event: int, committed_at: float) -> float:
    with connect(rig.url, autocommit=True) as connection:
        row = connection.execute(_LATE, {"id": event}).fetchone()
    if row is None:
        raise LossDetected("the event of the writer that was held open was not delivered")
    return round(max(0.0, float(row[0]) - committed_at), 3)

"""How long a fresh event takes while another organization's backlog drains at full speed.

The backlog is committed in one transaction; from then on single events of an organization with an
endpoint of its own are committed beside it. Those count that were committed before the last of the
backlog was settled. Each organization has its receiver, so that it is not the receiver's queue
that is measured.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from outbox.bench import books
from outbox.bench.deliveries import JOBS, WRITE_JOBS, add_receiver, receive, set_up
from outbox.bench.feed import Feed
from outbox.bench.program import Program
from outbox.bench.report import Found, Goal, percentile, spread
from outbox.bench.rig import Rig
from outbox.errors import LossDetected, OutboxError
from outbox.store.connect import connect

FRESH_ORG = "zeta"
FRESH_PER_S = 20.0
LOOK_S = 0.5
_WRITE_FRESH = b"""
INSERT INTO bench.job VALUES (%(id)s, %(org)s, rpad(%(id)s::text, 800, 'x'))
"""
_SENT = """
SELECT j.delivery_id::text, (e.payload -> 'record' ->> 'id')::bigint,
       CASE WHEN current_setting('track_commit_timestamp')::boolean
            THEN extract(epoch FROM pg_xact_commit_timestamp(e.xmin))::float8 END
FROM outbox.event e JOIN outbox.journal j ON j.event_id = e.id AND j.fact = 'delivered'
WHERE e.id > %(mark)s AND e.org_id = %(org)s
"""
_ENDED = """
SELECT extract(epoch FROM max(j.at))::float8 FROM outbox.journal j
WHERE j.event_id > %(mark)s AND j.fact = 'delivered' AND j.org_id IS DISTINCT FROM %(org)s
"""
_WAITING = """
SELECT EXISTS (SELECT FROM outbox.pending WHERE id = %(last)s)
    OR EXISTS (SELECT FROM outbox.delivery WHERE org_id IS DISTINCT FROM %(org)s)
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One backlog and what came beside it."""

    waits_ms: list[float]
    per_s: float
    written: int


def latency_backlog(rig: Rig, goal: Goal) -> Found:
    """Commit to receiver beside a backlog; the value is the median of the runs' p99."""
    port, receiver, tally = receive(rig)
    told = rig.start("receiver-fresh", "outbox.bench.receiver")
    set_up(rig, JOBS)
    add_receiver(rig, port)
    add_receiver(rig, int(told.ask()["port"]), FRESH_ORG)
    rig.start_outbox()
    backlog = int(rig.choose(1_000_000, 20_000, rig.asked.events))
    runs = int(rig.choose(1, 1, rig.asked.runs))
    seconds = rig.choose(600.0, 60.0, rig.asked.seconds)
    feed = Feed(rig, WRITE_JOBS)
    feed.warm(min(backlog, 300))
    measured = [_run(rig, feed, told, backlog, seconds) for _ in range(runs)]
    p50 = spread([percentile(one.waits_ms, 0.5) for one in measured], 2)
    p99 = spread([percentile(one.waits_ms, 0.99) for one in measured], 2)
    detail = {
        "p50_ms": p50,
        "p99_ms": {**p99, "goal": goal.number, "met": p99["median"] <= goal.number},
        "max_ms": round(max(max(one.waits_ms) for one in measured), 1),
        "samples": sum(len(one.waits_ms) for one in measured),
        "backlog_per_s": spread([one.per_s for one in measured]),
        "counts": feed.balance(tally) | {"written_fresh": sum(one.written for one in measured)},
    }
    conditions = {
        "events": backlog,
        "fresh_per_s": FRESH_PER_S,
        "payload_bytes": 930,
        "batch": {"backlog": backlog, "fresh": 1},
        "from": "commit timestamp" if rig.postgres else "commit timestamp, or before the INSERT",
        "runs": runs,
        "duration_s": {"fresh_at_most": seconds},
        "processes": {
            "relay": 1,
            "worker": 1,
            "receiver": receiver,
            "receiver-fresh": "own, one process",
        },
    }
    return Found(float(p99["median"]), True, conditions, detail)


def _run(rig: Rig, feed: Feed, told: Program, backlog: int, seconds: float) -> Run:
    since = books.mark(rig.url)
    before = told.ask({})
    feed.write(backlog)
    began_at = books.server_time(rig.url)
    sent_at = _write_beside(rig, books.mark(rig.url).event, seconds)
    rig.wait_until_settled()
    books.read_counts(rig.url, since).balance(backlog + len(sent_at))
    params = {"mark": since.event, "org": FRESH_ORG}
    with connect(rig.url, autocommit=True) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(_SENT, params).fetchall()
        ended = connection.execute(_ENDED, params).fetchone()
    assert ended is not None
    now = told.ask({"times": True})
    if now["received"] - before["received"] != len(sent_at):
        raise LossDetected(
            f"{len(sent_at)} fresh events were delivered, the receiver saw"
            f" {now['received'] - before['received']}"
        )
    begun = [(key, sent_at[row] if at is None else at) for key, row, at in rows]
    waits_ms = [(now["times"][key] - at) * 1000 for key, at in begun if at <= ended[0]]
    if not waits_ms:
        raise OutboxError("the backlog was gone before a fresh event came; ask for more --events")
    return Run(waits_ms, backlog / max(ended[0] - began_at, 1e-3), len(sent_at))


def _write_beside(rig: Rig, last: int, seconds: float) -> dict[int, float]:
    """Commit single events until the backlog, whose newest event is `last`, is gone; by row the
    unix time before it was sent."""
    sent_at: dict[int, float] = {}
    began_at, looked_at = time.monotonic(), time.monotonic()
    waiting = {"last": last, "org": FRESH_ORG}
    with connect(rig.url, autocommit=True) as connection:
        while (now := time.monotonic()) - began_at < seconds:
            row = -last - len(sent_at)  # the rows of the backlog are numbered upwards
            sent_at[row] = time.time()
            connection.execute(_WRITE_FRESH, {"id": row, "org": FRESH_ORG})
            if now - looked_at >= LOOK_S:
                looked_at = now
                rig.check()
                found = connection.execute(_WAITING.encode(), waiting).fetchone()
                if found == (False,):
                    break
            time.sleep(max(0.0, began_at + len(sent_at) / FRESH_PER_S - time.monotonic()))
    return sent_at

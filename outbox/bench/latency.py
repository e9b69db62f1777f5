"""How long from a commit to the receiver, while next to nothing else happens.

One row at a time is inserted and committed by one client, a hundred a second. The time is taken
from the commit's timestamp in the server (where it keeps none, from before the INSERT was sent, by
the same clock) until the receiver has the whole request.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from outbox.bench import books
from outbox.bench.deliveries import JOBS, WRITE_JOBS, add_receiver, set_up
from outbox.bench.report import Found, Goal, percentile, spread
from outbox.bench.rig import Rig
from outbox.errors import LossDetected
from outbox.store.connect import connect

PER_S = 100.0
WARM_UP_S = 2.0
_SENT = """
SELECT j.delivery_id::text, (e.payload -> 'record' ->> 'id')::bigint,
       CASE WHEN current_setting('track_commit_timestamp')::boolean
            THEN extract(epoch FROM pg_xact_commit_timestamp(e.xmin))::float8 END
FROM outbox.event e JOIN outbox.journal j ON j.event_id = e.id AND j.fact = 'delivered'
WHERE e.id > %(mark)s
"""


@dataclass(slots=True)
class Writer:
    """The one client. `sent_at` is by row the unix time before its INSERT was sent."""

    rig: Rig
    written: int = 0

    def run(self, seconds: float) -> dict[int, float]:
        """Insert row by row for so long."""
        sent_at: dict[int, float] = {}
        began_at, count = time.monotonic(), max(1, int(seconds * PER_S))
        with connect(self.rig.url, autocommit=True) as connection:
            for n in range(count):
                time.sleep(max(0.0, began_at + n / PER_S - time.monotonic()))
                self.written += 1
                sent_at[self.written] = time.time()
                params = {"first": self.written, "last": self.written}
                connection.execute(WRITE_JOBS.encode(), params)
                if n % 100 == 0:
                    self.rig.check()
        return sent_at


def latency(rig: Rig, goal: Goal, p50_ms: float) -> Found:
    """Commit to receiver; the value is the median of the runs' p99."""
    receiver = rig.start("receiver", "outbox.bench.receiver")
    port = int(receiver.ask()["port"])
    set_up(rig, JOBS)
    add_receiver(rig, port)
    rig.start_outbox()
    runs = int(rig.choose(3, 1, rig.asked.runs))
    seconds = rig.choose(15.0, 5.0, rig.asked.seconds)
    writer = Writer(rig)
    writer.run(min(WARM_UP_S, seconds))
    rig.wait_until_settled()
    measured = [_run(rig, writer, seconds) for _ in range(runs)]
    told = receiver.ask({"times": True})
    if told["received"] != writer.written:
        raise LossDetected(f"{writer.written} were delivered, the receiver saw {told['received']}")
    waits_ms = [[(told["times"][key] - at) * 1000 for key, at in one.items()] for one in measured]
    p50 = spread([percentile(one, 0.5) for one in waits_ms], 2)
    p99 = spread([percentile(one, 0.99) for one in waits_ms], 2)
    detail = {
        "p50_ms": {**p50, "goal": p50_ms, "met": p50["median"] <= p50_ms},
        "p99_ms": {**p99, "goal": goal.number, "met": p99["median"] <= goal.number},
        "max_ms": round(max(max(one) for one in waits_ms), 1),
        "counts": {
            "written": writer.written,
            "received": told["received"],
            "duplicates": told["requests"] - told["received"],
        },
    }
    conditions = {
        "offered_per_s": PER_S,
        "payload_bytes": 930,
        "batch": 1,
        "from": "commit timestamp" if rig.postgres else "commit timestamp, or before the INSERT",
        "runs": runs,
        "duration_s": seconds,
        "processes": {"relay": 1, "worker": _workers(rig), "receiver": "own, one process"},
    }
    return Found(float(p99["median"]), bool(detail["p50_ms"]["met"]), conditions, detail)


def _workers(rig: Rig) -> int | str:
    return "inside the relay" if rig.settings.in_memory else 1


def _run(rig: Rig, writer: Writer, seconds: float) -> dict[str, float]:
    """One run: by `webhook-id` the unix time of the commit."""
    since = books.mark(rig.url)
    sent_at = writer.run(seconds)
    rig.wait_until_settled()
    books.read_counts(rig.url, since).balance(len(sent_at))
    with connect(rig.url, autocommit=True) as connection:
        rows: list[tuple[Any, ...]] = connection.execute(_SENT, {"mark": since.event}).fetchall()
    return {key: sent_at[row] if at is None else at for key, row, at in rows}

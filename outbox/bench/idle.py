"""What a daemon and a worker cost while nothing happens: processor time and statements.

Statements are counted in the server's log, by the names that our connections give; so only where
PostgreSQL is embedded.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from outbox.bench.deliveries import JOBS, WRITE_JOBS, add_receiver, set_up
from outbox.bench.report import Found, Goal
from outbox.bench.rig import Rig
from outbox.errors import OutboxError
from outbox.store.connect import connect

SETTLE_S = 3.0
STATEMENTS_PER_S = 5.0


def idle(rig: Rig, _goal: Goal) -> Found:
    """Nothing, after one delivery that proves that all is up."""
    receiver = rig.start("receiver", "outbox.bench.receiver")
    port = int(receiver.ask()["port"])
    set_up(rig, JOBS)
    add_receiver(rig, port)
    if rig.postgres is not None:
        with connect(rig.url, autocommit=True) as connection:
            # Sessions that begin from now on tell every statement.
            connection.execute("ALTER DATABASE bench SET log_min_duration_statement = 0")
    rig.start_outbox()
    with connect(rig.url, autocommit=True) as connection:
        connection.execute(WRITE_JOBS.encode(), {"first": 1, "last": 1})
    rig.wait_until_settled()
    seconds = rig.choose(30.0, 10.0, rig.asked.seconds)
    rig.pause(min(SETTLE_S, seconds))
    before, log_before = rig.used(), _log(rig)
    rig.pause(seconds)
    after, log_after = rig.used(), _log(rig)
    percent = {
        name: round((after[name] - before[name]) / seconds * 100, 2)
        for name in before
        if name != "receiver"
    }
    if "relay" not in percent:
        raise OutboxError("the processor time of processes is read from /proc, which is not here")
    detail: dict[str, Any] = {"cpu_percent": percent}
    holds = True
    if rig.postgres is not None:
        counted = _statements(log_after[len(log_before) :])
        per_s = {name: round(count / seconds, 2) for name, count in counted.items()}
        daemon = round(sum(v for name, v in per_s.items() if name != "outbox worker"), 2)
        holds = daemon < STATEMENTS_PER_S
        detail["statements_per_s"] = {
            "daemon": daemon,
            "goal": STATEMENTS_PER_S,
            "met": holds,
            "by_connection": per_s,
        }
    conditions = {
        "payload_bytes": 0,
        "batch": 0,
        "runs": 1,
        "duration_s": seconds,
        "processes": {"relay": 1, "worker": 1},
    }
    return Found(percent["relay"], holds, conditions, detail)


def _log(rig: Rig) -> str:
    return rig.postgres.log() if rig.postgres is not None else ""


def _statements(log: str) -> Counter[str]:
    """How many statements each connection's name has run."""
    lines = (line.partition("|") for line in log.splitlines())
    return Counter(
        name
        for name, _, text in lines
        # A prepared statement also tells of its parse and bind, which are no statements.
        if " execute " in text[:80] or " statement: " in text[:80]
    )

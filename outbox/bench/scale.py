"""Whether more processes make it faster, and never slower: 1, 2, 4 and 8 relays and workers.

Of each that many processes, on one machine, one endpoint. The value is the lowest rate of several
against the rate of one. Where one step left cores unused, the next one must be faster.
"""

from __future__ import annotations

from itertools import pairwise
from statistics import median
from time import sleep
from typing import Any

from outbox.bench.deliveries import JOBS, WRITE_JOBS, add_receiver, receive, set_up
from outbox.bench.feed import Drain, Feed
from outbox.bench.report import Found, Goal, machine, spread
from outbox.bench.rig import LOOK_S, Rig
from outbox.store.connect import connect

PROCESSES = (1, 2, 4, 8)
USED_SHARE = 0.8
"""From this share of the cores on they count as used: the machine itself needs some."""
_NODES = "SELECT kind, count(*) FROM outbox.node GROUP BY kind"


def scale_out(rig: Rig, _goal: Goal) -> Found:
    """Drains, with ever more processes."""
    port, receiver, tally = receive(rig)
    set_up(rig, JOBS)
    add_receiver(rig, port)
    events = int(rig.choose(20_000, 3_000, rig.asked.events))
    runs = int(rig.choose(3, 1, rig.asked.runs))
    feed = Feed(rig, WRITE_JOBS)
    drains: dict[int, list[Drain]] = {}
    for number in PROCESSES:
        _grow(rig, number)
        feed.warm(min(events, 300))
        drains[number] = [feed.drain(events) for _ in range(runs)]
    counts = feed.balance(tally)
    rates = {number: [one.rate for one in of] for number, of in drains.items()}
    used = {number: median(_cores_used(one) for one in of) for number, of in drains.items()}
    one = median(rates[1])
    ratios = {number: median(of) / one for number, of in rates.items()}
    cores = int(machine()["cores"])
    slower = falls(ratios, used, cores) if rig.postgres is not None else []
    detail = {
        "rate_per_s": {f"of_{number}": spread(of) for number, of in rates.items()},
        "cores_used": {f"of_{number}": round(of, 2) for number, of in used.items()},
        "rising_until_cores_are_used": {"met": not slower, "falls_at": slower},
        "counts": counts,
    }
    conditions = {
        "events": events,
        "payload_bytes": 930,
        "batch": {"written_at_once": events},
        "runs": runs,
        "duration_s": {"drains": round(sum(d.took_s for of in drains.values() for d in of), 1)},
        "processes": {"relay": list(PROCESSES), "worker": list(PROCESSES), "receiver": receiver},
    }
    lowest = min(ratio for number, ratio in ratios.items() if number > 1)
    return Found(round(lowest, 3), not slower, conditions, detail)


def falls(ratios: dict[int, float], used: dict[int, float], cores: int) -> list[int]:
    """The numbers of processes that were no faster than fewer, although those left cores unused."""
    steps = pairwise(PROCESSES)
    return [
        more
        for fewer, more in steps
        if used[fewer] < USED_SHARE * cores and ratios[more] <= ratios[fewer]
    ]


def _cores_used(drain: Drain) -> float:
    return sum(drain.cpu_us.values()) * drain.rate / 1e6


def _grow(rig: Rig, to: int) -> None:
    """Start relays and workers until there are so many, and wait until all of them work."""
    for kind, command in (("relay", "run"), ("worker", "worker")):
        for number in range(1, to + 1):
            if f"{kind}-{number}" not in rig.programs:
                rig.start(f"{kind}-{number}", "outbox.bench.leash", "outbox", command)
    with connect(rig.url, autocommit=True) as connection:
        found: dict[str, Any] = {}
        while found != {"relay": to, "worker": to}:
            rig.check()
            sleep(LOOK_S)
            found = dict(connection.execute(_NODES).fetchall())

"""What can be measured: the names, the goals, how long each takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from outbox.bench import backlog, capture, deliveries, endurance, fresh, held, idle, latency, scale
from outbox.bench.report import Found, Goal, Result, machine
from outbox.bench.rig import Asked, Rig, Specify, open_rig
from outbox.errors import NotFound

CORES = 4
"""The goals are for so many cores, with everything on one machine."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """One thing to measure. `about_s` and `about_s_quick` say how long it takes on a machine that
    reaches the goal; ten times as long, and it is given up. `broker`: does it need one?"""

    name: str
    about: str
    goal: Goal
    run: Callable[[Rig, Goal], Found]
    about_s: int
    about_s_quick: int
    broker: bool = True

    def limit_s(self, asked: Asked) -> float:
        """When it is given up."""
        about_s = self.about_s_quick if asked.quick else self.about_s
        return 10.0 * (about_s + 2 * (asked.seconds or 0.0)) + 120.0


def _webhooks(workers: int) -> Callable[[Rig, Goal], Found]:
    return lambda rig, goal: deliveries.webhooks(rig, goal, workers)


SCENARIOS = (
    Scenario(
        "webhooks-1",
        "signed webhooks of 1 kB, one relay and one worker process",
        Goal(9_400, "webhooks/s"),
        _webhooks(1),
        about_s=40,
        about_s_quick=15,
    ),
    Scenario(
        "webhooks-4",
        "the same with four worker processes",
        Goal(17_500, "webhooks/s"),
        _webhooks(4),
        about_s=40,
        about_s_quick=15,
    ),
    Scenario(
        "noop-1",
        "a processor that does nothing, one worker process",
        Goal(15_000, "deliveries/s"),
        deliveries.noop,
        about_s=40,
        about_s_quick=15,
    ),
    Scenario(
        "latency",
        "p99 from commit to receiver at 100 events a second, through Redis",
        Goal(15, "ms", at_least=False),
        lambda rig, goal: latency.latency(rig, goal, p50_ms=5.0),
        about_s=60,
        about_s_quick=15,
    ),
    Scenario(
        "latency-memory",
        "the same in one process, without a broker",
        Goal(10, "ms", at_least=False),
        lambda rig, goal: latency.latency(rig, goal, p50_ms=3.5),
        about_s=60,
        about_s_quick=15,
        broker=False,
    ),
    Scenario(
        "latency-backlog",
        "p99 from commit to receiver beside another organization's backlog of 1,000,000",
        Goal(250, "ms", at_least=False),
        fresh.latency_backlog,
        about_s=300,
        about_s_quick=25,
    ),
    Scenario(
        "backlog",
        "p99 of a claim and of a lease in a backlog of 10,000,000 against one of 10,000",
        Goal(2, "of the p99 in a small backlog", at_least=False),
        backlog.backlog,
        about_s=900,
        about_s_quick=30,
        broker=False,
    ),
    Scenario(
        "held-snapshot",
        "p99 at 800 a second while somebody holds a snapshot against the p99 without",
        Goal(1.1, "of the p99 without", at_least=False),
        lambda rig, goal: held.held(rig, goal, held.snapshot),
        about_s=1230,
        about_s_quick=60,
    ),
    Scenario(
        "held-writer",
        "the same while a writer that has emitted an event does not commit",
        Goal(1.1, "of the p99 without", at_least=False),
        lambda rig, goal: held.held(rig, goal, held.writer),
        about_s=1230,
        about_s_quick=60,
    ),
    Scenario(
        "sustained",
        "p99 at 60 % of the peak for ten minutes, without growth of memory and tables",
        Goal(250, "ms", at_least=False),
        endurance.sustained,
        about_s=640,
        about_s_quick=35,
    ),
    Scenario(
        "scale-out",
        "the lowest rate of 2, 4 and 8 relays and workers against that of one of each",
        Goal(1, "of the rate with one"),
        scale.scale_out,
        about_s=90,
        about_s_quick=35,
    ),
    Scenario(
        "idle",
        "processor time of a daemon that has nothing to do, in percent of a core",
        Goal(1, "% of a core", at_least=False),
        idle.idle,
        about_s=45,
        about_s_quick=15,
    ),
    Scenario(
        "capture-commit",
        "commits a second of one-row inserts by 16 clients, with capture against without",
        Goal(0.75, "of the rate without capture"),
        capture.commits,
        about_s=70,
        about_s_quick=15,
        broker=False,
    ),
    Scenario(
        "capture-bulk",
        "rows a second of 1,000-row inserts by one client, with capture against without",
        Goal(0.30, "of the rate without capture"),
        capture.bulk,
        about_s=70,
        about_s_quick=15,
        broker=False,
    ),
    Scenario(
        "broadcast",
        "broadcasts as rows of realtime.messages, the daemon alone",
        Goal(20_000, "messages/s"),
        deliveries.broadcast,
        about_s=40,
        about_s_quick=15,
        broker=False,
    ),
    Scenario(
        "mail",
        "e-mail of two parts, one worker process, a server that takes all at once",
        Goal(1_000, "messages/s"),
        deliveries.mail,
        about_s=45,
        about_s_quick=15,
    ),
    Scenario(
        "pdf",
        "one-page invoices rendered and stored, one worker process with its children",
        Goal(120, "documents/s"),
        deliveries.pdf,
        about_s=60,
        about_s_quick=25,
    ),
)


def find_scenario(name: str) -> Scenario:
    """The scenario of a name. Raises NotFound."""
    for scenario in SCENARIOS:
        if scenario.name == name:
            return scenario
    known = ", ".join(one.name for one in SCENARIOS)
    raise NotFound(f"there is no scenario {name!r}; there are {known}")


def run_scenario(scenario: Scenario, asked: Asked, specify: Specify, version: str) -> Result:
    """Measure one. Raises OutboxError with one line where it cannot be."""
    conditions: dict[str, Any] = {
        "form": "full" if asked.full else "quick" if asked.quick else "as asked",
        "machine": machine(),
        "goal_is_for_cores": CORES,
        "outbox": version,
    }
    limit_s = scenario.limit_s(asked)
    with open_rig(asked, specify, broker=scenario.broker, limit_s=limit_s) as rig:
        conditions |= rig.conditions()
        found = scenario.run(rig, scenario.goal)
    return Result(scenario.name, scenario.goal, found, conditions)

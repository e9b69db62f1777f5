"""One job of the full form: a scene, one kind, so many faults; run in a process of its own.

python -m tests.chaos.jobs SEED FAULTS RATE NAME
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from signal import SIGINT, default_int_handler, signal

from tests.chaos.kinds import KINDS
from tests.chaos.points import STEPS, die_at
from tests.chaos.scene import Count, Scene, scene
from tests.chaos.together import FAULTS_A_STRIKE, strike

TOGETHER = "all together"
FOR_EVER = "wire to PostgreSQL: half-open for ever, new connections work"
POINT_JOBS = {
    f"{shown}: SIGKILL {when} each of its {len(STEPS[role])} steps": (role, when)
    for role, shown in (("run", "daemon"), ("worker", "worker"))
    for when in ("before", "after")
}
JOBS = [*KINDS, *POINT_JOBS, TOGETHER]

Inject = Callable[[Scene], tuple[int, int]]
"""Injects; returns how many faults, and how much was in flight at them."""


def injections(name: str, faults: int) -> list[Inject]:
    """The steps of a job."""
    if name == TOGETHER:
        return [strike] * (faults // FAULTS_A_STRIKE)
    if name in POINT_JOBS:
        role, when = POINT_JOBS[name]
        return [_death(role, when, step) for step in STEPS[role]]
    return [lambda scene: (1, KINDS[name](scene))] * faults


def _death(role: str, when: str, step: str) -> Inject:
    return lambda scene: (1, die_at(scene, role, when, step))


def run_job(name: str, seed: str, faults: int, rate: float) -> Count:
    """Run one job under a load of so many events a second. Raises ChaosFailure."""
    with scene(f"{seed}/{name}", rate=rate) as running:
        running.recovered()
        for inject in injections(name, faults):
            done, in_flight = inject(running)
            running.count.add(done, in_flight, kills="SIGKILL" in name)
            running.count.recoveries_s.append(round(running.recovered(), 3))
            running.alive()
        return running.finish()


if __name__ == "__main__":
    signal(SIGINT, default_int_handler)  # a shell's background job would ignore it
    seed, faults, rate, name = sys.argv[1:]
    json.dump(asdict(run_job(name, seed, int(faults), float(rate))), sys.stdout)

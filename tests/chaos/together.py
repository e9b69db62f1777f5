"""Kinds at the same time: some go on in the background while others strike."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.chaos.kinds import KINDS
from tests.chaos.points import POINTS, die_at
from tests.chaos.scene import Scene

FAULTS_A_STRIKE = 5
BACKGROUND = [
    "wire to PostgreSQL: 50-300 ms more each way",
    "wire to Redis: 50-300 ms more each way",
    "wire to Redis: half-open, then alive again",
    *(name for name in KINDS if name.startswith("receiver:")),
]
STRIKING = [
    "worker: SIGKILL",
    "daemon: SIGKILL",
    "Redis: FLUSHALL",
    "Redis: killed and started empty",
    "PostgreSQL: immediate crash and restart",
    "PostgreSQL: every backend terminated",
    "wires: every connection cut",
    "worker: SIGSTOP longer than a lease, SIGCONT",
    "daemon: SIGSTOP longer than a lease, SIGCONT",
]
QUICK = [
    (role, when, step)
    for role, when, step in POINTS
    if step in {"tick", "route", "send", "receive", "take", "request", "settle_delivered"}
]


def strike(scene: Scene) -> tuple[int, int]:
    """One kind in the background, three and a death at a point meanwhile; returns how many faults
    that were and the bound: whoever is hit twice can have had other work in flight each time."""
    behind = scene.random.choice(BACKGROUND)
    ahead = scene.random.sample(STRIKING, 3)
    with ThreadPoolExecutor(1) as pool:
        going_on = pool.submit(KINDS[behind], scene)
        for name in ahead:
            KINDS[name](scene)
        die_at(scene, *scene.random.choice(QUICK))
        going_on.result()
    scene.over()
    return FAULTS_A_STRIKE, FAULTS_A_STRIKE * scene.permits

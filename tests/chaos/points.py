"""Every named step of daemon and worker, and what makes a process pass it.

A process with a fault point is started beside the others and must die there. `STEPS` holds every
statement that the loops and the background work send, and the steps outside the database;
a test compares it with the code, so that a new statement cannot stay outside of the matrix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from signal import SIGCONT, SIGKILL, SIGSTOP
from time import monotonic, sleep

from outbox.faults import VARIABLE
from outbox.secrets import KeyRing
from outbox.store.connect import connect
from outbox.store.dead import Selection, redrive
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.replay import Choice, create_replay
from outbox.store.subscriptions import KindSpec, Rule, add_kind, list_subscriptions
from tests.chaos.load import EMIT, ORGS, PAPERS
from tests.chaos.papers import CAST, MAIL, REFUSED
from tests.chaos.proxy import proxy_to
from tests.chaos.scene import READY, ChaosFailure, Scene
from tests.system.town import Process

DEATH_S_MAX = 180.0
TRIES = 3
"""A process that is told to end may do so before it comes to its point."""
SLOW_FILTER = "exists($.a[*] ? (@ == $.b[*]))"
REPLAYS = "SELECT count(*) FROM outbox.replay WHERE state = 'running'"
CHECK = f"""
    ALTER TABLE realtime.messages ADD CHECK (payload #>> '{{record,mark}}' <> '{REFUSED}')
"""
FAST_FILTER = '$.mark == "fast"'

Provoke = Callable[[Scene, Process], int]
"""Makes the process pass its point; returns what else was in flight at faults on the way."""


def _nothing(_scene: Scene, _process: Process) -> int:
    return 0


def _dead(process: Process) -> bool:
    return process.popen.poll() is not None


@contextmanager
def _alone(scene: Scene, process: Process) -> Iterator[None]:
    """From when it is ready, the process is the only daemon that is not stopped."""
    scene.wait(lambda: process.count(READY["run"]) > 0 or _dead(process), DEATH_S_MAX)
    others = [other for role, other in scene.running if role == "run"]
    for other in others:
        other.popen.send_signal(SIGSTOP)
    try:
        yield
    finally:
        for other in others:
            other.popen.send_signal(SIGCONT)


def _kill_a_worker(scene: Scene, process: Process) -> int:
    """Its started leases run out."""
    in_flight = 0
    with _alone(scene, process):
        while not _dead(process) and not scene.late():
            in_flight += scene.kill(scene.pick("worker"))
            scene.start("worker")
            scene.wait(lambda: _dead(process), scene.lease_s * 2)
    return in_flight


def _lose_redis(scene: Scene, process: Process) -> int:
    """What could not be handed over is released."""
    with _alone(scene, process):
        while not _dead(process) and not scene.late():
            scene.redis.crash()
            scene.wait(lambda: _dead(process), 0.3)
            scene.redis.start()
            scene.wait(lambda: _dead(process), 0.7)
    return 0


def _slow_filter(scene: Scene, process: Process) -> int:
    """A filter that takes too long; its subscription is disabled, and what it may match is held.
    The one beside it is tried in time."""
    numbers = list(range(3000))
    payload = json.dumps({"mark": "slow", "a": numbers, "b": [n + 10_000 for n in numbers]})
    with _alone(scene, process):
        while not _dead(process) and not scene.late():
            for text in (SLOW_FILTER, FAST_FILTER):
                _add_endpoint(scene, "slow", Rule(("*",), filter=text))
            scene.query(EMIT, "orders.slow", payload, "slow")
            scene.wait(lambda: _dead(process), 5)
    return 0


def _endpoint_gone(scene: Scene, process: Process) -> int:
    """A receiver that answers 410; its endpoint is disabled, and what it is owed is held."""
    while not _dead(process) and not scene.late():
        _add_endpoint(scene, "gone", Rule(("*",)))
        for _ in range(4):
            scene.query(EMIT, "orders.gone", '{"mark": "gone"}', "gone")
        scene.wait(lambda: _dead(process), 1)
    return 0


def _end_while_blocked(scene: Scene, process: Process) -> int:
    """A worker that is cut off from PostgreSQL fills up; when it is told to end, what waits in
    front of it is given back."""
    scene.wait(lambda: process.count("worker.settled") > 0, 20)
    scene.own_wire.freeze()
    sleep(scene.lease_s)
    process.terminate()
    sleep(1)
    scene.own_wire.thaw()
    return 0


def _replayed(scene: Scene, process: Process) -> int:
    """Somebody has what was delivered lately sent again, under new keys."""
    choice = Choice(org=ORGS[0], since=datetime.now(UTC) - timedelta(seconds=2))
    with _alone(scene, process):
        while not _dead(process) and not scene.late():
            with connect(scene.url, autocommit=True) as connection:
                create_replay(connection, choice, why="a fault", mode="re-emit")
            scene.wait(lambda: _dead(process), 3)
    scene.wait(lambda: not scene.query(REPLAYS)[0][0], DEATH_S_MAX)
    return 0


def _told_to_end(scene: Scene, process: Process) -> int:
    scene.wait(lambda: process.count(READY["run"]) > 0 or _dead(process), DEATH_S_MAX)
    process.terminate()
    return 0


def _tick(scene: Scene, process: Process) -> int:
    """A schedule whose tick has come, again and again."""
    scene.query(
        "INSERT INTO outbox.schedule (name, cron, timezone, type, org_id, missed, next_at) VALUES"
        " ('chaos', '* * * * *', 'UTC', 'chaos.tick', 'jobs', 'one', clock_timestamp())"
        " ON CONFLICT (name) DO NOTHING RETURNING name"
    )
    with _alone(scene, process):
        while not _dead(process) and not scene.late():
            scene.query("UPDATE outbox.schedule SET next_at = clock_timestamp() RETURNING name")
            scene.wait(lambda: _dead(process), 1)
    return 0


def _perform(scene: Scene, process: Process) -> int:
    """Jobs of the user's own: looked at while they last, and what they emit is written with their
    settle. Their subscription is made once."""
    spec = KindSpec("processor", {}, "job.chaos", concurrency=1000)
    with connect(scene.url, autocommit=True) as connection:
        if not any(row["kind"] == spec.processor for row in list_subscriptions(connection, "jobs")):
            add_kind(connection, spec, Rule(("orders.job",)), "jobs")
    while not _dead(process) and not scene.late():
        for _ in range(8):
            scene.query(EMIT, "orders.job", '{"mark": "job"}', "jobs")
        scene.wait(lambda: _dead(process), 1)
    return 0


def _paper(scene: Scene, process: Process) -> int:
    """More documents and e-mails than usual."""
    scene.wait(lambda: process.count(READY["worker"]) > 0 or _dead(process), DEATH_S_MAX)
    while not _dead(process) and not scene.late():
        scene.query(EMIT, "papers.due", json.dumps({"mark": scene.load.mark()}), PAPERS)
        scene.wait(lambda: _dead(process), 0.3)
    return 0


def _refused_message(scene: Scene, process: Process) -> int:
    """A message that the table does not take: the batch with it is leased, and halved."""

    def prepare() -> None:
        scene.papers.subscribe("broadcast", CAST, REFUSED)
        with connect(scene.url, autocommit=True) as connection:
            connection.execute(CHECK)

    with _alone(scene, process):
        scene.once("messages", prepare)
        while not _dead(process) and not scene.late():
            for mark in (REFUSED, "taken", REFUSED):
                scene.query(EMIT, "papers.odd", json.dumps({"mark": mark}), REFUSED)
            scene.wait(lambda: _dead(process), 2)
    return 0


def _last_daemon(scene: Scene, process: Process) -> int:
    """One daemon sends over http, for all: this one, when the others are dead."""
    scene.wait(lambda: process.count(READY["run"]) > 0 or _dead(process), DEATH_S_MAX)
    others = [other for role, other in scene.running if role == "run"]
    in_flight = sum(scene.kill(other) for other in others)
    scene.wait(lambda: _dead(process) or scene.late(), DEATH_S_MAX)
    for _ in others:
        scene.start("run")
    return in_flight


def _redriven(scene: Scene, process: Process) -> int:
    """Somebody has e-mails sent again that were refused; they are refused again."""
    scene.once("mails", lambda: scene.papers.subscribe("email", MAIL, REFUSED))
    while not _dead(process) and not scene.late():
        scene.query(EMIT, "papers.mail", '{"mark": "mail"}', REFUSED)
        scene.wait(lambda: _dead(process), 1)
        with connect(scene.url, autocommit=True) as connection:
            redrive(connection, Selection(org=REFUSED, reason="rejected"))
    return 0


def _stray(scene: Scene, process: Process) -> int:
    """Documents that nobody names; a worker looks for them when it begins."""
    scene.query(
        "INSERT INTO outbox.artifact_stray (org, sha256)"
        " SELECT 'strays', encode(sha256(i::text::bytea), 'hex') FROM generate_series(1, 3) i"
        " ON CONFLICT DO NOTHING RETURNING org"
    )
    if not scene.wait(lambda: _dead(process), 10):
        process.terminate()  # another one that looked at this moment has removed them
    return 0


def _add_endpoint(scene: Scene, org: str, rule: Rule) -> None:
    path = f"/{org}"
    receiver = scene.town.receivers.add(path, lambda _n: 410)
    spec = EndpointSpec(f"http://127.0.0.1:{scene.town.receivers.port}{path}", org, rule)
    with connect(scene.url, autocommit=True) as connection:
        added = add_endpoint(connection, spec, KeyRing.from_text(scene.town.key))
    assert added.secret is not None
    receiver.secret = added.secret


STEPS: dict[str, dict[str, Provoke]] = {
    "run": {
        **dict.fromkeys(("tick", "route", "send", "lease_due", "tend_due"), _nothing),
        **dict.fromkeys(("peek_filters", "try_filter", "disable_slow"), _slow_filter),
        "order_advance": _nothing,
        **dict.fromkeys(("schedule_due", "schedule_fire"), _tick),
        "expire_leases": _kill_a_worker,
        "release": _lose_redis,
        **dict.fromkeys(("node_beat", "tend_health", "repeats_due"), _nothing),
        **dict.fromkeys(("broadcast_way", "broadcast_due", "broadcast_send"), _nothing),
        **dict.fromkeys(("broadcast_lease", "broadcast_put", "settle"), _refused_message),
        "broadcast_request": _last_daemon,
        **dict.fromkeys(("discard_dead", "purge_dedupe", "purge_secrets"), _nothing),
        **dict.fromkeys(("ring", "retention_lock"), _nothing),
        **dict.fromkeys(("replay_running", "replay_look", "replay_batch"), _replayed),
        "node_leave": _told_to_end,
    },
    "worker": {
        **dict.fromkeys(("receive", "take", "load_endpoints", "request"), _nothing),
        **dict.fromkeys(("settle", "settle_delivered"), _nothing),
        **dict.fromkeys(("load_setups", "watch"), _perform),
        "extend": _nothing,
        "lane_report": _nothing,
        **dict.fromkeys(("artifact_note", "artifact_find", "store"), _paper),
        **dict.fromkeys(("email_open", "email_freeze", "email_sending", "data"), _paper),
        "email_reopen": _redriven,
        **dict.fromkeys(("artifact_expire", "artifact_strays"), _nothing),
        "artifact_forget": _stray,
        "release": _end_while_blocked,
        "disable_endpoint": _endpoint_gone,
    },
}
CUT_OFF = {"ring_open", "ring_close", "slot_holders", "slot_owed", "carry_pick", "carry"}
"""What retention sends once in days. It dies there in tests/rebuild/test_cut_off.py."""
BROADCAST = {"broadcast_call", "broadcast_check"}
"""Broadcasts by realtime.send alone. It dies in tests/broadcast/test_cut_off.py."""
ASIDE = {"replay_move", "owed_now"}
"""A replay that is paused over a slow filter; a look before a drain ends. One statement each."""
OFTEN = {
    "tick", "route", "send", "receive", "take", "request", "settle_delivered", "order_advance",
}  # fmt: skip
"""Steps that come often enough to die at a later pass."""

POINTS = [
    (role, when, step)
    for role, steps in STEPS.items()
    for step in steps
    for when in ("before", "after")
]


def die_at(scene: Scene, role: str, when: str, step: str) -> int:
    """Start a process, let it die at a point; returns what was in flight."""
    nth = scene.random.randint(1, 4) if step in OFTEN else 1
    environ = {VARIABLE: f"{when}:{step}:{nth}"}
    with ExitStack() as stack:
        if STEPS[role][step] is _end_while_blocked:
            scene.own_wire = stack.enter_context(proxy_to(scene.postgres.port))
            environ["OUTBOX_DATABASE_URL"] = scene.own_wire.through(scene.url)
        module = "tests.chaos.small_worker" if role == "worker" and step == "release" else "cli"
        scene.late_at = monotonic() + DEATH_S_MAX
        in_flight, code, tries = 0, None, 0
        while code != -SIGKILL:
            process = scene.spawn(role, module=module, **environ)
            in_flight += STEPS[role][step](scene, process)
            scene.wait(lambda: _dead(process), max(0.0, scene.late_at - monotonic()))  # noqa: B023
            code, tries = process.popen.poll(), tries + 1
            if code not in {0, -SIGKILL} or (code == 0 and tries == TRIES):
                raise ChaosFailure(scene.report(f"{role} did not die {when} {step}"))
        in_flight += scene.in_flight()
        scene.count.mails_bound += tries
        scene.over()
    return in_flight

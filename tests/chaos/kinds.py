"""The kinds of faults. A kind injects one fault and returns when the fault is over.

What it returns is how much was in flight: a duplicate is allowed only for that. Where a kind can
stop the process, or the wire, first, it counts exactly; where it cannot (a crash of PostgreSQL),
it takes the permits, above which nothing can be leased. 0 stands where nothing can be repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from resource import RLIM_INFINITY
from secrets import token_hex
from time import monotonic, sleep

import psycopg
import redis

from tests.chaos.disk import LIMIT_BYTES, grow_tables, limit_files
from tests.chaos.load import EMIT, ORGS
from tests.chaos.proxy import Proxy
from tests.chaos.scene import ChaosFailure, Scene
from tests.system.town import Answer

Kind = Callable[[Scene], int]
KINDS: dict[str, Kind] = {}

CLOCK = Path(__file__).parent / "clock"
BACKENDS = "datname = current_database() AND pid <> pg_backend_pid()"


def kind(name: str) -> Callable[[Kind], Kind]:
    """Register a kind under the name that the table shows."""

    def register(inject: Kind) -> Kind:
        KINDS[name] = inject
        return inject

    return register


# -- processes ------------------------------------------------------------------------------------


@kind("worker: SIGKILL")
def worker_killed(scene: Scene) -> int:
    in_flight = scene.kill(scene.pick("worker"))
    scene.start("worker")
    return in_flight


@kind("daemon: SIGKILL")
def daemon_killed(scene: Scene) -> int:
    """A daemon starts nothing, so its death repeats nothing."""
    scene.kill(scene.pick("run"))
    scene.start("run")
    return 0


@kind("worker: SIGSTOP longer than a lease, SIGCONT")
def worker_stopped(scene: Scene) -> int:
    return scene.pause([scene.pick("worker")], scene.lease_s * scene.random.uniform(1.2, 1.8))


@kind("daemon: SIGSTOP longer than a lease, SIGCONT")
def daemon_stopped(scene: Scene) -> int:
    """One of them, or all at once."""
    running = [process for role, process in scene.running if role == "run"]
    chosen = running if scene.random.random() < 0.5 else [scene.pick("run")]
    scene.pause(chosen, scene.lease_s * scene.random.uniform(1.2, 1.8))
    return 0


@kind("worker: clock an hour wrong")
def clock_wrong(scene: Scene) -> int:
    """It takes the place of a good one. Receivers refuse its signatures; leases do not notice."""
    scene.retire(scene.pick("worker"))
    shift_s = scene.random.choice((-3600, 3600))
    path = os.pathsep.join(filter(None, [str(CLOCK), os.environ.get("PYTHONPATH")]))
    wrong = scene.start("worker", PYTHONPATH=path, OUTBOX_TEST_CLOCK_SHIFT_S=str(shift_s))
    refused = scene.untimely()
    _until(scene, lambda: scene.untimely() > refused, "no signature was refused")
    sleep(scene.random.uniform(0.5, 2))
    scene.retire(wrong)
    scene.over()
    scene.start("worker")
    return 0


# -- Redis ----------------------------------------------------------------------------------------


@kind("Redis: FLUSHALL")
def redis_flushed(scene: Scene) -> int:
    with redis.Redis.from_url(scene.redis.url) as client:
        client.flushall()
    return 0


@kind("Redis: killed and started empty")
def redis_crashed(scene: Scene) -> int:
    scene.redis.crash()
    sleep(scene.random.uniform(0, 1.5))
    scene.redis.start()
    return 0


# -- PostgreSQL -----------------------------------------------------------------------------------


@kind("PostgreSQL: immediate crash and restart")
def postgres_crashed(scene: Scene) -> int:
    scene.postgres.crash()
    sleep(scene.random.uniform(0, 1.5))
    scene.postgres.start()
    return scene.permits


@kind("PostgreSQL: every backend terminated")
def backends_terminated(scene: Scene) -> int:
    scene.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {BACKENDS}")
    return scene.in_flight()


@kind("PostgreSQL: no connection left")
def connections_used_up(scene: Scene) -> int:
    """Everyone is thrown out, and we are in all places before they are back."""
    with ExitStack() as held:
        until = monotonic() + scene.random.uniform(1, 2.5)
        terminated = False
        while monotonic() < until:
            try:
                connection = held.enter_context(psycopg.connect(scene.url, autocommit=True))
                connection.execute("SET idle_session_timeout = 0")
            except psycopg.OperationalError:
                sleep(0.005)
                continue
            if not terminated:
                query = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {BACKENDS}"
                terminated = bool(connection.execute(query.encode()).fetchall())
    return scene.permits


@kind("PostgreSQL: disk full")
def disk_full(scene: Scene) -> int:
    scene.once("grow", lambda: grow_tables(scene.url))
    limit_files(scene.postgres, LIMIT_BYTES)
    try:
        _until(scene, lambda: _refuses(scene), "a full disk refused nothing")
        sleep(scene.random.uniform(1, 2.5))
    finally:
        limit_files(scene.postgres, RLIM_INFINITY)
    return scene.permits


def _refuses(scene: Scene) -> bool:
    """Whether writing an event fails for want of room; what it wrote is rolled back."""
    try:
        with psycopg.connect(scene.url) as connection:
            connection.execute(EMIT, ["orders.filling", f'"{token_hex(900)}"', ORGS[0]])
            connection.rollback()
    except psycopg.Error as error:
        return "could not extend file" in str(error)
    return False


@kind("PostgreSQL: a transaction left open")
def transaction_open(scene: Scene) -> int:
    """One that wrote an event and idles, and one that holds a snapshot."""
    with psycopg.connect(scene.url) as writing, psycopg.connect(scene.url) as reading:
        reading.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        reading.execute("SELECT count(*) FROM outbox.pending")
        mark = scene.load.mark()
        writing.execute(EMIT, ["orders.open", f'{{"mark": "{mark}"}}', scene.random.choice(ORGS)])
        others = scene.load.mark()
        with psycopg.connect(scene.url) as connection:
            connection.execute(EMIT, ["orders.passing", f'{{"mark": "{others}"}}', ORGS[0]])
        _until(scene, lambda: others in scene.books[0].read(), "an open transaction stops others")
        sleep(scene.random.uniform(2, 4))
        writing.commit()
        scene.over()
        seen = [book for book in scene.books if mark in book.read()]
        assert not seen, "it was delivered before its commit"
        reading.rollback()
    return 0


# -- the wires ------------------------------------------------------------------------------------


def _frozen(scene: Scene, proxy: Proxy) -> int:
    proxy.freeze()
    in_flight = scene.in_flight()
    sleep(scene.lease_s * scene.random.uniform(0.5, 1.8))
    proxy.thaw()
    return in_flight


def _slow(scene: Scene, proxy: Proxy) -> None:
    proxy.delay_s = scene.random.uniform(0.05, 0.3)
    sleep(scene.random.uniform(1.5, 3))
    proxy.delay_s = 0.0


@kind("wire to PostgreSQL: half-open, then alive again")
def postgres_frozen(scene: Scene) -> int:
    return _frozen(scene, scene.to_postgres)


@kind("wire to PostgreSQL: half-open for ever, new connections work")
def postgres_abandoned(scene: Scene) -> int:
    """Take and settle notice at different times; in between a worker may start what it cannot
    settle."""
    scene.to_postgres.abandon()
    return scene.permits


@kind("wire to PostgreSQL: 50-300 ms more each way")
def postgres_slow(scene: Scene) -> int:
    _slow(scene, scene.to_postgres)
    return scene.permits


@kind("wire to Redis: half-open, then alive again")
def redis_frozen(scene: Scene) -> int:
    _frozen(scene, scene.to_redis)
    return 0


@kind("wire to Redis: half-open for ever, new connections work")
def redis_abandoned(scene: Scene) -> int:
    scene.to_redis.abandon()
    return 0


@kind("wire to Redis: 50-300 ms more each way")
def redis_slow(scene: Scene) -> int:
    _slow(scene, scene.to_redis)
    return 0


@kind("wires: every connection cut")
def wires_cut(scene: Scene) -> int:
    scene.to_redis.cut()
    scene.to_postgres.cut()
    return scene.in_flight()


# -- receivers ------------------------------------------------------------------------------------


def _bad_receiver(scene: Scene, answer: Answer) -> int:
    receiver = scene.random.choice(scene.books).receiver
    before = receiver.requests
    receiver.answer = lambda _n: answer
    _until(scene, lambda: receiver.requests > before, "the bad receiver was not asked")
    sleep(scene.random.uniform(1, 2.5))
    receiver.answer = lambda _n: 200
    return 0


for _name, _answer in {
    "hangs": None,
    "drips": "drip",
    "closes in mid-answer": "close",
    "answers garbage": "garbage",
    "answers 500": 500,
}.items():
    KINDS[f"receiver: {_name}"] = lambda scene, answer=_answer: _bad_receiver(scene, answer)  # type: ignore[misc]


def _until(scene: Scene, condition: Callable[[], bool], complaint: str, s_max: float = 30) -> None:
    until = monotonic() + s_max
    while not condition():
        if monotonic() > until:
            raise ChaosFailure(scene.report(complaint))
        sleep(0.01)

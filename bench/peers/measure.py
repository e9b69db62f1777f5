"""One run of one system: jobs are laid ready, workers are started, and it is watched to its end.

Rate and processor time are those between a tenth and four fifths of the jobs; all of them must be
done and completed by the system's own books before the run counts. When a job is done is stamped by
the peer's own code after the answer; Outbox's is its settled row.
"""

from __future__ import annotations

import json
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep, time

import redis

from bench.peers.adapters.job import Order
from bench.peers.results import Kind, Run
from bench.peers.systems import ROOT, Peer
from outbox.bench import books, deliveries
from outbox.bench.feed import Tally
from outbox.bench.rig import HOST, Asked, Rig, Specify, open_rig
from outbox.errors import LossDetected, OutboxError
from outbox.store.connect import connect
from outbox.store.endpoints import Connection

LOAD_S_MAX = 300.0
STILL_S_MAX = 45.0
"""So long without progress, and a run is given up."""
LOOK_S = 0.01
MEASURED_S_MIN = 0.2
"""Processor time is counted in hundredths of a second."""
FROM_SHARE, TO_SHARE = 0.1, 0.8
"""Between these shares of the jobs it is measured: programs are warm, nothing runs out, and as much
is fetched ahead at the end as at the beginning."""

DATABASE = "peer"
_CLAIMED = b"SELECT min(id) FROM outbox.pending"
"""What is older has been claimed. What was delivered is counted at the end: counting passes all of
it, on the server that is measured."""
_DELIVERED = b"""
SELECT count(*), coalesce(extract(epoch FROM max(at))::float8, %(at)s) FROM outbox.journal
WHERE event_id > %(mark)s AND fact = 'delivered' AND at <= to_timestamp(%(at)s)
"""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all systems share: the servers, the receiver, and how to ask it for its counts."""

    rig: Rig
    port: int
    tally: Tally | None
    specify: Specify

    def received(self) -> int:
        """Requests the receiver has seen so far."""
        return int(self.tally()["received"]) if self.tally is not None else 0

    def used(self, *servers: str) -> dict[str, float]:
        """Seconds of processor time of these servers."""
        used = self.rig.used()
        return {name: used[name] for name in servers if name in used}

    def redis(self) -> redis.Redis:
        """The broker of those that have one."""
        return redis.Redis.from_url(self.rig.settings.broker_url)

    def clear(self) -> None:
        """What a run left is gone, and written back, before the next begins."""
        assert self.rig.postgres is not None
        self.rig.postgres.drop_database(DATABASE)
        with self.redis() as client:
            client.flushall()
        with connect(self.rig.url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")


def run_peer(ground: Ground, peer: Peer, kind: Kind, jobs: int) -> Run:
    """Measure a peer once. Raises OutboxError where it ends early, stops, or does not balance."""
    assert ground.rig.postgres is not None
    ground.clear()
    url = ground.rig.postgres.create_database(DATABASE)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=ground.rig.folder)))
        order = Order(
            kind=kind.job,
            jobs=jobs,
            database_url=url,
            redis_url=ground.rig.settings.broker_url,
            post_url=f"http://{HOST}:{ground.port}/hook",
            stamps=str(folder),
        )
        environ = (f"PYTHONPATH={ROOT}", f"BENCH_PEER={json.dumps(asdict(order))}")
        _load(peer, environ)
        with connect(url, autocommit=True) as connection:
            connection.execute("ANALYZE")
        names = [f"{peer.name}-{number + 1}" for number in range(kind.processes)]
        for name in names:
            ground.rig.start(name, "outbox.bench.leash", "env", *environ, *peer.work)
            stack.callback(_end, ground.rig, name)
        before = ground.received()
        per_s, cpu_us = Watched(
            ground.rig,
            progress=lambda: _stamped(folder),
            still_open=lambda: _still_open(ground, peer, url),
            used=lambda: ground.used(peer.server) | _spent(ground.rig, names),
        ).watch(jobs)
        received = ground.received() - before if kind.posts else None
        return Run(per_s, cpu_us, balanced(jobs, _stamped(folder)[0], received))


def _load(peer: Peer, environ: tuple[str, ...]) -> None:
    command = ["env", *environ, *peer.load]
    try:
        done = subprocess.run(
            command,
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LOAD_S_MAX,
        )
    except subprocess.TimeoutExpired:
        raise OutboxError(f"its jobs were not laid ready within {LOAD_S_MAX:.0f} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OutboxError(f"its jobs could not be laid ready: {lines[-1][:200]}")


def _spent(rig: Rig, workers: Sequence[str]) -> dict[str, float]:
    used = rig.used()
    return {"worker": sum(used[name] for name in workers)}


def _end(rig: Rig, name: str) -> None:
    rig.programs.pop(name).end()


def _stamped(folder: Path) -> tuple[int, float]:
    """Jobs done by all processes so far, and when the last was (unix time)."""
    found = [struct.unpack("<dd", path.read_bytes()) for path in folder.glob("*.stamps")]
    return int(sum(done for done, _ in found)), max((at for _, at in found), default=0.0)


def _still_open(ground: Ground, peer: Peer, url: str) -> int:
    """Jobs that the peer's own books do not call completed."""
    if isinstance(peer.open_jobs, str):
        with connect(url, autocommit=True) as connection:
            row = connection.execute(peer.open_jobs.encode()).fetchone()
        assert row is not None
        return int(row[0])
    sizes = {b"list": "llen", b"hash": "hlen", b"zset": "zcard"}
    with ground.redis() as client:
        kinds = {key: client.type(key) for key in peer.open_jobs}
        return sum(
            int(getattr(client, sizes[kind])(key)) for key, kind in kinds.items() if kind in sizes
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """What was done, when the last of it was (unix time), and what had been spent by then."""

    done: float
    at: float
    spent: Mapping[str, float]


def between(first: Moment, last: Moment) -> tuple[float, dict[str, float]]:
    """The rate and the microseconds a job. Raises OutboxError where there is too little between."""
    done, took_s = last.done - first.done, last.at - first.at
    if done <= 0 or took_s < MEASURED_S_MIN:
        raise OutboxError("over too soon to be measured: ask for more --jobs")
    spent = {name: (last.spent[name] - first.spent[name]) / done * 1e6 for name in last.spent}
    return done / took_s, spent


@dataclass(frozen=True, slots=True)
class Watched:
    """A peer at work: how many jobs it has done and when the last, how many its own books do not
    call completed, and its seconds of processor time."""

    rig: Rig
    progress: Callable[[], tuple[int, float]]
    still_open: Callable[[], int]
    used: Callable[[], dict[str, float]]

    def watch(self, jobs: int) -> tuple[float, dict[str, float]]:
        """See all jobs through; the rate and the microseconds a job between the two marks."""
        first = self._moment(round(jobs * FROM_SHARE))
        last = self._moment(round(jobs * TO_SHARE))
        self._wait(self.progress, jobs)
        self._wait(lambda: (-self.still_open(), 0.0), 0)
        return between(first, last)

    def _moment(self, goal: int) -> Moment:
        before = self._wait(self.progress, goal)
        spent = self.used()
        # Reading took a moment, in which work was done too: the middle belongs to what was read.
        after = self.progress()
        return Moment((before[0] + after[0]) / 2, (before[1] + after[1]) / 2, spent)

    def _wait(self, look: Callable[[], tuple[int, float]], goal: int) -> tuple[int, float]:
        """Look until the goal is reached. Raises OutboxError where nothing moves any more."""
        last, moved_at = None, monotonic()
        while (found := look())[0] < goal:
            self.rig.check()
            if found[0] != last:
                last, moved_at = found[0], monotonic()
            elif monotonic() - moved_at > STILL_S_MAX:
                raise OutboxError(f"nothing moves since {STILL_S_MAX:.0f} s at {last} of {goal}")
            sleep(LOOK_S)
        return found


def balanced(jobs: int, done: int, received: int | None) -> int:
    """Jobs or requests beyond one for each. Raises LossDetected where there are fewer."""
    seen = done if received is None else received
    if min(seen, done) < jobs:
        raise LossDetected(f"of {jobs} jobs {done} were done, and the receiver saw {received}")
    return seen - jobs


# -- Outbox ---------------------------------------------------------------------------------------


def run_outbox(ground: Ground, kind: Kind, jobs: int, *, broker: bool) -> Run:
    """Measure Outbox once, in the same form: events lie ready, then a daemon and workers start, or
    one process that is both, which needs no `broker`."""
    assert ground.rig.postgres is not None
    ground.clear()
    asked = Asked(database_url=ground.rig.postgres.url(), broker_url=ground.rig.settings.broker_url)
    limit_s = max(ground.rig.until - monotonic(), 1.0)
    with open_rig(asked, ground.specify, broker=broker, limit_s=limit_s) as inner:
        deliveries.set_up(inner, deliveries.JOBS)
        if kind.posts:
            deliveries.add_receiver(inner, ground.port)
        else:
            inner.set(imports=("outbox.bench.jobs",))
            deliveries.subscribe(inner, "bench.noop", {}, deliveries.ALL)
        before = ground.received()
        return _drained(ground, inner, kind, jobs, lambda: ground.received() - before)


def _drained(ground: Ground, inner: Rig, kind: Kind, jobs: int, received: Callable[[], int]) -> Run:
    since = books.mark(inner.url)
    with connect(inner.url) as connection:
        connection.execute(deliveries.WRITE_JOBS.encode(), {"first": 1, "last": jobs})
    with connect(inner.url, autocommit=True) as connection:
        connection.execute("ANALYZE")
        inner.start_outbox(kind.processes)

        def used() -> dict[str, float]:
            ours = {"worker": sum(inner.used().values())}
            return ground.used("postgresql", "redis") | ours

        marks = []
        for share in (FROM_SHARE, TO_SHARE):
            _wait_until_claimed(inner, connection, since.event + round(jobs * share))
            marks.append((time(), used()))
        inner.wait_until_settled()
        moments = []
        for at, spent in marks:
            found = connection.execute(_DELIVERED, {"mark": since.event, "at": at}).fetchone()
            assert found is not None
            moments.append(Moment(int(found[0]), float(found[1]), spent))
    counts = books.read_counts(inner.url, since)
    counts.balance(jobs)
    per_s, cpu_us = between(*moments)
    extra = balanced(jobs, counts.delivered, received() if kind.posts else None)
    return Run(per_s, cpu_us, extra)


def _wait_until_claimed(rig: Rig, connection: Connection, event: int) -> None:
    while (found := connection.execute(_CLAIMED).fetchone()) != (None,):
        assert found is not None
        if found[0] > event:
            return
        rig.check()
        sleep(LOOK_S)

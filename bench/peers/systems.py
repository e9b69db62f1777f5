"""The peers: what each needs, how it is started, and how its own books say that all is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.peers.results import Kind

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENT = HERE.parent / ".venv"
PYTHON = ENVIRONMENT / "bin" / "python"
OUTBOX, ALONE = "outbox", "outbox-alone"
"""Outbox with a worker process over Redis, and as it is without any setting: one process."""
OURS = {
    OUTBOX: "one daemon beside the workers, Redis, defaults, journal and retries included",
    ALONE: "one process is daemon and worker, `memory://`, otherwise the same",
}


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer. `package` is its name in the lock; `settings` says what was chosen, for people.

    `open_jobs` counts what is not completed: a statement, or with Redis the keys whose elements are
    counted. `share` of the jobs is what a slow one does: its rate is as steady, the bench shorter.
    """

    name: str
    package: str
    settings: str
    load: tuple[str, ...]
    work: tuple[str, ...]
    open_jobs: str | tuple[str, ...]
    packages: tuple[str, ...] = ()
    share: float = 1.0

    @property
    def is_node(self) -> bool:
        """Whether it runs in Node.js."""
        return self.load[0] == "node"

    @property
    def server(self) -> str:
        """Where its jobs are."""
        return "postgresql" if isinstance(self.open_jobs, str) else "redis"

    def jobs(self, asked: int, kind: Kind) -> int:
        """How many it does where so many are asked for."""
        return round(asked * self.share) if self.share < 1 else asked * kind.times


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (str(PYTHON), "-m", f"bench.peers.adapters.{module}", *arguments)


def _node(script: str, command: str) -> tuple[str, ...]:
    return ("node", str(HERE / "js" / script), command)


PEERS = (
    Peer(
        "pg-boss",
        "pg-boss",
        "four fetchers of batches of 500, the next at once while they are full, undici",
        _node("pgboss.mjs", "load"),
        _node("pgboss.mjs", "work"),
        "SELECT count(*) FROM pgboss.job WHERE name = 'job' AND state <> 'completed'",
    ),
    Peer(
        "graphile-worker",
        "graphile-worker",
        "64 jobs at once, local queue of 500, completions batched, undici",
        _node("graphile.mjs", "load"),
        _node("graphile.mjs", "work"),
        "SELECT count(*) FROM graphile_worker._private_jobs",
    ),
    Peer(
        "pgqueuer",
        "pgqueuer",
        "batches of 250, 500 jobs at once, asyncpg, uvloop, aiohttp",
        _python("on_pgqueuer", "load"),
        _python("on_pgqueuer", "work"),
        "SELECT count(*) FROM pgqueuer",
        ("pgqueuer[asyncpg]", "uvloop", "aiohttp"),
    ),
    Peer(
        "procrastinate",
        "procrastinate",
        "32 jobs at once, psycopg, uvloop, aiohttp, completed jobs deleted",
        _python("on_procrastinate", "load"),
        _python("on_procrastinate", "work"),
        "SELECT count(*) FROM procrastinate_jobs",
        ("procrastinate", "psycopg[binary,pool]", "uvloop", "aiohttp"),
        share=0.2,
    ),
    Peer(
        "dramatiq",
        "dramatiq",
        "plain, Redis, 8 threads, libcurl; no outbox, nothing durable",
        _python("on_dramatiq"),
        (
            *(str(PYTHON), "-m", "dramatiq", "bench.peers.adapters.on_dramatiq"),
            *("--processes", "1", "--threads", "8"),
        ),
        ("dramatiq:default.msgs", "dramatiq:default.DQ.msgs", "dramatiq:default.XQ"),
        ("dramatiq[redis]", "pycurl"),
        share=0.5,
    ),
    Peer(
        "celery",
        "celery",
        "Redis, 8 threads, 32 prefetched each, no results, libcurl; no outbox, nothing durable",
        _python("on_celery"),
        (
            *(str(PYTHON), "-m", "celery", "-A", "bench.peers.adapters.on_celery", "--quiet"),
            *("worker", "--pool", "threads", "--concurrency", "8", "--loglevel", "error"),
            *("--without-gossip", "--without-mingle", "--without-heartbeat"),
        ),
        ("celery", "unacked"),
        ("celery[redis]", "pycurl"),
        share=0.2,
    ),
)

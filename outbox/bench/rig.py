"""The rig: servers, a database of its own, daemon, workers and receivers, all ended at the end.

The servers are embedded unless URLs are given. On a server that is given the bench works in a
database that it makes and drops; in a Redis that is given only under its own installation's names.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from outbox.bench.program import Program
from outbox.bench.usage import cpu_s
from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.errors import ConfigurationError, OutboxError
from outbox.secrets import KeyRing
from outbox.settings import OPTIONS, Settings
from outbox.store.connect import connect, translated
from outbox.store.migrate import migrate
from outbox.store.subscriptions import KindSpec

HOST = "127.0.0.1"
LOOK_S = 0.1
_WAITING = b"""
SELECT p.id, CASE WHEN p.id IS NULL THEN (SELECT count(*) FROM outbox.delivery) END, t.last_value
FROM outbox.lease_token t LEFT JOIN (
    SELECT id FROM outbox.pending ORDER BY id DESC LIMIT 1) p ON true
"""
"""The newest event that waits; if none does, how many deliveries; and what every claim moves."""
STILL_S_MAX = 60.0
"""So long without any progress, and the bench gives up."""

POSTGRES_OPTIONS: Mapping[str, str | int] = {
    # As durable as in production: what is embedded for tests is not.
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "512MB",
    "max_wal_size": "4GB",
    "track_commit_timestamp": "on",
    "log_line_prefix": "%a|",  # by which statements are counted
}
TOLD_SETTINGS = ("synchronous_commit", "fsync", "full_page_writes", "shared_buffers")

Specify = Callable[[Settings, str, Mapping[str, Any]], KindSpec]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user asked for. None is the scenario's own number; URLs are None where embedded."""

    quick: bool = False
    events: int | None = None
    runs: int | None = None
    seconds: float | None = None
    database_url: str | None = None
    broker_url: str | None = None

    @property
    def full(self) -> bool:
        """Whether this is the form whose figures count."""
        return not self.quick and (self.events, self.runs, self.seconds) == (None, None, None)


@dataclass(slots=True)
class Rig:
    """Everything that runs. `until` is the moment (monotonic) by which all must be over."""

    asked: Asked
    specify: Specify
    until: float
    folder: Path
    url: str
    postgres: EmbeddedPostgres | None
    redis: EmbeddedRedis | None
    settings: Settings
    stack: ExitStack
    programs: dict[str, Program] = field(default_factory=dict)

    def choose(self, full: float, quick: float, asked: float | None) -> float:
        """The number to work with: what was asked for, or that of the form."""
        return asked if asked is not None else quick if self.asked.quick else full

    def set(self, **values: Any) -> None:
        """Change settings of what is started from now on."""
        self.settings = replace(self.settings, **values)

    # -- programs -------------------------------------------------------------------------------

    def start(self, name: str, *command: str) -> Program:
        """Start a program under `name`; it ends with the rig."""
        program = Program(name, command, self.environ(), self.folder)
        self.stack.callback(self._end, name, program)
        self.programs[name] = program
        return program

    def _end(self, name: str, program: Program) -> None:
        self.programs.pop(name, None)
        program.end()

    def start_outbox(self, workers: int = 1) -> None:
        """Start a daemon and so many worker processes; with memory:// the worker is inside."""
        self.start("relay", "outbox.bench.leash", "outbox", "run")
        for number in range(0 if self.settings.in_memory else workers):
            self.start(f"worker-{number + 1}", "outbox.bench.leash", "outbox", "worker")

    def environ(self) -> dict[str, str]:
        """The environment of programs: no setting but those of this rig."""
        environ = {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")}
        plain = {one.name: _text(getattr(self.settings, one.name)) for one in OPTIONS}
        default = {one.name: _text(getattr(Settings(), one.name)) for one in OPTIONS}
        for one in OPTIONS:
            if plain[one.name] != default[one.name]:
                environ[one.variable] = plain[one.name]
        return environ

    # -- waiting --------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise OutboxError where a program has ended, or the time is over."""
        for program in self.programs.values():
            program.check()
        if monotonic() > self.until:
            raise OutboxError("the time of this scenario is over; this machine is too slow for it")

    def wait_until_settled(self) -> None:
        """Wait until nothing is pending, scheduled or leased. Nothing is counted while events are
        pending: that passes all rows that have died, on the server that is measured, and took 1 us
        of its processor time a delivery after 60,000 and 29 us after 360,000."""
        last, moved_at = None, monotonic()
        with connect(self.url, autocommit=True) as connection:
            while True:
                now = connection.execute(_WAITING).fetchone()
                if now is not None and now[:2] == (None, 0):
                    return
                self.check()
                if now != last:
                    last, moved_at = now, monotonic()
                elif monotonic() - moved_at > STILL_S_MAX:
                    raise OutboxError(f"nothing moves since {STILL_S_MAX:.0f} s; {now} wait")
                sleep(LOOK_S)

    def pause(self, seconds: float) -> None:
        """Let it run so long."""
        over = monotonic() + seconds
        while (left := over - monotonic()) > 0:
            self.check()
            sleep(min(left, 0.2))

    # -- what was used --------------------------------------------------------------------------

    def used(self) -> dict[str, float]:
        """Seconds of processor time so far, by part, as far as they can be read."""
        pids = {
            "postgresql": self.postgres.pid if self.postgres else None,
            "redis": self.redis.pid if self.redis else None,
            **{name: program.pid for name, program in self.programs.items()},
        }
        return cpu_s(pids)

    def conditions(self) -> dict[str, Any]:
        """The versions and settings of the servers."""
        with connect(self.url, autocommit=True) as connection:
            told = connection.execute(
                "SELECT name, current_setting(name) FROM unnest(%s::text[]) name",
                [[*TOLD_SETTINGS, "server_version"]],
            ).fetchall()
        settings = dict(told)
        version = settings.pop("server_version").split()[0]
        servers = {"postgresql": f"{version}, {'embedded' if self.postgres else 'given'}"}
        if self.settings.broker_url.startswith("redis"):
            servers["redis"] = f"{_redis_version(self.redis)}, embedded" if self.redis else "given"
        else:
            servers["broker"] = self.settings.broker_url.partition(":")[0]
        return {"servers": servers, "postgresql": settings}


def _redis_version(redis: EmbeddedRedis) -> str:
    found = re.search(r"[vV]ersion[=\s]+v?=?(\d[\d.]*)", redis.log())
    return found[1] if found else "version unknown"


def _text(value: object) -> str:
    """A setting as the environment holds it."""
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case timedelta():
            return f"{round(value.total_seconds() * 1000)}ms"
        case tuple() | frozenset():
            return ",".join(map(str, value))
        case _:
            return str(value)


# -- putting it together --------------------------------------------------------------------------


@contextmanager
def open_rig(asked: Asked, specify: Specify, *, broker: bool, limit_s: float) -> Iterator[Rig]:
    """A rig with an empty installation; `broker` says whether a broker is needed beside it.

    Raises ConfigurationError, DatabaseUnavailable or BrokerUnavailable where a server is missing.
    """
    with ExitStack() as stack:
        until = monotonic() + limit_s
        postgres, redis = None, None
        if asked.database_url is None:
            postgres = stack.enter_context(EmbeddedPostgres(options=POSTGRES_OPTIONS))
            url = postgres.create_database("bench")
        else:
            url = stack.enter_context(_own_database(asked.database_url))
        broker_url = "memory://"
        if broker and asked.broker_url is None:
            redis = stack.enter_context(EmbeddedRedis())
            broker_url = redis.url
        elif broker:
            broker_url = str(asked.broker_url)
        folder = Path(
            stack.enter_context(TemporaryDirectory(prefix="outbox-bench-", dir=_base(postgres)))
        )
        migrate(url, "bench")
        settings = Settings(
            database_url=url,
            broker_url=broker_url,
            secret_key=KeyRing.generate_text(),
            instance="bench",
            grace=timedelta(seconds=3),
            egress_allow_cidrs=(ip_network(f"{HOST}/32"),),
            egress_allow_http=True,
            log_format="json",
        )
        programs = stack.enter_context(ExitStack())  # ended before the servers that they use
        yield Rig(asked, specify, until, folder, url, postgres, redis, settings, programs)


def _base(postgres: EmbeddedPostgres | None) -> Path | None:
    """Where our folder lies: in that of the server, whose guardian removes it whatever happens."""
    return None if postgres is None else postgres.folder


@contextmanager
def _own_database(url: str) -> Iterator[str]:
    """A database of our own on a server that is given, dropped at the end."""
    parts = urlsplit(url)
    if not parts.scheme.startswith("postgres"):
        raise ConfigurationError(
            "--database-url must be a URL such as postgresql://user@host/postgres"
        )
    name = f"outbox_bench_{secrets.token_hex(4)}"
    with connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    try:
        yield urlunsplit(parts._replace(path=f"/{name}"))
    finally:
        with translated(), connect(url, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())

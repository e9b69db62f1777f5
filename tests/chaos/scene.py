"""One chaos run: servers, daemons, workers, writers and receivers, and the count at its end.

Lost, duplicates and wrong signatures are counted from the receivers' side, against the log of
events; the engine's own books are only asked where a delivery rests that nobody received. The
harness starts a process again only after it was killed; whatever else ends is a failure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from random import Random
from signal import SIGCONT, SIGKILL, SIGSTOP
from time import monotonic, sleep
from typing import Any

import psycopg

from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.store.migrate import migrate
from tests.chaos.load import EMIT, MARK, ORDERLY, ORGS, PAPERS, Load
from tests.chaos.papers import BATCH, Shelf, papers_of
from tests.chaos.proxy import proxy_to
from tests.system.town import Process, Receiver, town_over

CONCURRENCY = 48
"""Permits of each endpoint: with them the harness knows what can be in flight at most."""
RECOVERED_S_MAX = 240.0
REST_LOOK_S = 10.0
READY = {"run": "relay.connected", "worker": "worker.started"}
RETRY = "exp:base=200ms,factor=1.2,cap=1s,attempts=1000"
STARTED = "SELECT count(*) FROM outbox.delivery WHERE state = 'leased' AND started_at IS NOT NULL"
EVENTS = f"SELECT org_id, {MARK} FROM outbox.event WHERE type NOT LIKE 'outbox.%'"
OWED = """
    SELECT (SELECT count(*) FROM outbox.pending) + (
        SELECT count(*) FROM outbox.delivery d
        WHERE d.state <> 'held' OR d.held_reason = 'order' AND NOT EXISTS (
            SELECT FROM outbox.dead_letter l
            WHERE l.subscription_id = d.subscription_id AND l.order_key = d.order_key))
"""
DEAD = "SELECT count(*) FROM outbox.dead_letter WHERE org_id = ANY (%s)"
RESTING = f"""
    SELECT DISTINCT coalesce(n.url, '/' || s.kind), {MARK}
    FROM (SELECT event_id, event_slot, subscription_id FROM outbox.dead_letter
          UNION ALL SELECT event_id, event_slot, subscription_id FROM outbox.delivery
          WHERE state = 'held') d
    JOIN outbox.event e ON e.slot = d.event_slot AND e.id = d.event_id
    JOIN outbox.subscription s ON s.id = d.subscription_id
    LEFT JOIN outbox.endpoint n ON n.id = s.endpoint_id
"""


class ChaosFailure(AssertionError):
    """A run that did not end as promised; the message holds what is needed to look into it."""


@dataclass(slots=True)
class Book:
    """A receiver and the marks that it has accepted."""

    org: str
    receiver: Receiver
    marks: set[str] = field(default_factory=set)
    _read: int = 0

    @property
    def path(self) -> str:
        """The receiver's."""
        return self.receiver.path

    def read(self) -> set[str]:
        """The marks accepted so far."""
        seen = self.receiver.seen
        end = len(seen)
        for _, body in seen[self._read : end]:
            data = body["data"]
            self.marks.add(data.get("mark") or data["record"]["mark"])
        self._read = end
        return self.marks

    def out_of_order(self) -> int:
        """Requests of ordered events that came after a request of a later one of their key."""
        latest: dict[str, int] = {}
        late = 0
        for _, body in self.receiver.came:
            key, number = body["data"].get("key"), body["data"].get("number", 0)
            if key is not None:
                late += number < latest.get(key, 0)
                latest[key] = max(number, latest.get(key, 0))
        return late


@dataclass(slots=True)
class Count:
    """What a run came to. `bound` is what was in flight at its faults; `mails_bound` the same of
    e-mails, one for each kill. `..._again` counts what arrived more than once."""

    faults: int = 0
    events: int = 0
    requests: int = 0
    lost: int = 0
    duplicates: int = 0
    bound: int = 0
    wrong: int = 0
    strangers: int = 0
    dead: int = 0
    out_of_order: int = 0
    mails: int = 0
    mails_again: int = 0
    mails_bound: int = 0
    documents: int = 0
    documents_again: int = 0
    messages: int = 0
    messages_again: int = 0
    hints: int = 0
    hints_again: int = 0
    recoveries_s: list[float] = field(default_factory=list)

    def add(self, faults: int, in_flight: int, *, kills: bool) -> None:
        """Note faults. Processes that are killed count what they may repeat of e-mail apart."""
        self.faults += faults
        self.bound += in_flight
        self.mails_bound += 0 if kills else in_flight

    def holds(self) -> bool:
        """Whether every promise was kept."""
        broken = self.lost + self.wrong + self.strangers + self.out_of_order
        broken += self.documents_again + self.messages_again
        repeated = self.duplicates <= self.bound and self.mails_again <= self.mails_bound
        return broken == 0 and repeated and self.hints_again <= self.faults * BATCH


class Scene:
    """Everything that runs. `random` is the run's own; kinds draw from it."""

    def __init__(
        self, stack: ExitStack, seed: str, *, lease_s: float, rate: float, processes: int = 2
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.lease_s = lease_s
        self.count = Count()
        self.over_at: float | None = None
        self.late_at = 0.0
        self._done: set[str] = set()
        self.postgres = stack.enter_context(EmbeddedPostgres(max_connections=60))
        self.redis = stack.enter_context(EmbeddedRedis())
        self.url = self.postgres.create_database("shop")
        migrate(self.url)
        self.to_postgres = stack.enter_context(proxy_to(self.postgres.port))
        self.to_redis = stack.enter_context(proxy_to(self.redis.port))
        lease = f"{round(lease_s * 1000)}ms"
        self.town = stack.enter_context(town_over(self.url, self.redis.url, lease))
        self.town.environ["OUTBOX_DATABASE_URL"] = self.to_postgres.through(self.url)
        self.town.environ["OUTBOX_IMPORT"] = "tests.chaos.job"
        self.town.environ["OUTBOX_BROKER_URL"] = self.to_redis.through(self.redis.url)
        self.papers = stack.enter_context(papers_of(self.url, self.query))
        self.town.environ |= self.papers.environ
        self.own_wire = self.to_postgres
        self.books = [self._book(f"/{n}", org) for n, org in enumerate([*ORGS, ORGS[0]])]
        self.books.append(self._book("/ordered", ORDERLY, order="block"))
        self.everyone: list[Book | Shelf] = [*self.books, *self.papers.shelves]
        self.running: list[tuple[str, Process]] = []
        for role in ("run", "worker"):
            for _ in range(processes):
                self.start(role)
        self.load = Load(self.url, self.random.randrange(2**32), rate=rate)
        stack.callback(self.load.stop)

    def _book(self, path: str, org: str, order: str | None = None) -> Book:
        # Every twentieth answer outlasts a third of the lease, so that leases are extended.
        receiver = self.town.endpoint(
            path,
            org,
            retry=RETRY,
            order=order,
            concurrency=CONCURRENCY,
            timeout=timedelta(seconds=2),
        )
        receiver.delay_s = lambda n: 0.0 if n % 20 else self.lease_s * 0.4
        return Book(org, receiver)

    @property
    def permits(self) -> int:
        """The most deliveries that can be leased at once."""
        return CONCURRENCY * len(self.books)

    # -- processes ------------------------------------------------------------------------------

    def spawn(self, role: str, *, module: str = "cli", **environ: str) -> Process:
        """Start a process and wait for nothing."""
        process = Process((role,), {**self.town.environ, **environ}, module)
        self.town.processes.append(process)
        return process

    def start(self, role: str, **environ: str) -> Process:
        """Start a process that stays; again where a fault of the moment refuses it."""
        until = monotonic() + RECOVERED_S_MAX
        while monotonic() < until:
            process = self.spawn(role, **environ)
            while process.popen.poll() is None:
                if process.count(READY[role]):
                    self.running.append((role, process))
                    return process
                if monotonic() > until:
                    break
                sleep(0.01)
        raise ChaosFailure(self.report(f"outbox {role} did not start"))

    def pick(self, role: str) -> Process:
        """One of the running processes of a role."""
        return self.random.choice([p for r, p in self.running if r == role])

    def kill(self, process: Process) -> int:
        """Stop a process, count what is in flight, kill it; returns the count."""
        process.popen.send_signal(SIGSTOP)
        in_flight = self.in_flight()
        self.running = [one for one in self.running if one[1] is not process]
        process.popen.send_signal(SIGKILL)
        process.popen.wait()
        self.count.mails_bound += 1
        self.over()
        return in_flight

    def pause(self, processes: list[Process], seconds: float) -> int:
        """Stop processes for a while; returns what was in flight."""
        for process in processes:
            process.popen.send_signal(SIGSTOP)
        in_flight = self.in_flight()
        sleep(seconds)
        for process in processes:
            process.popen.send_signal(SIGCONT)
        self.over()
        return in_flight

    def retire(self, process: Process) -> None:
        """End a process in order."""
        self.running = [one for one in self.running if one[1] is not process]
        process.terminate()
        if (code := process.ended()) != 0:
            raise ChaosFailure(self.report(f"a process that was told to end ended with {code}"))

    # -- looking --------------------------------------------------------------------------------

    def query(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Ask PostgreSQL, past the proxy; again while it is away."""
        until = monotonic() + RECOVERED_S_MAX
        while True:
            try:
                with psycopg.connect(self.url, connect_timeout=2, autocommit=True) as connection:
                    return connection.execute(query.encode(), params or None).fetchall()
            except psycopg.OperationalError as error:
                if monotonic() > until:
                    raise ChaosFailure(self.report("PostgreSQL does not answer")) from error
                sleep(0.05)

    def untimely(self) -> int:
        """Requests that receivers refused for their timestamp."""
        return sum(book.receiver.untimely for book in self.books)

    def wait(self, condition: Callable[[], bool], s_max: float) -> bool:
        """Wait until the condition holds, for so long at most; whether it does."""
        until = monotonic() + s_max
        while not condition():
            if monotonic() > until:
                return False
            sleep(0.01)
        return True

    def late(self) -> bool:
        """Whether a process that is to die has had time enough."""
        return monotonic() > self.late_at

    def once(self, name: str, action: Callable[[], None]) -> None:
        """Do something the first time a kind needs it in this run."""
        if name not in self._done:
            self._done.add(name)
            action()

    def over(self) -> None:
        """The fault is over: recovery counts from here."""
        self.over_at = monotonic()

    def in_flight(self) -> int:
        """Started and not settled, at this moment."""
        return int(self.query(STARTED)[0][0])

    def expected(self) -> dict[str, set[str]]:
        """The marks of all committed events, by organization."""
        found: dict[str, set[str]] = {book.org: set() for book in self.everyone}
        for org, mark in self.query(EVENTS):
            found.get(org, set()).add(mark)
        return found

    def resting(self) -> dict[str, set[str]]:
        """The marks of what lies in the dead letters or waits behind one, by path."""
        found: dict[str, set[str]] = {book.path: set() for book in self.everyone}
        if self.query(DEAD, [book.org for book in self.everyone])[0][0]:
            for url, mark in self.query(RESTING):
                found.get("/" + url.rsplit("/", 1)[1], set()).add(mark)
        found["/email"] |= found["/pdf"]  # no document, no e-mail with it
        return found

    def recovered(self) -> float:
        """Write an event for every organization and wait until these, and all that was committed
        before, were accepted; returns the seconds since the fault's end."""
        begun, self.over_at = self.over_at or monotonic(), None
        for org in (*ORGS, PAPERS):
            self.query(EMIT, "orders.after", json.dumps({"mark": self.load.mark()}), org)
        expected = self.expected()
        owed = [(book, expected[book.org] - book.read()) for book in self.everyone]
        looked_at = monotonic()
        while any(marks - book.read() for book, marks in owed):
            if monotonic() - begun > RECOVERED_S_MAX:
                missing = {book.path: len(marks - book.read()) for book, marks in owed}
                raise ChaosFailure(self.report(f"deliveries did not come: {missing}"))
            if monotonic() - looked_at > REST_LOOK_S:
                # A dead letter does not come, nor what an ordered key holds behind it.
                looked_at, resting = monotonic(), self.resting()
                owed = [(book, marks - resting[book.path]) for book, marks in owed]
            sleep(0.02)
        return monotonic() - begun

    def alive(self) -> None:
        """Every process that was not killed runs. Raises ChaosFailure."""
        for role, process in self.running:
            if (code := process.popen.poll()) is not None:
                raise ChaosFailure(self.report(f"outbox {role} ended by itself with {code}"))

    def report(self, what: str) -> str:
        """A failure with all that is known: seed, counts, the ends of the logs."""
        lines = [f"{what}; seed {self.seed}; {self.count}"]
        for process in self.town.processes:
            state = process.popen.poll()
            lines += [f"-- {process.popen.args!r} exit={state}", process.said[-1500:]]
        if self.postgres.pid is not None:
            lines += ["-- postgres", self.postgres.log()[-1500:]]
        return "\n".join(lines)

    # -- the end --------------------------------------------------------------------------------

    def finish(self) -> Count:
        """Stop the writers, wait until nothing is owed, count. Raises ChaosFailure."""
        self.load.stop()
        self.recovered()
        until = monotonic() + RECOVERED_S_MAX
        while owed := self.query(OWED)[0][0]:
            if monotonic() > until:
                raise ChaosFailure(self.report(f"{owed} are still owed"))
            sleep(0.02)
        self.alive()
        self._add_up()
        if not self.count.holds():
            raise ChaosFailure(self.report("a promise is broken"))
        return self.count

    def _add_up(self) -> None:
        count, expected = self.count, self.expected()
        everything = set().union(*expected.values())
        resting = self.resting()
        count.lost = len(self.load.committed - everything) + self.town.lost()
        for each in self.everyone:
            marks = each.read()
            count.lost += len(expected[each.org] - marks - resting[each.path])
            count.strangers += len(marks - expected[each.org])
        for book in self.books:
            count.duplicates += book.receiver.duplicates
            count.wrong += book.receiver.wrong
            count.requests += book.receiver.requests
            count.out_of_order += book.out_of_order()
        papers = self.papers
        count.wrong += papers.wrong
        count.mails, count.mails_again = papers.mails.found.total(), papers.mails.again
        count.documents, count.documents_again = len(papers.documents.found), papers.kept_again()
        count.messages = papers.messages.found.total()
        count.messages_again = papers.messages.again
        count.hints, count.hints_again = papers.hints.found.total(), papers.hints.again
        count.events = len(everything)
        count.dead = int(self.query(DEAD, [each.org for each in self.everyone])[0][0])


@contextmanager
def scene(
    seed: str, *, lease_s: float = 2.0, rate: float = 80.0, processes: int = 2
) -> Iterator[Scene]:
    """A running scene; everything that it started ends with it."""
    with ExitStack() as stack:
        yield Scene(stack, seed, lease_s=lease_s, rate=rate, processes=processes)

"""The application of a chaos run: writes rows and emits events, and remembers what was committed.

Every event carries a `mark` of its own, so that receivers' books and the log can be compared
without a word from the engine. A writer outlives the loss of its database; what it was told is
committed is in `committed`, what it never heard of may or may not be.
"""

from __future__ import annotations

import json
from itertools import count
from random import Random
from threading import Event, Lock, Thread
from typing import Any

import psycopg

from outbox.store.connect import connect
from outbox.store.watching import watch

ORGS = ("acme", "globex", "initech")
ORDERLY = "orderly"
PAPERS = "papers"
KEYS = 5
TABLE = """
    CREATE TABLE IF NOT EXISTS public.orders (id bigint PRIMARY KEY, org_id text, mark text)
"""
EMIT = "SELECT outbox.emit(%s, %s::json, %s)"
EMIT_KEYED = "SELECT outbox.emit(%s, %s::json, %s, ordering_key => %s)"
INSERT = "INSERT INTO public.orders VALUES (%s, %s, %s)"
UPDATE = "UPDATE public.orders SET mark = %s WHERE id = %s"

MARK = """
    coalesce(payload ->> 'mark', payload -> 'record' ->> 'mark', payload #>> '{source,data,mark}')
"""
"""The mark of an event: emitted, captured, or told of a document."""

Connection = psycopg.Connection[tuple[Any, ...]]


class Load:
    """Writers over `url`, about `rate` events a second in all, until stopped."""

    def __init__(self, url: str, seed: int, *, rate: float, writers: int = 2) -> None:
        self._url = url
        self._rate = rate
        self._stopping = Event()
        self._lock = Lock()
        self._numbers = count(1)
        self.committed: set[str] = set()
        self.failures = 0
        with connect(url) as connection:
            connection.execute(TABLE)
            watch(connection, "public.orders", org_column="org_id")
        tasks = [self._steady] * writers + [self._late, self._orderly, self._papers]
        self._threads = [
            Thread(target=self._run, args=(task, Random(f"{seed}:{n}"), rate / writers))
            for n, task in enumerate(tasks)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End every writer; a transaction that is open is committed first."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def mark(self) -> str:
        """A mark that no other event has."""
        with self._lock:
            return f"m{next(self._numbers)}"

    def _run(self, task: Any, random: Random, rate: float) -> None:
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._url, connect_timeout=2, autocommit=True) as connection:
                    connection.execute("SET statement_timeout = '20s'")
                    while not self._stopping.is_set():
                        task(connection, random, rate)
            except psycopg.Error:
                self.failures += 1
                self._stopping.wait(0.05)

    def _steady(self, connection: Connection, random: Random, rate: float) -> None:
        """One transaction of one to six events, and the pause after it."""
        size = random.randint(1, 6)
        with connection.transaction():
            marks = [mark for _ in range(size) for mark in self._write(connection, random)]
        self._note(marks)
        self._stopping.wait(random.expovariate(1 / (size / rate)))

    def _write(self, connection: Connection, random: Random) -> list[str]:
        org, mark = random.choice(ORGS), self.mark()
        if random.random() < 0.5:
            payload = json.dumps({"mark": mark, "filling": "x" * random.randint(0, 2000)})
            connection.execute(EMIT, ["orders.paid", payload, org])
            return [mark]
        key = int(mark[1:])
        connection.execute(INSERT, [key, org, mark])
        if random.random() < 0.8:
            return [mark]
        again = self.mark()
        connection.execute(UPDATE, [again, key])
        return [mark, again]

    def _late(self, connection: Connection, random: Random, _rate: float) -> None:
        """A transaction that stays open while others pass it; one in five is rolled back."""
        mark, rolled_back = self.mark(), random.random() < 0.2
        with connection.transaction(force_rollback=rolled_back):
            payload = json.dumps({"mark": mark})
            connection.execute(EMIT, ["orders.late", payload, random.choice(ORGS)])
            self._stopping.wait(random.uniform(0.2, 4))
        if not rolled_back:
            self._note([mark])
        self._stopping.wait(0.1)

    def _orderly(self, connection: Connection, random: Random, rate: float) -> None:
        """Some events of one key, numbered as they are written; the only writer of its keys."""
        key = f"key-{random.randrange(KEYS)}"
        marks = [self.mark() for _ in range(random.randint(1, 4))]
        with connection.transaction():
            for mark in marks:
                payload = json.dumps({"mark": mark, "key": key, "number": int(mark[1:])})
                connection.execute(EMIT_KEYED, ["orders.keyed", payload, ORDERLY, key])
        self._note(marks)
        self._stopping.wait(random.expovariate(rate / 8))

    def _papers(self, connection: Connection, random: Random, _rate: float) -> None:
        """Now and then an event that becomes a document, an e-mail, broadcasts. E-mails go one by
        one: with more of them, one that is tried again would wait behind the fresh ones."""
        mark = self.mark()
        connection.execute(EMIT, ["papers.due", json.dumps({"mark": mark}), PAPERS])
        self._note([mark])
        self._stopping.wait(random.expovariate(0.4))

    def _note(self, marks: list[str]) -> None:
        with self._lock:
            self.committed.update(marks)

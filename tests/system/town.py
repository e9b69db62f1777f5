"""A small town: a database, daemons and workers as processes, and receivers that keep books.

The receivers verify every signature and count, by `webhook-id`, requests and answers of 2xx, so
that lost and duplicate deliveries are counted, not guessed.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from threading import Thread
from time import monotonic, sleep
from typing import Any

import psycopg
from psycopg.rows import scalar_row
from standardwebhooks.webhooks import Webhook

from outbox.secrets import KeyRing
from outbox.store.connect import connect
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule

WITHIN_S = 60.0

Answer = int | str | None
"""A status, None for silence, or one of the manners of a bad receiver: `drip` a body that never
ends, `close` in the middle of the response, `garbage` in place of one."""


def wait_until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    until = monotonic() + within_s
    while not condition():
        assert monotonic() < until, "the condition did not come true"
        sleep(0.01)


# -- receivers ------------------------------------------------------------------------------------


@dataclass
class Receiver:
    """One URL and its books. `answer(n)` says how its n-th request is answered, `delay_s(n)` how
    long a good answer takes. A genuine request with a time outside the tolerance is `untimely` and
    refused."""

    path: str
    answer: Callable[[int], Answer] = lambda _n: 200
    delay_s: Callable[[int], float] = lambda _n: 0.0
    secret: str = ""
    requests: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    wrong: int = 0
    untimely: int = 0
    came: list[tuple[str, Any]] = field(default_factory=list)
    seen: list[tuple[str, Any]] = field(default_factory=list)

    def judge(self, headers: dict[str, str], body: bytes) -> Answer:
        """Note one request; how to answer it."""
        self.requests += 1
        try:
            data = Webhook(self.secret).verify(body, headers)
        except Exception as error:
            timely = "timestamp" not in str(error)
            self.wrong += timely
            self.untimely += not timely
            return 400
        self.came.append((headers["webhook-id"], data))
        return self.answer(self.requests)

    def accept(self, headers: dict[str, str], body: bytes) -> None:
        """Note one request that is answered with 2xx now."""
        key = headers["webhook-id"]
        self.duplicates += key in self.answered
        self.answered[key] += 1
        self.seen.append((key, json.loads(body)))


_MANNERS = {
    "close": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
    "drip": b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
    "garbage": bytes(range(128, 256)) * 4 + b"\r\n\r\n",
}


class Receivers:
    """All receivers, on one port, in one thread."""

    def __init__(self) -> None:
        self.by_path: dict[str, Receiver] = {}
        self._loop = asyncio.new_event_loop()
        self._never = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.port = 0

    def add(self, path: str, answer: Callable[[int], Answer] = lambda _n: 200) -> Receiver:
        return self.by_path.setdefault(path, Receiver(path, answer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                original = dict(line.split(": ", 1) for line in head[1:] if line)
                headers["webhook-signature"] = next(
                    value for key, value in original.items() if key.lower() == "webhook-signature"
                )
                body = await reader.readexactly(int(headers["content-length"]))
                receiver = self.by_path[head[0].split()[1]]
                answer = receiver.judge(headers, body)
                if answer == 200:
                    await asyncio.sleep(receiver.delay_s(receiver.requests))
                    if reader.at_eof():
                        break
                    receiver.accept(headers, body)
                if not isinstance(answer, int):
                    await self._misbehave(writer, answer)
                    break
                extra = "Retry-After: 1\r\n" if answer == 429 else ""
                reply = f"HTTP/1.1 {answer} X\r\n{extra}Content-Length: 0\r\n\r\n"
                writer.write(reply.encode())
                await writer.drain()
        writer.close()

    async def _misbehave(self, writer: asyncio.StreamWriter, manner: str | None) -> None:
        """Answer in a way that is no answer; the connection is closed after it."""
        if manner is None:
            await self._never.wait()
        writer.write(_MANNERS[manner or ""])
        await writer.drain()
        while manner == "drip":
            writer.write(b".")
            await writer.drain()
            await asyncio.sleep(0.05)

    def __enter__(self) -> Receivers:
        async def start() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]

        self._loop.run_until_complete(start())
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        assert self._server is not None
        self._server.close()

        async def finish() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._loop.run_until_complete(finish())
        self._loop.close()


# -- processes ------------------------------------------------------------------------------------


class Process:
    """A running `outbox`; its log goes to a file, so that nothing blocks it."""

    def __init__(self, args: tuple[str, ...], environ: dict[str, str], module: str = "cli") -> None:
        self._log = TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *args],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            cwd="/",
        )

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return os.pread(self._log.fileno(), 50_000_000, 0).decode()

    def count(self, event: str) -> int:
        """How many log lines of one event there are."""
        return self.said.count(f'"event":"{event}"') + self.said.count(f'"event": "{event}"')

    def wait_for(self, event: str, count: int = 1) -> None:
        def logged() -> bool:
            assert self.popen.poll() is None, self.said[-3000:]
            return self.count(event) >= count

        wait_until(logged)

    def kill(self) -> None:
        """As `kill -9`."""
        self.popen.kill()
        self.popen.wait()

    def terminate(self) -> None:
        self.popen.send_signal(signal.SIGTERM)

    def ended(self, within_s: float = WITHIN_S) -> int:
        try:
            return self.popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end: {self.said[-3000:]}") from None

    def close(self) -> None:
        """End it now: by two signals, so that it can still write what was measured, else by -9."""
        if self.popen.poll() is None:
            self.terminate()
            self.popen.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(3.0)
        if self.popen.poll() is None:
            self.kill()
        self._log.close()


# -- the town -------------------------------------------------------------------------------------


class Town:
    """One installation. Everything that it started ends with it."""

    def __init__(self, url: str, broker_url: str, receivers: Receivers, lease: str = "30s") -> None:
        self.url = url
        self.receivers = receivers
        self.key = KeyRing.generate_text()
        self.processes: list[Process] = []
        self.environ = {
            "OUTBOX_DATABASE_URL": url,
            "OUTBOX_BROKER_URL": broker_url,
            "OUTBOX_SECRET_KEY": self.key,
            "OUTBOX_EGRESS_ALLOW_CIDRS": "127.0.0.0/8",
            "OUTBOX_EGRESS_ALLOW_HTTP": "true",
            "OUTBOX_EGRESS_PORTS": str(receivers.port),
            "OUTBOX_LOG_FORMAT": "json",
            "OUTBOX_LEASE": lease,
        }

    def start(self, *args: str, ready: str | None = None, **environ: str) -> Process:
        """Start `outbox ARGS` and wait until it works."""
        self.processes.append(Process(args, {**self.environ, **environ}))
        waited = {"run": "relay.connected", "worker": "worker.started"}
        self.processes[-1].wait_for(ready or waited[args[0]])
        return self.processes[-1]

    def endpoint(
        self,
        path: str,
        org: str = "acme",
        answer: Callable[[int], Answer] = lambda _n: 200,
        *,
        retry: str = "exp:base=200ms,factor=1.2,cap=1s,attempts=200",
        order: str | None = None,
        **fields: Any,
    ) -> Receiver:
        """A receiver and an endpoint of one organization that gets all its events there."""
        receiver = self.receivers.add(path, answer)
        spec = EndpointSpec(
            f"http://127.0.0.1:{self.receivers.port}{path}",
            org,
            Rule(("*",), retry=retry, order=order),
            **fields,
        )
        with connect(self.url, autocommit=True) as connection:
            added = add_endpoint(connection, spec, KeyRing.from_text(self.key))
        assert added.secret is not None
        receiver.secret = added.secret
        return receiver

    def emit(self, count: int = 1, org: str = "acme") -> None:
        query = (
            "SELECT outbox.emit('orders.paid', to_json(i), %s) FROM generate_series(1, %s::int) i"
        )
        with psycopg.connect(self.url) as connection:
            connection.execute(query, [org, count])

    def write(self, sessions: int, transactions: int, each: int, orgs: tuple[str, ...]) -> None:
        """Several sessions emit beside each other, in transactions of `each` events."""

        def session(number: int) -> None:
            for n in range(transactions):
                self.emit(each, orgs[(number + n) % len(orgs)])

        threads = [Thread(target=session, args=(number,)) for number in range(sessions)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def one(self, query: str) -> Any:
        with psycopg.connect(self.url) as connection:
            return connection.cursor(row_factory=scalar_row).execute(query.encode()).fetchone()

    def owed(self) -> int:
        """Pending events and live deliveries."""
        return int(
            self.one(
                "SELECT (SELECT count(*) FROM outbox.pending)"
                " + (SELECT count(*) FROM outbox.delivery)"
            )
        )

    def wait_until_settled(self) -> None:
        wait_until(lambda: self.owed() == 0)

    def lost(self) -> int:
        """Matched and in none of the places where a delivery may rest."""
        return int(
            self.one(
                "SELECT count(*) FROM outbox.journal j, jsonb_array_elements(j.detail) i"
                " WHERE j.fact = 'routed' AND j.detail IS NOT NULL"
                " AND NOT EXISTS (SELECT FROM outbox.delivery d"
                "                 WHERE d.id = (i ->> 'delivery')::uuid)"
                " AND NOT EXISTS (SELECT FROM outbox.dead_letter d"
                "                 WHERE d.id = (i ->> 'delivery')::uuid)"
                " AND NOT EXISTS (SELECT FROM outbox.journal k"
                "                 WHERE k.fact = 'delivered'"
                "                 AND k.delivery_id = (i ->> 'delivery')::uuid)"
            )
        )

    def check(self, *, dead: int = 0, duplicates_max: int = 0) -> None:
        """Nothing lost, nothing routed twice, signatures right, so few duplicates, so many dead."""
        assert self.lost() == 0
        routed = "SELECT count(*) - count(DISTINCT event_id) FROM outbox.journal"
        assert self.one(routed + " WHERE fact = 'routed'") == 0
        assert self.one("SELECT count(*) FROM outbox.dead_letter") == dead
        told = self.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'")
        everyone = self.receivers.by_path.values()
        assert sum(len(receiver.answered) for receiver in everyone) >= told
        assert sum(receiver.wrong + receiver.untimely for receiver in everyone) == 0
        assert sum(receiver.duplicates for receiver in everyone) <= duplicates_max

    def close(self) -> None:
        for process in self.processes:
            process.close()


@contextmanager
def town_over(url: str, broker_url: str = "memory://", lease: str = "30s") -> Iterator[Town]:
    """A town over a database and a broker."""
    with Receivers() as receivers:
        town = Town(url, broker_url, receivers, lease)
        try:
            yield town
        finally:
            town.close()

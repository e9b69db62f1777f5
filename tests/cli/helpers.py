"""What the tests of the command line share: a result, a running process, a receiver."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryFile
from threading import Condition, Event, Thread
from time import monotonic, sleep
from typing import Any, Protocol, Self

import psycopg

from outbox.secrets import KeyRing, secret_context

WITHIN_S = 30.0


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its output, which must be one JSON document."""
        return json.loads(self.out)


class Outbox(Protocol):
    """One command, with settings as keywords."""

    def __call__(self, *args: str, **environ: str) -> Ran: ...


def wait_until(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    until = monotonic() + within_s
    while not condition():
        assert monotonic() < until, "the condition did not come true"
        sleep(0.01)


class Process:
    """A running `outbox`; what it says on stderr is kept in a file, so that nothing blocks it."""

    def __init__(self, args: tuple[str, ...], environ: dict[str, str]) -> None:
        self._err = TemporaryFile("w+")  # noqa: SIM115 (closed in close)
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", "cli", *args],
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._err,
        )

    @property
    def said(self) -> str:
        """Everything on stderr so far."""
        return os.pread(self._err.fileno(), 10_000_000, 0).decode()

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of one event so far."""
        lines = self.said.splitlines(keepends=True)
        parsed = [json.loads(line) for line in lines if line.startswith("{") and line[-1] == "\n"]
        return [line for line in parsed if line.get("event") == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until it has logged an event so often."""

        def logged() -> bool:
            assert self.popen.poll() is None or len(self.events(name)) >= count, self.said
            return len(self.events(name)) >= count

        wait_until(logged)
        return self.events(name)

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def ended(self) -> int:
        """Wait for its end; the exit code."""
        try:
            return self.popen.wait(WITHIN_S)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it did not end: {self.said}") from None

    def close(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        self._err.close()


class Receiver:
    """Answers webhooks with 200 once its gate is open, and remembers them."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.entered = 0
        self.gate = Event()
        self.gate.set()
        self._changed = Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                outer._came(body, {k.lower(): v for k, v in self.headers.items()})
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 1024  # a burst must not be refused

        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _came(self, body: bytes, headers: dict[str, str]) -> None:
        with self._changed:
            self.entered += 1
            self._changed.notify_all()
        self.gate.wait(WITHIN_S)
        with self._changed:
            self.bodies.append(body)
            self.headers.append(headers)
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until so many webhooks were answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.bodies) >= count, WITHIN_S), (
                f"{len(self.bodies)} of {count} arrived"
            )

    def wait_for_entered(self, count: int) -> None:
        """Wait until so many webhooks came in, answered or not."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.entered >= count, WITHIN_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Shop:
    """A database with an endpoint, and the settings to deliver to it."""

    def __init__(self, url: str, key: str, receiver: Receiver) -> None:
        self.url = url
        self.environ = {
            "OUTBOX_DATABASE_URL": url,
            "OUTBOX_SECRET_KEY": key,
            "OUTBOX_EGRESS_ALLOW_CIDRS": "127.0.0.0/8",
            "OUTBOX_EGRESS_ALLOW_HTTP": "true",
            "OUTBOX_EGRESS_PORTS": str(receiver.port),
        }
        ring = KeyRing.from_text(key)
        with psycopg.connect(url) as connection:
            self.endpoint = _number(
                connection,
                "INSERT INTO outbox.endpoint (org_id, url) VALUES ('acme', %s) RETURNING id",
                [f"http://127.0.0.1:{receiver.port}/hook"],
            )
            secret = _number(connection, "SELECT nextval('outbox.object_id')", [])
            sealed = ring.seal(b"s" * 32, context=secret_context("acme", str(secret), "secret"))
            connection.execute(
                "INSERT INTO outbox.secret (id, endpoint_id, kind, sealed)"
                " VALUES (%s, %s, 'hmac', %s)",
                [secret, self.endpoint, sealed],
            )
            connection.execute(
                "INSERT INTO outbox.subscription (kind, endpoint_id, lane, org_id, patterns, retry)"
                " VALUES ('webhook', %s, %s, 'acme', '{orders.*}', '5s')",
                [self.endpoint, self.endpoint],
            )

    def emit(self, count: int = 1, deliver_in: str = "0 s") -> None:
        self.execute(
            "SELECT outbox.emit('orders.paid', '{}'::json, org_id => 'acme',"
            " deliver_at => clock_timestamp() + %s::interval) FROM generate_series(1, %s)",
            [deliver_in, count],
        )

    def execute(self, query: str, params: list[Any] | None = None) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(query.encode(), params)

    def one(self, query: str) -> Any:
        with psycopg.connect(self.url) as connection:
            row = connection.execute(query.encode()).fetchone()
            assert row is not None
            return row[0]

    def states(self) -> list[str]:
        """The states of all live deliveries."""
        with psycopg.connect(self.url) as connection:
            rows = connection.execute("SELECT state FROM outbox.delivery ORDER BY 1").fetchall()
            return [str(row[0]) for row in rows]


def _number(connection: psycopg.Connection[Any], query: str, params: list[Any]) -> int:
    row = connection.execute(query.encode(), params).fetchone()
    assert row is not None
    return int(row[0])


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False

"""What the tests of daemons beside peers share: a captured table, processes, a judge of webhooks.

The receiver trusts nothing of ours: signatures are checked by the package `standardwebhooks`.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Self, cast

import psycopg
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from outbox.secrets import KeyRing
from tests.cli.helpers import WITHIN_S, Process, Receiver, Shop

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()  # as Shop stores it

Change = tuple[str, int]
"""What a webhook tells: the operation and the id of the row."""


class Judge:
    """Answers webhooks once its gate is open; `answer` gives the status from the attempt's number.

    Requests are told apart by `webhook-id`. One with a wrong signature is counted and answered 401.
    """

    def __init__(self) -> None:
        self.answer: Callable[[int], int] = lambda _attempt: 200
        self.gate = Event()
        self.gate.set()
        self.forged = 0
        self.requests: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.changes: Counter[Change] = Counter()
        self._lock = Lock()
        self._webhook = Webhook(SECRET)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                self.send_response(outer._judge(body, dict(self.headers.items())))
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 1024
            daemon_threads = True

            def handle_error(self, *_args: object) -> None:
                pass  # the sender was killed while its request waited

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def _judge(self, body: bytes, headers: dict[str, str]) -> int:
        try:
            self._webhook.verify(body, {name.lower(): headers[name] for name in headers})
        except WebhookVerificationError:
            with self._lock:
                self.forged += 1
            return 401
        identity = headers["webhook-id"]
        with self._lock:
            self.requests[identity] += 1
            status = self.answer(self.requests[identity])
        self.gate.wait(WITHIN_S)
        if status == 200:
            with self._lock:
                self.accepted[identity] += 1
                self.changes[_change(body)] += 1
        return status

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_args: object) -> None:
        self.gate.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _change(body: bytes) -> Change:
    data = json.loads(body)["data"]
    return data["operation"].lower(), (data["record"] or data["old_record"])["id"]


def captured_shop(url: str, judge: Judge) -> Shop:
    """A shop with the captured table `orders` that tries each delivery ten times, 250 ms apart."""
    shop = Shop(url, KeyRing.generate_text(), cast(Receiver, judge))
    shop.execute("CREATE TABLE public.orders (id int PRIMARY KEY, org text, paid bool)")
    shop.execute("SELECT outbox.watch('public.orders', org_column => 'org')")
    retry = ",".join(["250ms"] * 10)
    shop.execute("UPDATE outbox.subscription SET retry = %s", [retry])
    return shop


def insert(url: str, first: int, last: int) -> set[Change]:
    """Insert rows with these ids, each in a transaction of its own; returns what to expect."""
    with psycopg.connect(url, autocommit=True, prepare_threshold=None) as connection:
        for number in range(first, last + 1):
            connection.execute(b"INSERT INTO public.orders VALUES (%s, 'acme', false)", [number])
    return {("insert", number) for number in range(first, last + 1)}


@contextmanager
def spawning() -> Iterator[Callable[..., Process]]:
    """Start `outbox` with settings as keywords; whatever still runs at the end is killed."""
    started: list[Process] = []

    def start(*args: str, **environ: str) -> Process:
        started.append(Process(args, environ))
        return started[-1]

    try:
        yield start
    finally:
        for process in started:
            process.close()

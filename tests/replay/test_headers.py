"""What a receiver sees of a replay: the old key again, or a new one that names the first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import psycopg
import pytest

from cli import open_processors
from outbox.settings import load_settings
from outbox.signature import verify
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule
from tests.admin.helpers import RING
from tests.engine.running import until, working
from tests.replay.helpers import ALL, Past


class Received:
    """Every request: its headers in lower case, its body."""

    def __init__(self) -> None:
        self.requests: list[tuple[dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                names = [name.lower() for name in self.headers]
                assert len(names) == len(set(names)), "a header came twice"
                headers = {name.lower(): value for name, value in self.headers.items()}
                outer.requests.append((headers, body))
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"


@pytest.fixture
def received() -> Iterator[Received]:
    opened = Received()
    thread = Thread(target=opened.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield opened
    opened.server.shutdown()
    thread.join()
    opened.server.server_close()


def send(past: Past, received: Received) -> dict[str, str]:
    """Deliver what is due; the headers of the one request."""
    environ = {
        "OUTBOX_DATABASE_URL": past.url,
        "OUTBOX_EGRESS_ALLOW_CIDRS": "127.0.0.0/8",
        "OUTBOX_EGRESS_ALLOW_HTTP": "true",
        "OUTBOX_EGRESS_PORTS": received.url.split(":")[2].split("/")[0],
    }
    before = len(received.requests)
    past.route()
    leases = past.lease()

    async def run() -> None:
        async with open_processors(load_settings({}, environ)) as processors:
            async with working(past.url, processors["webhook"]) as worker:
                await worker.give(leases)
                await until(lambda: len(received.requests) > before)
                await worker.finish()

    asyncio.run(run())
    assert len(received.requests) == before + 1
    return received.requests[-1][0]


def test_a_receiver_can_tell_a_redelivery_from_a_re_emission(
    past: Past, received: Received
) -> None:
    with psycopg.connect(past.url, autocommit=True) as connection:
        secret = add_endpoint(
            connection, EndpointSpec(received.url, "acme", Rule(("*",))), RING
        ).secret
    # An event cannot pretend to be a generation.
    past.emit(headers='{"outbox-generation": "9", "outbox-original-id": "x", "outbox-a": "b"}')
    first = send(past, received)
    past.replay()
    redelivered = send(past, received)
    past.replay(ALL, "re-emit")
    emitted = send(past, received)
    past.replay(ALL, "re-emit")
    twice = send(past, received)

    def generation(headers: dict[str, Any]) -> tuple[str | None, str | None]:
        return headers.get("outbox-generation"), headers.get("outbox-original-id")

    original = first["webhook-id"]
    assert redelivered["webhook-id"] == original
    assert len({headers["webhook-id"] for headers in (first, emitted, twice)}) == 3
    assert generation(first) == generation(redelivered) == (None, None)
    assert [generation(h) for h in (emitted, twice)] == [("1", original), ("2", original)]
    assert {headers["outbox-a"] for headers, _ in received.requests} == {"b"}
    assert len({body for _, body in received.requests}) == 1
    for headers, body in received.requests:
        assert secret is not None
        assert verify(body, headers, secret).id == headers["webhook-id"]

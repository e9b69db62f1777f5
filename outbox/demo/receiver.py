"""The receivers: one HTTP server on 127.0.0.1 that verifies every signature and has its moods.

Run as a process of its own (`python -P -m outbox.demo.receiver`), told by lines of JSON. It trusts
nothing of ours: signatures are checked by the independent package `standardwebhooks`, ids and
times are counted here. A request with a wrong signature is answered 401 and remembered.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import httptools
import orjson

from outbox.demo.scene import ROLLED_BACK
from outbox.demo.told import listening, tell

TELL_S = 0.1
REPORT_ROWS = 500
BACKLOG = 4096

_OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nok"
_UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n"
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_MOODS: dict[str, bytes | None] = {
    "fails": b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n",
    "throttles": b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n",
    "hangs": None,
}


@dataclass(slots=True)
class Seen:
    """What is known of one `webhook-id`. `accepted` counts the requests answered 2xx."""

    first_at: float
    accepted: int = 0
    requests: int = 0
    verified: int = 0


@dataclass(slots=True)
class Mailbox:
    """One receiver: its keys, its mood, and everything it saw."""

    verify: Callable[[bytes, dict[str, str]], bool]
    mood: str
    mood_s: float
    clock: Callable[[], float] = time.time
    began_at: float | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    requests: int = 0
    accepted: int = 0
    troubled: int = 0
    forged: int = 0
    phantoms: int = 0
    latencies_ms: list[float] = field(default_factory=list)

    def receive(self, body: bytes, headers: dict[str, str]) -> bytes | None:
        """Judge one request; returns the response, None for none at all."""
        now = self.clock()
        self.began_at = now if self.began_at is None else self.began_at
        self.requests += 1
        known = self.seen.setdefault(headers.get("webhook-id", ""), Seen(now))
        known.requests += 1
        if not self.verify(body, headers):
            self.forged += 1
            return _UNAUTHORIZED
        known.verified += 1
        if self.moody(now):
            self.troubled += 1
            return _MOODS[self.mood]
        if known.accepted == 0:
            self.accepted += 1
            self._read(body, now)
        known.accepted += 1
        return _OK

    def moody(self, now: float) -> bool:
        """Whether the first moments, in which it misbehaves, still last."""
        return self.began_at is not None and now - self.began_at < self.mood_s

    def _read(self, body: bytes, now: float) -> None:
        event = orjson.loads(body)
        record = event["data"].get("record") or event["data"].get("old_record") or {}
        self.phantoms += record.get("note") == ROLLED_BACK
        if self.mood == "steady":
            written_at = datetime.fromisoformat(event["timestamp"]).timestamp()
            self.latencies_ms.append((now - written_at) * 1000)

    def shown(self) -> dict[str, Any]:
        """Its counts for the view. The latencies are those since the last call."""
        latencies, self.latencies_ms = self.latencies_ms, []
        return {
            "requests": self.requests,
            "accepted": self.accepted,
            "troubled": self.troubled,
            "forged": self.forged,
            "phantoms": self.phantoms,
            "moody": self.mood_s > 0 and (self.began_at is None or self.moody(self.clock())),
            "latencies_ms": latencies,
        }


def verifier(secret: str) -> Callable[[bytes, dict[str, str]], bool]:
    """Whether body and headers carry a valid signature, by `standardwebhooks`."""
    from standardwebhooks.webhooks import Webhook, WebhookVerificationError

    webhook = Webhook(secret)

    def verify(body: bytes, headers: dict[str, str]) -> bool:
        try:
            webhook.verify(body, headers, json_parse=False)
        except (WebhookVerificationError, ValueError):
            return False
        return True

    return verify


class Http(asyncio.Protocol):
    """One connection: requests in, responses out, kept open."""

    def __init__(self, mailboxes: dict[str, Mailbox]) -> None:
        self._mailboxes = mailboxes
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport | None = None
        self.on_message_begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's has the duties, not the name

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            assert self._transport is not None
            self._transport.close()

    def on_message_begin(self) -> None:
        """The parser's word that a request begins."""
        self._path = ""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """The parser's word of the path."""
        self._path += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's word of one header."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """The parser's word of a piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The parser's word that the request is whole."""
        assert self._transport is not None
        mailbox = self._mailboxes.get(self._path)
        if mailbox is None:
            self._transport.write(_NOT_FOUND)
            return
        response = mailbox.receive(b"".join(self._body), self._headers)
        if response is not None:
            self._transport.write(response)


async def serve() -> None:
    """Serve until the input ends: `open` makes mailboxes, `report` asks for everything seen."""
    loop = asyncio.get_running_loop()
    mailboxes: dict[str, Mailbox] = {}
    server = await loop.create_server(lambda: Http(mailboxes), "127.0.0.1", 0, backlog=BACKLOG)
    tell({"port": server.sockets[0].getsockname()[1]})
    reader = await listening()
    telling = asyncio.create_task(_tell_often(mailboxes))
    while line := await reader.readline():
        told = json.loads(line)
        for one in told.get("open", ()):
            box = Mailbox(verifier(one["secret"]), one["mood"], one["mood_s"])
            mailboxes[one["path"]] = box
        if told.get("open"):
            tell({"opened": len(mailboxes)})
        if told.get("report"):
            _report(mailboxes)
    telling.cancel()
    with suppress(asyncio.CancelledError):
        await telling
    server.close()


async def _tell_often(mailboxes: dict[str, Mailbox]) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        tell({"counts": {path: box.shown() for path, box in mailboxes.items()}})


def _report(mailboxes: dict[str, Mailbox]) -> None:
    rows = [
        (path, webhook_id, one.first_at, one.accepted, one.verified == one.requests)
        for path, box in mailboxes.items()
        for webhook_id, one in box.seen.items()
    ]
    for start in range(0, len(rows), REPORT_ROWS):
        tell({"seen": rows[start : start + REPORT_ROWS]})
    tell({"counts": {path: box.shown() for path, box in mailboxes.items()}, "reported": True})


def main() -> None:
    """Serve on the fastest loop there is."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve())


if __name__ == "__main__":
    main()

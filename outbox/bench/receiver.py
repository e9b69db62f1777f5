"""A receiver of webhooks on 127.0.0.1 that answers 200 to everything and costs as little as it can.

Run as a process of its own (`python -P -m outbox.bench.receiver`), ended by its closed input. It
counts requests, and by `webhook-id` those that came more than once; any line asks for the counts,
`{"times": true}` also for the moment (unix time) at which each id came first. It verifies no
signature: what that costs the receiver is not what is measured.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any, cast

from outbox.bench.serving import serve

_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_ID = re.compile(rb"\r\nwebhook-id: *([^\r]+)", re.IGNORECASE)


class Box:
    """The books."""

    def __init__(self) -> None:
        self.first_at: dict[bytes, float] = {}
        self.requests = 0

    def take(self, head: bytes) -> None:
        """Note one request."""
        self.requests += 1
        found = _ID.search(head)
        self.first_at.setdefault(found[1] if found else b"", time.time())

    def told(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The counts, and the times where they are asked for."""
        counts: dict[str, Any] = {"requests": self.requests, "received": len(self.first_at)}
        if asked.get("times"):
            counts["times"] = {key.decode("latin-1"): at for key, at in self.first_at.items()}
        return counts


class Http(asyncio.Protocol):
    """One connection, kept open. Bodies have a length, as ours do."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's has the duties, not the name

    def data_received(self, data: bytes) -> None:
        self._read += data
        while (end := self._read.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._read, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._read) < whole:
                return
            self._box.take(self._read[:end])
            self._read = self._read[whole:]
            self._transport.write(_ANSWER)


def main() -> None:
    """Serve."""
    box = Box()
    serve(lambda: Http(box), box.told)


if __name__ == "__main__":
    main()

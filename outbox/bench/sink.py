"""A mail server on 127.0.0.1 that takes everything at once and costs as little as it can.

Run as a process of its own (`python -P -m outbox.bench.sink`), ended by its closed input. It counts
messages and, by Message-ID, those that came more than once; any line asks for the counts.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from outbox.bench.serving import serve

_REPLIES = {
    b"EHLO": b"250-bench.invalid\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n"
    b"250 SIZE 33554432\r\n",
    b"HELO": b"250 bench.invalid\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}
_OK = b"250 ok\r\n"
_ID = re.compile(rb"^message-id:\s*(\S+)", re.IGNORECASE | re.MULTILINE)


class Box:
    """The books."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.requests = 0

    def take(self, message: bytes) -> None:
        """Note one message."""
        self.requests += 1
        found = _ID.search(message)
        self.seen.add(found[1] if found else b"")

    def told(self, _asked: dict[str, Any]) -> dict[str, Any]:
        """The counts."""
        return {"requests": self.requests, "received": len(self.seen)}


class Smtp(asyncio.Protocol):
    """One connection."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._read = b""
        self._in_data = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            asyncio.Transport, transport
        )  # uvloop's has the duties, not the name
        self._transport.write(b"220 bench.invalid ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._read += data
        while True:
            end = b"\r\n.\r\n" if self._in_data else b"\r\n"
            whole, found, rest = self._read.partition(end)
            if not found:
                return
            self._read = rest
            if self._in_data:
                self._in_data = False
                self._box.take(whole)
                self._transport.write(_OK)
                continue
            verb = whole[:4].upper()
            self._in_data = verb == b"DATA"
            self._transport.write(_REPLIES.get(verb, _OK))
            if verb == b"QUIT":
                self._transport.close()
                return


def main() -> None:
    """Serve."""
    box = Box()
    serve(lambda: Smtp(box), box.told)


if __name__ == "__main__":
    main()

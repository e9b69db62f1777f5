"""One SMTP connection that is open: commands in flights, replies in their order (RFC 2920).

aiosmtplib opens connections, with TLS and login; then its transport is given to this protocol,
because its own waits for each reply before the next command and drops what comes in between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import cast

from aiosmtplib import SMTP, SMTPException, SMTPResponse, SMTPServerDisconnected

REPLY_BYTES_MAX = 64 * 1024
"""One reply with all its lines; RFC 5321, 4.5.3.1.5 has 512 bytes for a line."""


class Wire(asyncio.Protocol):
    """The connection of a client that is connected. `extensions` are those of its EHLO, in lower
    case, with their parameters."""

    def __init__(self, client: SMTP) -> None:
        if client.transport is None:
            raise SMTPServerDisconnected("lost")
        # uvloop's transports have the duties of asyncio's, not their class.
        self._transport = cast("asyncio.Transport", client.transport)
        self._transport.set_protocol(self)
        self.extensions = dict(client.esmtp_extensions)
        self._read = b""
        self._lines: list[str] = []
        self._replies: deque[SMTPResponse] = deque()
        self._owed = 0
        self._arrival: asyncio.Future[None] | None = None
        self._lost: Exception | None = None

    @property
    def usable(self) -> bool:
        """Whether the next command may be sent: connected, and nothing that was not asked for."""
        return self._lost is None and self._owed == 0 and not self._transport.is_closing()

    def close(self) -> None:
        """Hang up."""
        self._transport.close()

    async def quit(self) -> None:
        """Say goodbye, for a second at most, and hang up."""
        with suppress(SMTPException, OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await self.ask(b"QUIT")
        self.close()

    async def ask(self, command: bytes) -> SMTPResponse:
        """Send a command; its reply. Raises SMTPException where the connection ends, as all do."""
        self._write([command])
        return await self._reply()

    async def converse(self, commands: Sequence[bytes]) -> AsyncIterator[SMTPResponse]:
        """The reply to each command: all are sent in one flight where the server takes that, else
        each when the one before was answered. Who stops early calls `drain`."""
        if "pipelining" not in self.extensions:
            for command in commands:
                yield await self.ask(command)
            return
        self._write(commands)
        for _ in commands:
            yield await self._reply()

    async def drain(self) -> None:
        """Await what was asked and is not wanted any more."""
        while self._owed:
            await self._reply()

    async def contents(self, data: bytes) -> SMTPResponse:
        """Send contents after a 354, ready for the wire; the reply. Nothing can come in between."""
        self._send(data, replies=1)
        return await self._reply()

    def _write(self, commands: Sequence[bytes]) -> None:
        if any(b"\r" in command or b"\n" in command or b"\0" in command for command in commands):
            raise ValueError("a command holds the end of a line")
        self._send(b"".join(command + b"\r\n" for command in commands), replies=len(commands))

    def _send(self, data: bytes, *, replies: int) -> None:
        if self._lost is not None or self._transport.is_closing():
            raise SMTPServerDisconnected(str(self._lost or "the connection is closed"))
        self._owed += replies
        self._transport.write(data)

    async def _reply(self) -> SMTPResponse:
        while not self._replies:
            if self._lost is not None:
                raise self._lost
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        self._owed -= 1
        return self._replies.popleft()

    # -- asyncio calls ----------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Cut it into replies."""
        self._read += data
        *lines, self._read = self._read.split(b"\n")
        for line in lines:
            self._take(line.rstrip(b"\r"))
        if len(self._read) + sum(map(len, self._lines)) > REPLY_BYTES_MAX:
            self._fail(SMTPException("a reply has no end"))
        if len(self._replies) > self._owed:
            # Most likely that it is about to hang up. Nothing can be asked any more.
            self._fail(SMTPServerDisconnected(self._replies[-1].message))
        self._wake()

    def _take(self, line: bytes) -> None:
        text = line.decode("utf-8", "surrogateescape")
        if not (line[:3].isdigit() and line[3:4] in {b"", b" ", b"-"}):
            self._fail(SMTPException(f"not a reply of SMTP: {text[:100]}"))
            return
        self._lines.append(text[4:].strip())
        if line[3:4] != b"-":
            self._replies.append(SMTPResponse(int(line[:3]), "\n".join(self._lines)))
            self._lines = []

    def connection_lost(self, error: Exception | None) -> None:
        """Nobody waits for a reply that cannot come."""
        self._fail(SMTPServerDisconnected(str(error or "the server hung up")))

    def _fail(self, error: Exception) -> None:
        if self._lost is None:
            self._lost = error
        self._transport.close()
        self._wake()

    def _wake(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

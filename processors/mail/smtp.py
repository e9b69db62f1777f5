"""Kept connections to the operator's SMTP server, and one transaction over one of them.

The egress guard has no say here: the server is named by the operator's setting alone, and nothing a
tenant can write changes where these connections go.

Promises: TLS as the setting says, verified, or no connection; a transaction reports for each
recipient what the server said of it, and whether the contents may have arrived where the connection
ended early; a connection that was left in the middle is never used again.

Sender and recipients go in one flight where the server takes that. What follows does not: the
contents may only be sent when it is committed that they may have been.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPException,
    SMTPResponse,
    SMTPServerDisconnected,
)

from outbox import faults
from outbox.recipients import Recipient, judged, readable
from outbox.smtp_url import SmtpServer
from processors.mail.wire import Wire

DOWN_S = 2.0
"""How long nobody tries again to connect after it failed: what waits fails with the same error."""
CONNECT_S_MAX = 20.0
ENVELOPE_S_MAX = 120.0
DATA_S_MAX = 300.0
"""How long the envelope and the contents may take. A clock for each command would cost a tenth of
the time of a message; RFC 5321, 4.5.3.2 asks for more patience than workers have."""

LOST = (SMTPException, OSError, TimeoutError, ssl.SSLError)
"""Everything that a connection that fails raises."""


class ServerUnusable(Exception):
    """No connection can be had: the operator's matter, and no recipient's. `reason` is a code."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Envelope:
    """What one transaction sends. `people` are numbers and addresses."""

    sender: str
    people: Sequence[tuple[int, str]]
    data: bytes = field(repr=False)
    smtputf8: bool = False


@dataclass(slots=True)
class Sent:
    """By number of recipient, the state and the server's reply, of those about whom it is known."""

    results: dict[int, tuple[Recipient, str]] = field(default_factory=dict)

    def note(self, numbers: Sequence[int], state: Recipient, reply: str) -> None:
        for n in numbers:
            self.results[n] = (state, readable(reply))


Commit = Callable[[Sequence[int]], Awaitable[bool]]
"""Called with the accepted recipients before the contents are sent; False calls it off."""


@dataclass(slots=True, eq=False)
class _Kept:
    wire: Wire
    used: int = 0
    idle_since: float = 0.0


class Pool:
    """Connections to one server."""

    def __init__(self, server: SmtpServer, tls: ssl.SSLContext | None) -> None:
        self._server = server
        self._tls = tls
        self._free: list[_Kept] = []
        self._permits = asyncio.Semaphore(server.connections)
        self._down: tuple[float, ServerUnusable] | None = None
        self._reaper: asyncio.TimerHandle | None = None

    async def send(self, envelope: Envelope, commit: Commit) -> Sent:
        """One transaction. Raises ServerUnusable if no connection can be had."""
        async with self._permits:
            while True:
                async with self._connection() as kept:
                    fresh = kept.used == 0
                    kept.used += 1
                    transaction = _Transaction(kept.wire, envelope, commit)
                    await transaction.run()
                # A kept connection that the server has closed meanwhile says nothing about the
                # message: another one is opened. Each round uses one up, so this ends.
                if transaction.begun or fresh:
                    return transaction.sent

    async def close(self) -> None:
        """Say goodbye on the connections that are kept."""
        if self._reaper is not None:
            self._reaper.cancel()
        free, self._free = self._free, []
        await asyncio.gather(*(kept.wire.quit() for kept in free))

    # -- connections ----------------------------------------------------------------------------

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[_Kept]:
        kept = self._taken() or _Kept(await self._connect())
        whole = False
        try:
            yield kept
            whole = True
        finally:
            if not whole or not kept.wire.usable:
                kept.wire.close()
            elif kept.used >= self._server.messages:
                await kept.wire.quit()
            else:
                kept.idle_since = time.monotonic()
                self._free.append(kept)
                self._reap_later()

    def _taken(self) -> _Kept | None:
        """The one used last: the others grow idle and are given up."""
        while self._free:
            kept = self._free.pop()
            if kept.wire.usable:
                return kept
        return None

    def _reap_later(self) -> None:
        if self._reaper is None:
            loop = asyncio.get_running_loop()
            self._reaper = loop.call_later(self._server.idle.total_seconds(), self._reap)

    def _reap(self) -> None:
        self._reaper = None
        limit = time.monotonic() - self._server.idle.total_seconds()
        idle = [kept for kept in self._free if kept.idle_since <= limit]
        self._free = [kept for kept in self._free if kept.idle_since > limit]
        for kept in idle:
            kept.wire.close()
        if self._free:
            self._reap_later()

    async def _connect(self) -> Wire:
        if self._down is not None and time.monotonic() < self._down[0]:
            raise ServerUnusable(self._down[1].reason, str(self._down[1]))
        server = self._server
        client = SMTP(
            hostname=server.host,
            port=server.port,
            username=server.user,
            password=server.password,
            local_hostname=_own_name(),
            timeout=CONNECT_S_MAX,
            use_tls=server.tls == "implicit",
            start_tls=server.tls == "starttls",
            tls_context=self._tls,
        )
        try:
            await client.connect()
            if client.is_ehlo_or_helo_needed:
                await client.ehlo()
            wire = Wire(client)
        except LOST as error:
            client.close()
            unusable = _unusable(server, error)
            self._down = (time.monotonic() + DOWN_S, unusable)
            raise unusable from error
        except BaseException:
            client.close()
            raise
        self._down = None
        return wire


def _unusable(server: SmtpServer, error: BaseException) -> ServerUnusable:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return ServerUnusable("smtp_tls", readable(f"TLS with {server.host} fails: {cause}"))
        cause = cause.__cause__
    text = readable(str(error))
    if isinstance(error, SMTPAuthenticationError):
        return ServerUnusable("smtp_auth", f"{server.host} refuses the login: {text}")
    if server.tls == "starttls" and "STARTTLS" in text.upper():
        return ServerUnusable("smtp_tls", f"{server.host} does not offer STARTTLS: {text}")
    if isinstance(error, SMTPConnectError | TimeoutError | OSError):
        return ServerUnusable("smtp_unreachable", f"{server.host} cannot be reached: {text}")
    return ServerUnusable("smtp_refused", f"{server.host} takes no connection: {text}")


def _own_name() -> str:
    name = socket.gethostname()
    return name if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", name) else "localhost"


class _Transaction:
    """MAIL, RCPT for each, DATA. `begun` says that the server answered to MAIL."""

    def __init__(self, wire: Wire, envelope: Envelope, commit: Commit) -> None:
        self._wire = wire
        self._envelope = envelope
        self._commit = commit
        self._past_data = False
        self.begun = False
        self.sent = Sent()

    async def run(self) -> None:
        """Everything that the connection makes of it is in `sent`."""
        open_numbers = [n for n, _ in self._envelope.people]
        try:
            async with asyncio.timeout(ENVELOPE_S_MAX):
                accepted = await self._offer()
            if accepted:
                async with asyncio.timeout(DATA_S_MAX):
                    await self._contents(accepted)
        except LOST as error:
            self._wire.close()
            left = [n for n in open_numbers if n not in self.sent.results]
            state = Recipient.UNKNOWN if self._past_data else Recipient.DEFERRED
            self.sent.note(
                left, state, f"the connection ended: {str(error) or type(error).__name__}"
            )

    async def _offer(self) -> list[int]:
        """The recipients that the server takes, committed; none if nothing is to be sent."""
        numbers = [n for n, _ in self._envelope.people]
        if not self._fits(numbers):
            self.begun = True
            return []
        people = [b"RCPT TO:<" + address.encode() + b">" for _, address in self._envelope.people]
        replies = self._wire.converse([self._mail(), *people])
        reply = await anext(replies)
        self.begun = reply.code != 421  # it was about to hang up anyway
        if reply.code != 250:
            self._refuse(numbers, reply)
            await self._wire.drain()
            return []
        accepted = []
        for n in numbers:
            reply = await anext(replies)
            if 250 <= reply.code < 260:
                accepted.append(n)
            else:
                self._refuse([n], reply)
            if reply.code == 421:  # it hangs up
                raise SMTPServerDisconnected(reply.message)
        if accepted and await self._commit(accepted):
            return accepted
        if self._wire.usable:
            await self._wire.ask(b"RSET")
        return []

    def _mail(self) -> bytes:
        envelope, words = self._envelope, [b"MAIL FROM:<" + self._envelope.sender.encode() + b">"]
        if "size" in self._wire.extensions:
            words.append(b"SIZE=%d" % len(envelope.data))
        if envelope.smtputf8:
            words.append(b"SMTPUTF8")
        return b" ".join(words)

    def _fits(self, numbers: list[int]) -> bool:
        """What the server said that it does not take is not offered (RFC 1870, RFC 6531)."""
        limit = self._wire.extensions.get("size", "").split()
        if limit and limit[0].isdigit() and 0 < int(limit[0]) < len(self._envelope.data):
            text = f"552 5.3.4 larger than the server's limit of {limit[0]} bytes"
            self.sent.note(numbers, Recipient.REJECTED, text)
            return False
        if self._envelope.smtputf8 and "smtputf8" not in self._wire.extensions:
            text = "550 5.6.7 the server has no SMTPUTF8, which an address needs"
            self.sent.note(numbers, Recipient.REJECTED, text)
            return False
        return True

    async def _contents(self, accepted: list[int]) -> None:
        faults.passing("before", "data")
        reply = await self._wire.ask(b"DATA")
        if reply.code != 354:
            self._refuse(accepted, reply)
            await self._wire.ask(b"RSET")
            return
        self._past_data = True
        reply = await self._wire.contents(stuffed(self._envelope.data))
        faults.passing("after", "data")
        if 250 <= reply.code < 260:
            self.sent.note(accepted, Recipient.SENT, f"{reply.code} {reply.message}")
        else:
            self._refuse(accepted, reply)

    def _refuse(self, numbers: Sequence[int], reply: SMTPResponse) -> None:
        # A reply that is no refusal in its place is a server that has lost its way: not now.
        state = judged(reply.code, reply.message) if reply.code >= 400 else Recipient.DEFERRED
        self.sent.note(numbers, state, f"{reply.code} {reply.message}")


def stuffed(data: bytes) -> bytes:
    """Contents as they go over the wire: a dot before a dot that begins a line, the last dot."""
    if data.startswith(b"."):
        data = b"." + data
    return data.replace(b"\r\n.", b"\r\n..") + (b".\r\n" if data.endswith(b"\n") else b"\r\n.\r\n")

"""One HTTP/1.1 connection of the client: writes a request, reads one response.

Owns the parsing and the caps. Promises that every request ends in exactly one of: a Response, a
RequestFailed with a reason, or cancellation; that a request is written once and never again; and
that a connection is given back to the pool only when the exchange ended cleanly on both sides.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from processors.failures import Reason, RequestFailed

HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 64 * 1024
BODY_BYTES_KEPT = 4096
# Framing around the body (chunk sizes, extensions, trailers) is not body; it has a cap as well.
WIRE_BYTES_MAX = 1024 * 1024
IDLE_S_MAX = 4.0
# Below this an idle connection is taken as it is; above, one system call looks for a close that
# the loop has not seen yet. Receivers close what was idle for a second or more; at 6,500 webhooks
# a second half of the connections are idle for less than 19 ms, one in seven for more than 50, one
# in fifty for more than 500.
PEEK_AFTER_S = 0.5


class Response:
    """What came back. `retry_after` is the header's value as sent; `body` the first 4 KiB as
    sent; `truncated` says whether more was sent than was read; `duration_s` runs from the call
    to the last byte."""

    __slots__ = ("body", "duration_s", "retry_after", "status", "truncated")

    def __init__(
        self, status: int, retry_after: str | None, body: bytes, truncated: bool, duration_s: float
    ) -> None:
        self.status = status
        self.retry_after = retry_after
        self.body = body
        self.truncated = truncated
        self.duration_s = duration_s

    @property
    def body_snippet(self) -> str:
        """The kept body as text that PostgreSQL takes in jsonb: no NUL, no lone surrogate."""
        return self.body.decode("utf-8", "replace").replace("\0", "\ufffd")


class Connection(asyncio.Protocol):
    """A connection to one vetted address. Made by the client, used by one request at a time."""

    __slots__ = (
        "_armed_at",
        "_body",
        "_body_size",
        "_complete",
        "_deadline",
        "_framed",
        "_head_done",
        "_head_size",
        "_loop",
        "_on_idle",
        "_on_lost",
        "_parser",
        "_received",
        "_retry_after",
        "_reusable",
        "_sent_at",
        "_sock",
        "_status",
        "_timer",
        "_transport",
        "_truncated",
        "_used",
        "_waiter",
        "idle_s_max",
        "idle_since",
        "key",
        "opened_at",
    )

    _complete: bool
    _head_done: bool
    _framed: bool
    _truncated: bool
    _reusable: bool
    _head_size: int
    _retry_after: str | None

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        key: tuple[str, str, int],
        on_idle: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.key = key
        self.opened_at = self.idle_since = loop.time()
        self.idle_s_max = IDLE_S_MAX
        self._loop = loop
        self._sock = sock
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._armed_at = self._deadline = self._sent_at = 0.0
        self._used = False
        self._reset()

    def send(
        self, head: bytes, body: bytes, started: float, deadline: float
    ) -> asyncio.Future[Response]:
        """Write one request; the future holds its response. `started` and `deadline` are loop
        times."""
        assert self._waiter is None, "one request at a time"
        waiter: asyncio.Future[Response] = self._loop.create_future()
        if self._transport is None or self._transport.is_closing():
            # Closed between its making and now: nothing was written.
            waiter.set_exception(self._closed_early())
            return waiter
        self._waiter = waiter
        self._sent_at = started
        self._deadline = deadline
        if self._timer is None or deadline < self._armed_at:
            self._arm(deadline)
        message = b"%bcontent-length: %d\r\n\r\n" % (head, len(body))
        if len(body) <= BODY_BYTES_MAX:
            self._transport.write(message + body)
        else:
            self._transport.write(message)
            self._transport.write(body)
        return waiter

    def withdraw(self, waiter: asyncio.Future[Response]) -> None:
        """The caller of `send` is gone. Closes, unless its exchange has ended meanwhile and the
        connection already serves another."""
        if self._waiter is waiter:
            self.abort()

    def cancel(self) -> None:
        """Close at once; a request under way ends in CancelledError."""
        if self._waiter is not None:
            self._waiter.cancel()
        self.abort()

    def abort(self) -> None:
        """Close at once. A request under way must have been settled or given up before."""
        self._waiter = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def usable(self, now: float, age_s_max: float) -> bool:
        """Whether a next request may be written to this idle connection."""
        assert self._transport is not None
        if self._transport.is_closing() or now - self.opened_at > age_s_max:
            return False
        idle_s = now - self.idle_since
        return idle_s < self.idle_s_max and (idle_s < PEEK_AFTER_S or self._is_silent())

    # What the loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast: uvloop's transports do not derive from asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            self.abort()  # nobody asked for anything: the two sides are out of step
            return
        self._received += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            self._complete_or_fail("the receiver switches protocols")
        except HttpParserError:
            self._complete_or_fail("the answer is not HTTP/1.1")
        if self._head_size > HEAD_BYTES_MAX or (
            self._received > HEAD_BYTES_MAX and not (self._head_done or self._complete)
        ):
            self._fail(Reason.RESPONSE_TOO_LARGE, "the response header is larger than 64 KiB")
        elif self._complete:
            self._finish()
        elif self._received > WIRE_BYTES_MAX:
            self._cut()
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiter is None:
            return
        if self._received == 0 and (self._used or exc is None):
            self._settle(self._closed_early())
        elif isinstance(exc, ssl.SSLError):
            self._settle(RequestFailed(Reason.TLS_ERROR, "the TLS connection broke"))
        elif exc is not None:
            self._settle(RequestFailed(Reason.CONNECTION_RESET, "the connection was reset"))
        elif self._head_done and not self._framed:
            self._settle(self._response())  # RFC 9112, 6.3: the close ends the body
        else:
            self._settle(
                RequestFailed(Reason.BAD_RESPONSE, "the connection ended inside the response")
            )

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self._complete:
            self._reusable = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name)
        self._head_size += size + len(value) + 4
        if self._head_done or self._complete:
            return  # trailers say nothing to us
        if size == 14 and name.lower() == b"content-length":
            self._framed = True
        elif size == 17 and name.lower() == b"transfer-encoding":
            self._framed = b"chunked" in value.lower()
        elif size == 11 and name.lower() == b"retry-after":
            self._retry_after = value[:128].decode("latin-1")
        elif size == 10 and name.lower() == b"keep-alive":
            self._obey_keep_alive(value)

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        self._status = self._parser.get_status_code()
        if self._status >= 200:
            self._head_done = True
        else:
            self._framed, self._retry_after = False, None  # those spoke of the 1xx only

    def on_body(self, data: bytes) -> None:
        if self._complete:
            return
        kept = len(self._body)
        if kept < BODY_BYTES_KEPT:
            self._body += data[: BODY_BYTES_KEPT - kept]
        self._body_size += len(data)
        if self._body_size > BODY_BYTES_MAX:
            self._cut()

    def on_message_complete(self) -> None:
        # RFC 9110, 15.2: any number of 1xx come before the answer; the header cap bounds them.
        if self._status == 101:
            self._fail(Reason.BAD_RESPONSE, "the receiver switches protocols")
        if self._complete or not self._head_done:
            return
        self._complete = True
        self._reusable = self._parser.should_keep_alive()

    # Inside.

    def _reset(self) -> None:
        self._status = self._received = self._head_size = self._body_size = 0
        self._body = b""
        self._retry_after = None
        self._head_done = self._framed = self._complete = self._truncated = False
        self._reusable = False

    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed_at = deadline
        self._timer = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        """The timer of an earlier request may ring: it is only moved when somebody waits, so a
        request costs no timer of its own."""
        self._timer = None
        if self._waiter is None:
            return
        if self._loop.time() < self._deadline:
            self._arm(self._deadline)
        else:
            self._fail(Reason.TIMEOUT, "the receiver did not answer in time")

    def _cut(self) -> None:
        """Enough was read: the status is known, the rest of the body is not wanted."""
        self._complete = self._truncated = True
        self._reusable = False

    def _complete_or_fail(self, message: str) -> None:
        self._reusable = False
        if not self._complete:
            self._fail(Reason.BAD_RESPONSE, message)

    def _finish(self) -> None:
        if self._waiter is None:
            return
        assert self._transport is not None
        reusable = (
            self._reusable
            and self.idle_s_max > 0
            # An answer before the whole request was read: the rest is still on its way.
            and self._transport.get_write_buffer_size() == 0
        )
        self._settle(self._response())
        if reusable:
            self._used = True
            self._reset()
            self.idle_since = self._loop.time()
            self._on_idle(self)
        else:
            self.abort()

    def _response(self) -> Response:
        return Response(
            self._status,
            self._retry_after,
            self._body,
            self._truncated,
            self._loop.time() - self._sent_at,
        )

    def _fail(self, reason: Reason, message: str) -> None:
        self._settle(RequestFailed(reason, message))
        self.abort()

    def _settle(self, result: Response | RequestFailed) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is None or waiter.done():
            return
        if isinstance(result, Response):
            waiter.set_result(result)
        else:
            waiter.set_exception(result)

    def _closed_early(self) -> RequestFailed:
        again = "kept-alive " if self._used else ""
        return RequestFailed(
            Reason.CONNECTION_CLOSED, f"the {again}connection was closed before any answer"
        )

    def _obey_keep_alive(self, value: bytes) -> None:
        """Stay a second inside the receiver's `timeout=N`, to lose fewer races with its close."""
        for part in value.split(b","):
            name, _, number = part.strip().partition(b"=")
            if name.strip().lower() == b"timeout" and number.strip().isdigit():
                self.idle_s_max = min(IDLE_S_MAX, int(number[:9]) - 1.0)

    def _is_silent(self) -> bool:
        """No close and no stray byte lies in the socket."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        return False

"""The HTTP client of the webhook processor: a pool of connections behind the egress guard.

Owns resolving, judging, connecting and reuse. It exists because an attempt must be one request:
no client that resends by itself, follows redirects, reads proxy settings from the environment or
connects to an address the guard has not seen. One wall-clock deadline covers DNS, connect, TLS,
writing, the header and the last byte of the body.

A client holds exactly one policy, so connections of different policies never meet.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
from collections.abc import Sequence

from outbox.errors import ConfigurationError, UsageError
from processors.connection import Connection, Response
from processors.egress import Address, Destination, EgressPolicy, parse_destination, vetted
from processors.failures import Reason, RequestFailed
from processors.resolver import Resolver

AGE_S_MAX = 300.0
IDLE_MAX = 4096
IDLE_PER_HOST_MAX = 1024
"""A worker takes deliveries by the hundred: with fewer kept, every batch would close what the next
one has to open again (102 against 194 us of CPU a delivery)."""
SWEEP_S = 1.0
ADDRESSES_MAX = 4

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, 5.6.2: token
_VALUE = re.compile(rb"[\t\x20-\x7e]*")
_LOCAL_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})


class HttpClient:
    """POSTs to vetted destinations over kept-alive connections. Use it on one event loop.

    Raises ConfigurationError when the policy's CA file cannot be read.
    """

    def __init__(
        self,
        policy: EgressPolicy,
        resolver: Resolver,
        *,
        idle_max: int = IDLE_MAX,
        idle_per_host_max: int = IDLE_PER_HOST_MAX,
        age_s_max: float = AGE_S_MAX,
    ) -> None:
        self.policy = policy
        self._resolver = resolver
        self._idle_max = idle_max
        self._idle_per_host_max = idle_per_host_max
        self._age_s_max = age_s_max
        self._idle: dict[tuple[str, str, int], list[Connection]] = {}
        self._idle_count = 0
        self._open: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        # Loading authorities takes milliseconds: only when needed, or to find a bad file at once.
        self._tls = None if policy.ca_file is None else _tls_context(policy.ca_file)
        self._closed = False

    async def post(
        self,
        destination: Destination | str,
        headers: Sequence[tuple[bytes, bytes]] | bytes,
        body: bytes,
        deadline: float,
    ) -> Response:
        """Send one request, once. `headers` may be the bytes `request_head` made; `deadline` is a
        loop time. Raises RequestFailed, or DestinationRefused when the guard says no."""
        assert not self._closed, "the client is closed"
        if isinstance(destination, str):
            destination = parse_destination(destination, self.policy)
        head = headers if isinstance(headers, bytes) else request_head(destination, headers)
        started = asyncio.get_running_loop().time()
        if started >= deadline:
            raise RequestFailed(Reason.TIMEOUT, "no time was left to send the request")
        connection = self._take_idle(destination.key, started)
        if connection is None:
            connection = await self._connect(destination, deadline)
        waiter = connection.send(head, body, started, deadline)
        try:
            return await waiter
        except asyncio.CancelledError:
            connection.withdraw(waiter)
            raise

    async def check(self, destination: Destination, deadline: float) -> None:
        """Resolve and judge without connecting, as `post` would. Raises as `post` does."""
        await self._addresses(destination, deadline)

    def close(self) -> None:
        """Close every connection; requests under way end in CancelledError. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for connection in list(self._open):
            connection.cancel()
        self._idle.clear()
        self._idle_count = 0

    def _take_idle(self, key: tuple[str, str, int], now: float) -> Connection | None:
        connections = self._idle.get(key)
        while connections:
            connection = connections.pop()  # the freshest: least likely to be closing
            self._idle_count -= 1
            if connection.usable(now, self._age_s_max):
                return connection
            connection.abort()
        return None

    def _give_back(self, connection: Connection) -> None:
        connections = self._idle.get(connection.key)
        if connections is None:
            connections = self._idle[connection.key] = []
        full = len(connections) >= self._idle_per_host_max or self._idle_count >= self._idle_max
        if full or self._closed:
            connection.abort()
            return
        connections.append(connection)
        self._idle_count += 1
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        connections = self._idle.get(connection.key)
        if connections is not None and connection in connections:
            connections.remove(connection)
            self._idle_count -= 1

    def _sweep(self) -> None:
        """Close what has been idle too long and forget hosts without connections."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for key, connections in list(self._idle.items()):
            kept = [item for item in connections if item.usable(now, self._age_s_max)]
            for connection in set(connections).difference(kept):
                connection.abort()
            self._idle_count -= len(connections) - len(kept)
            if kept:
                self._idle[key] = kept
            else:
                del self._idle[key]
        self._sweeper = loop.call_later(SWEEP_S, self._sweep) if self._idle else None

    async def _addresses(self, destination: Destination, deadline: float) -> list[Address]:
        if destination.address is not None:
            return vetted([destination.address], self.policy)
        budget_s = deadline - asyncio.get_running_loop().time()
        answers = await self._resolver.resolve(destination.host, budget_s)
        if not answers:
            raise RequestFailed(Reason.DNS_ERROR, "the host name has no address")
        return vetted(answers, self.policy)

    async def _connect(self, destination: Destination, deadline: float) -> Connection:
        """Try the vetted addresses in turn; nothing has been sent yet, so this resends nothing."""
        loop = asyncio.get_running_loop()
        addresses = (await self._addresses(destination, deadline))[:ADDRESSES_MAX]
        for position, address in enumerate(addresses, 1):
            now = loop.time()
            # A dead address may use half of what is left while there are others to try.
            until = deadline if position == len(addresses) else now + (deadline - now) / 2
            try:
                sock = await self._reach(address, destination.port, until)
            except RequestFailed:
                if position == len(addresses):
                    raise
            else:
                return await self._converse(destination, sock, deadline)
        raise AssertionError("a vetted destination has an address")

    async def _reach(self, address: Address, port: int, until: float) -> socket.socket:
        """A connected socket to exactly this address."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:
            raise _connect_failure(error) from None
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout_at(until):
                await asyncio.get_running_loop().sock_connect(sock, (str(address), port))
        except OSError as error:  # TimeoutError is one
            sock.close()
            if address.version == 4 and error.errno == errno.EADDRNOTAVAIL:
                # Out of ephemeral ports; for IPv6 it means that this machine has no IPv6.
                raise _out_of_resources() from None
            raise _connect_failure(error) from None
        except BaseException:
            sock.close()
            raise
        return sock

    async def _converse(
        self, destination: Destination, sock: socket.socket, deadline: float
    ) -> Connection:
        """Lay TLS (with the name, not the address) and the protocol over a connected socket."""
        loop = asyncio.get_running_loop()
        connection = Connection(loop, sock, destination.key, self._give_back, self._lost)
        context = self._context() if destination.scheme == "https" else None
        self._open.add(connection)
        try:
            async with asyncio.timeout_at(deadline):
                await loop.create_connection(
                    lambda: connection,
                    sock=sock,
                    ssl=context,
                    server_hostname=None if context is None else destination.host,
                )
        except BaseException as error:
            self._open.discard(connection)
            sock.close()
            if isinstance(error, ssl.SSLError):
                raise RequestFailed(Reason.TLS_ERROR, _tls_message(error)) from None
            if isinstance(error, OSError):
                raise _handshake_failure(error) from None
            raise
        return connection

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = _tls_context(self.policy.ca_file)
        return self._tls


def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Verification by the system's authorities and, beside them, those in `ca_file`."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ConfigurationError(f"the CA file {ca_file} cannot be read as PEM") from error
    return context


def request_head(destination: Destination, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The bytes from the request line to the last header, without length and blank line. Host
    stands first, since old receivers want it there. Raises UsageError on a bad name or value."""
    lines = [
        f"POST {destination.path_and_query} HTTP/1.1\r\nHost: {destination.host_header}\r\n".encode(
            "ascii"
        )
    ]
    lines.extend(header_line(name, value) for name, value in headers)
    return b"".join(lines)


def header_line(name: bytes, value: bytes) -> bytes:
    """One header line. Raises UsageError on what could end the line early (CR, LF, NUL)."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name[:64]!r} is not a header name")
    if not _VALUE.fullmatch(value):
        raise UsageError(f"the header {name.decode('ascii')} holds a character outside ASCII text")
    return b"%b: %b\r\n" % (name, value)


def _connect_failure(error: OSError) -> RequestFailed:
    """Translate without the system's message, which names the address."""
    if isinstance(error, TimeoutError):
        return RequestFailed(Reason.TIMEOUT, "the connection could not be made in time")
    if isinstance(error, ConnectionRefusedError):
        return RequestFailed(Reason.CONNECTION_REFUSED, "the receiver refuses the connection")
    if isinstance(error, ConnectionError):
        return RequestFailed(Reason.CONNECTION_RESET, "the connection was reset")
    if error.errno in _LOCAL_ERRORS:
        return _out_of_resources()
    return RequestFailed(Reason.NETWORK_UNREACHABLE, "the receiver's network cannot be reached")


def _out_of_resources() -> RequestFailed:
    return RequestFailed(Reason.LOCAL_LIMIT, "this machine is out of sockets, ports or memory")


def _handshake_failure(error: OSError) -> RequestFailed:
    if isinstance(error, TimeoutError):
        return RequestFailed(Reason.TIMEOUT, "the TLS handshake did not end in time")
    if isinstance(error, ConnectionError):
        return RequestFailed(Reason.CONNECTION_RESET, "the connection was reset in the handshake")
    return _connect_failure(error)


def _tls_message(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not valid: {error.verify_message}"[:300]
    return f"the TLS handshake failed: {error.reason or 'unknown'}"[:300]

"""Real peers on loopback: a scripted HTTP server and a small DNS server, on the test's loop."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Network, ip_address
from ssl import SSLContext

from processors.egress import EgressPolicy
from processors.http import HttpClient
from processors.resolver import CaresResolver

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
A, NS, AAAA = 1, 2, 28
SERVFAIL, NXDOMAIN, REFUSED = 2, 3, 5
LOOPBACK = (IPv4Network("127.0.0.0/8"),)

Answers = Callable[[str, int], list[str] | int | None]


@dataclass
class Peer:
    """One accepted connection of a Server, in the hands of its script."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    server: Server

    async def request(self) -> bytes:
        """Read one whole request and note it. Raises IncompleteReadError when there is none."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length:")
        )
        message = head + await self.reader.readexactly(length)
        self.server.requests.append(message)
        return message

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def drip(self, data: bytes) -> None:
        """Say `data` over and over, a byte at a time, until the other side has gone."""
        while True:
            for byte in data:
                await self.say(bytes([byte]))
                self.server.dripped += 1
                await asyncio.sleep(0.005)


@dataclass
class Server:
    """A TCP server whose script runs once a connection. Counts what reaches it."""

    port: int = 0
    connections: int = 0
    dripped: int = 0
    requests: list[bytes] = field(default_factory=list)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def url(self, host: str = "127.0.0.1", scheme: str = "http", path: str = "/hook") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def policy(self, ca_file: str | None = None) -> EgressPolicy:
        return EgressPolicy(LOOPBACK, True, frozenset({self.port}), ca_file)


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def serving(
    script: Script, *, host: str = "127.0.0.1", tls: SSLContext | None = None
) -> AsyncIterator[Server]:
    """Serve `script` on a free port. A script's end closes its connection and sets `ended`."""
    server = Server()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.connections += 1
        server.writers.append(writer)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await script(Peer(reader, writer, server))
        finally:
            server.ended.set()
            writer.close()

    listener = await asyncio.start_server(accept, host, 0, ssl=tls, limit=2**22)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for writer in server.writers:
            writer.transport.abort()


async def answer_all(peer: Peer) -> None:
    """The plain receiver: 200 to every request, keep-alive."""
    while True:
        await peer.request()
        await peer.say(OK)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@asynccontextmanager
async def client_of(
    server: Server, *, dns: str | None = None, policy: EgressPolicy | None = None
) -> AsyncIterator[HttpClient]:
    """A client that may reach `server`, resolving by the system or by the name server `dns`."""
    resolver = CaresResolver(None if dns is None else [dns], budget_s=2.0)
    client = HttpClient(policy or server.policy(), resolver)
    try:
        yield client
    finally:
        client.close()
        resolver.close()


class _DnsProtocol(asyncio.DatagramProtocol):
    def __init__(self, answers: Answers, asked: list[tuple[str, int]]) -> None:
        self._answers = answers
        self._asked = asked
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        name, kind, end = _read_question(data)
        self._asked.append((name, kind))
        answers = self._answers(name, kind)
        if answers is None:
            return
        assert self._transport is not None
        self._transport.sendto(_reply(data[:2], data[12:end], kind, answers), addr)


@dataclass
class Dns:
    """A running name server: its address for c-ares and what it was asked."""

    address: str
    asked: list[tuple[str, int]]

    def count(self, name: str, kind: int = A) -> int:
        return self.asked.count((name, kind))


@asynccontextmanager
async def naming(answers: Answers, port: int = 0) -> AsyncIterator[Dns]:
    """Serve DNS on a UDP port, a free one by default.

    `answers(name, kind)` gives the addresses (TTL 0), a response code, or None for silence.
    Addresses of another kind than the question's are left out.
    """
    asked: list[tuple[str, int]] = []
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(
        lambda: _DnsProtocol(answers, asked), local_addr=("127.0.0.1", port)
    )
    try:
        yield Dns(f"127.0.0.1:{transport.get_extra_info('sockname')[1]}", asked)
    finally:
        transport.close()


def _read_question(data: bytes) -> tuple[str, int, int]:
    labels, at = [], 12
    while data[at]:
        labels.append(data[at + 1 : at + 1 + data[at]].decode("ascii"))
        at += 1 + data[at]
    (kind,) = struct.unpack("!H", data[at + 1 : at + 3])
    return ".".join(labels).lower(), kind, at + 5


def _reply(ident: bytes, question: bytes, kind: int, answers: list[str] | int) -> bytes:
    code = answers if isinstance(answers, int) else 0
    records = []
    for text in [] if isinstance(answers, int) else answers:
        packed = ip_address(text).packed
        if len(packed) == (4 if kind == A else 16):
            records.append(b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 0, len(packed)) + packed)
    head = ident + struct.pack("!HHHHH", 0x8180 | code, 1, len(records), 0, 0)
    return head + question + b"".join(records)

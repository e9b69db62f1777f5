"""Hostile receivers: one deadline from DNS to the last byte, and a cap on everything read."""

from __future__ import annotations

import asyncio
import gzip
import socket

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from processors.connection import BODY_BYTES_KEPT, BODY_BYTES_MAX, Connection, Response
from processors.failures import Reason, RequestFailed
from processors.http import HttpClient
from tests.net.conftest import Run
from tests.net.peers import Peer, Script, Server, client_of, naming, serving

BUDGET_S = 0.15


async def post(client: HttpClient, url: str, body: bytes = b"{}", budget_s: float = 5) -> Response:
    return await client.post(url, [], body, asyncio.get_running_loop().time() + budget_s)


async def reason_of(
    client: HttpClient, url: str, body: bytes = b"{}", budget_s: float = BUDGET_S
) -> Reason:
    with pytest.raises(RequestFailed) as caught:
        await post(client, url, body, budget_s)
    return caught.value.reason


async def drip_body(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 60000\r\n\r\n")
    await peer.drip(b"x")


async def drip_chunks(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    await peer.drip(b"1\r\nx\r\n")


async def drip_headers(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\n")
    await peer.drip(b"x: y\r\n")


async def drip_interim_answers(peer: Peer) -> None:
    await peer.request()
    await peer.drip(b"HTTP/1.1 102 Wait\r\n\r\n")


@pytest.mark.parametrize("script", [drip_body, drip_chunks, drip_headers, drip_interim_answers])
def test_dripping_does_not_stretch_the_deadline(run: Run, script: Script) -> None:
    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            assert await reason_of(client, server.url()) is Reason.TIMEOUT
            assert server.dripped > 0
            assert not server.ended.is_set(), "the peer was still dripping when we gave up"
            await asyncio.wait_for(server.ended.wait(), 5)
            assert client._open == set()

    run(main())


async def silent(peer: Peer) -> None:
    await peer.request()
    await peer.reader.read()


async def never_reads(peer: Peer) -> None:
    peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
    await peer.server.ended.wait()


@pytest.mark.parametrize(
    ("script", "size"), [(silent, 2), (never_reads, 50_000_000), (never_reads, 2)]
)
def test_silence_ends_at_the_deadline(run: Run, script: Script, size: int) -> None:
    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            assert await reason_of(client, server.url(), b"x" * size) is Reason.TIMEOUT
            assert not server.ended.is_set()
            server.ended.set()

    run(main())


def test_a_tls_handshake_that_never_answers_ends_at_the_deadline(run: Run) -> None:
    async def hang(peer: Peer) -> None:
        await peer.reader.read()

    async def main() -> None:
        async with serving(hang) as server, client_of(server) as client:
            assert await reason_of(client, server.url(scheme="https")) is Reason.TIMEOUT
            await asyncio.wait_for(server.ended.wait(), 5)
            assert client._open == set()

    run(main())


def test_a_tls_handshake_dripped_as_garbage_ends_in_its_reason(run: Run) -> None:
    async def garbage(peer: Peer) -> None:
        await peer.reader.read(1)
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def main() -> None:
        async with serving(garbage) as server, client_of(server) as client:
            reason = await reason_of(client, server.url(scheme="https"), budget_s=30)
            assert reason is Reason.TLS_ERROR

    run(main())


def test_a_name_server_that_never_answers_ends_at_the_deadline(run: Run) -> None:
    async def main() -> None:
        async with naming(lambda _name, _kind: None) as dns:
            server = Server(port=443)
            async with client_of(server, dns=dns.address) as client:
                reason = await reason_of(client, "https://silent.test/")
                assert reason is Reason.RESOLVER_DOWN

    run(main())


def test_no_time_left_sends_nothing(run: Run) -> None:
    async def main() -> None:
        async with serving(silent) as server, client_of(server) as client:
            with pytest.raises(RequestFailed) as caught:
                await post(client, server.url(), budget_s=0)
            assert caught.value.reason is Reason.TIMEOUT
            assert server.connections == 0

    run(main())


def test_the_timer_of_an_earlier_request_does_not_end_a_later_one(run: Run) -> None:
    async def slow_second(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await peer.request()
        for _ in range(30):
            await peer.say(b"HTTP/1.1 102 Wait\r\n\r\n")
            await asyncio.sleep(0.01)
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with serving(slow_second) as server, client_of(server) as client:
            await post(client, server.url(), budget_s=BUDGET_S)
            assert (await post(client, server.url(), budget_s=30)).status == 200

    run(main())


def test_a_shorter_deadline_on_a_reused_connection_holds(run: Run) -> None:
    async def silent_second(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        await silent(peer)

    async def main() -> None:
        async with serving(silent_second) as server, client_of(server) as client:
            await post(client, server.url(), budget_s=60)
            assert await reason_of(client, server.url()) is Reason.TIMEOUT
            assert server.connections == 1

    run(main())


async def endless_body(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await peer.say(b"x" * 65536)


async def endless_chunks(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        await peer.say(b"1;" + b"e" * 16000 + b"\r\nx\r\n")


async def gzip_bomb(peer: Peer) -> None:
    await peer.request()
    bomb = gzip.compress(b"\0" * 100_000_000, 9)
    await peer.say(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb)
    )
    await peer.say(bomb)
    await peer.reader.read()


@pytest.mark.parametrize("script", [endless_body, endless_chunks, gzip_bomb])
def test_a_body_is_read_up_to_a_cap_and_the_connection_closed(run: Run, script: Script) -> None:
    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            answer = await post(client, server.url())
            assert (answer.status, answer.truncated) == (200, True)
            assert len(answer.body) <= BODY_BYTES_KEPT
            await asyncio.wait_for(server.ended.wait(), 5)
            assert client._open == set()

    run(main())


def test_a_body_at_the_cap_keeps_its_connection(run: Run) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BODY_BYTES_MAX
                + b"y" * BODY_BYTES_MAX
            )

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            for _ in range(2):
                answer = await post(client, server.url())
                assert (answer.body, answer.truncated) == (b"y" * BODY_BYTES_KEPT, False)
            assert server.connections == 1

    run(main())


def test_an_answer_before_the_body_was_read_is_taken_and_the_connection_closed(run: Run) -> None:
    async def refuses_early(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.say(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await peer.server.ended.wait()

    async def main() -> None:
        async with serving(refuses_early) as server, client_of(server) as client:
            answer = await post(client, server.url(), b"x" * 50_000_000)
            assert answer.status == 413
            assert client._idle_count == 0
            server.ended.set()

    run(main())


class FakeTransport(asyncio.Transport):
    """Swallows what is written: the fuzz test feeds a connection directly."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def abort(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.0 500 \r\n",
        b"HTTP/1.1 999 ?\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Connection: close\r\n",
        b"Keep-Alive: timeout=\xb2, timeout=99999999999\r\n",
        b"Retry-After: \xff\xfe\r\n",
        b": x\r\n",
        b"\r\n",
        b"\r\n\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"0\r\nx: y\r\n\r\n",
        b"ffffffffffffffffff\r\n",
        b"hello",
        b"\0",
        b"y" * 70_000,
        b"x: " + b"z" * 70_000 + b"\r\n",
    ]
)


@given(st.lists(st.one_of(PIECES, st.binary(max_size=40)), max_size=12), st.booleans())
@example([b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"], False)
def test_no_answer_makes_the_connection_fail_otherwise(pieces: list[bytes], reset: bool) -> None:
    """Whatever comes, the request ends in a response or in a reason from the closed set."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        idle: list[Connection] = []
        lost: list[Connection] = []
        key = ("http", "a.test", 80)
        with socket.socket() as sock:
            connection = Connection(loop, sock, key, idle.append, lost.append)
            transport = FakeTransport()
            connection.connection_made(transport)
            waiter = connection.send(b"POST / HTTP/1.1\r\n", b"", loop.time(), loop.time() + 60)
            for piece in pieces:
                if not transport.closed:
                    connection.data_received(piece)
            connection.connection_lost(ConnectionResetError() if reset else None)
            assert waiter.done()
            assert lost == [connection]
            failure = waiter.exception()
            assert failure is None or isinstance(failure, RequestFailed)
            if failure is None:
                assert 200 <= waiter.result().status <= 999
                assert "\0" not in waiter.result().body_snippet
                waiter.result().body_snippet.encode("utf-8")

    asyncio.run(main())

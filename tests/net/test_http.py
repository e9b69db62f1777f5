"""The client: one attempt is one request on one connection to a vetted address."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from ipaddress import IPv4Network

import pytest

from outbox.errors import DestinationRefused, UsageError
from processors.connection import PEEK_AFTER_S, Response
from processors.egress import EgressPolicy, parse_destination
from processors.failures import Reason, RequestFailed
from processors.http import HttpClient, request_head
from tests.net.conftest import Run
from tests.net.peers import (
    LOOPBACK,
    OK,
    A,
    Peer,
    Script,
    Server,
    answer_all,
    client_of,
    free_port,
    naming,
    serving,
)

BODY = b'{"type":"orders.inserted"}'


async def post(
    client: HttpClient,
    url: str,
    body: bytes = BODY,
    *,
    headers: Sequence[tuple[bytes, bytes]] = (),
    budget_s: float = 5.0,
) -> Response:
    return await client.post(url, headers, body, asyncio.get_running_loop().time() + budget_s)


async def failure_of(client: HttpClient, url: str, budget_s: float = 5.0) -> Reason:
    with pytest.raises(RequestFailed) as caught:
        await post(client, url, budget_s=budget_s)
    assert "127.0.0" not in str(caught.value)
    return caught.value.reason


def test_a_request_arrives_as_written(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, client_of(server) as client:
            answer = await post(client, server.url(path="/a?b=%20"), headers=[(b"x-one", b"1")])
            assert (answer.status, answer.body_snippet, answer.truncated) == (200, "ok", False)
            assert server.requests == [
                b"POST /a?b=%%20 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nx-one: 1\r\n"
                b"content-length: %d\r\n\r\n" % (server.port, len(BODY)) + BODY
            ]

    run(main())


def test_connections_are_kept_and_shared_by_requests_in_turn(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, client_of(server) as client:
            for _ in range(5):
                await post(client, server.url())
            assert (server.connections, len(server.requests)) == (1, 5)
            await asyncio.gather(*[post(client, server.url()) for _ in range(4)])
            assert (server.connections, len(server.requests)) == (4, 9)

    run(main())


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=1\r\nContent-Length: 2\r\n\r\nok",
        OK + b"surplus",
        OK + b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_connection_that_may_close_or_is_out_of_step_is_not_reused(run: Run, head: bytes) -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(head)

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            for _ in range(2):
                assert (await post(client, server.url())).status == 200
            assert (server.connections, len(server.requests)) == (2, 2)

    run(main())


def test_idle_connections_are_bounded(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, client_of(server) as lender:
            client = HttpClient(server.policy(), lender._resolver, idle_per_host_max=2)
            await asyncio.gather(*[post(client, server.url()) for _ in range(5)])
            assert client._idle_count == 2
            client.close()

    run(main())


def test_an_old_or_long_idle_connection_is_not_used_again(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, client_of(server) as client:
            await post(client, server.url())
            (connection,) = client._open
            connection.idle_since -= 5.0
            await post(client, server.url())
            assert server.connections == 2
            (connection,) = client._open
            connection.opened_at -= 301.0
            await post(client, server.url())
            assert server.connections == 3

    run(main())


def test_the_sweep_closes_idle_connections(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, client_of(server) as client:
            await post(client, server.url())
            (connection,) = client._open
            connection.idle_since -= 5.0
            client._sweep()
            await asyncio.wait_for(server.ended.wait(), 5)
            assert (client._idle_count, client._idle, client._sweeper) == (0, {}, None)

    run(main())


def test_a_receiver_that_closes_idle_connections_costs_no_attempt(run: Run) -> None:
    """The close has reached us before the next request, so a new connection is made."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            for count in range(1, 20):
                assert (await post(client, server.url())).status == 200
                while client._open:
                    await asyncio.sleep(0)
                assert len(server.requests) == count

    run(main())


def test_a_close_that_the_loop_has_not_seen_costs_no_attempt(run: Run) -> None:
    """It reaches us while the loop is busy with others; what was idle for long is looked at."""
    asked, closed = threading.Event(), threading.Event()

    def answer(listening: socket.socket) -> None:
        for _ in range(2):
            peer, _ = listening.accept()
            with peer:
                head = b""
                while not head.endswith(BODY):
                    head += peer.recv(65536)
                peer.sendall(OK)
                asked.wait(10)
            closed.set()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.settimeout(10)
            port = listening.getsockname()[1]
            answering = threading.Thread(target=answer, args=(listening,), daemon=True)
            answering.start()
            policy = EgressPolicy(LOOPBACK, True, frozenset({port}), None)
            async with client_of(Server(), policy=policy) as client:
                url = f"http://127.0.0.1:{port}/"
                assert (await post(client, url)).status == 200
                (connection,) = client._open
                asked.set()
                assert closed.wait(10)  # blocks the loop
                connection.idle_since -= PEEK_AFTER_S
                assert (await post(client, url)).status == 200
            answering.join(10)

    run(main())


@pytest.mark.parametrize("reset", [False, True])
def test_a_reused_connection_that_closes_before_any_reply_is_not_resent(
    run: Run, reset: bool
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        if reset:
            peer.writer.transport.abort()

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            await post(client, server.url())
            assert await failure_of(client, server.url()) is Reason.CONNECTION_CLOSED
            assert (server.connections, len(server.requests)) == (1, 2)

    run(main())


def test_a_race_with_the_receivers_close_never_doubles_a_request(run: Run) -> None:
    """The receiver closes after a random number of answers: every attempt reaches it at most
    once, and exactly once when it was answered."""

    async def script(peer: Peer) -> None:
        for _ in range(peer.server.connections % 3 + 1):
            await peer.request()
            await peer.say(OK)

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:

            async def attempt(number: int) -> bool:
                try:
                    answer = await post(client, server.url(), b"%d" % number)
                except RequestFailed as failure:
                    assert failure.reason in {Reason.CONNECTION_CLOSED, Reason.CONNECTION_RESET}
                    return False
                return answer.status == 200

            for start in range(0, 200, 10):
                numbers = range(start, start + 10)
                answered = await asyncio.gather(*[attempt(number) for number in numbers])
                bodies = [request.rpartition(b"\r\n\r\n")[2] for request in server.requests]
                for number, done in zip(numbers, answered, strict=True):
                    assert bodies.count(b"%d" % number) <= 1
                    assert bodies.count(b"%d" % number) == 1 or not done

    run(main())


def test_unasked_bytes_on_an_idle_connection_answer_nothing(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.say(OK)
        await peer.request()

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            await post(client, server.url())
            await asyncio.wait_for(server.ended.wait(), 5)
            assert client._open == set()

    run(main())


def test_a_cancelled_request_closes_its_connection(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.request()

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            task = asyncio.create_task(post(client, server.url()))
            while not server.requests:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.ended.wait(), 5)
            assert client._open == set()

    run(main())


def test_a_cancel_that_comes_after_the_answer_spares_the_next_user(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, client_of(server) as client:
            await post(client, server.url())
            (connection,) = client._open
            now = asyncio.get_running_loop().time()
            head = request_head(parse_destination(server.url(), server.policy()), [])
            gone = connection.send(head, b"1", now, now + 5)
            await gone
            current = connection.send(head, b"2", now, now + 5)
            connection.withdraw(gone)
            assert (await current).status == 200

    run(main())


def test_closing_the_client_ends_what_is_under_way(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.request()

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            task = asyncio.create_task(post(client, server.url()))
            while not server.requests:
                await asyncio.sleep(0)
            client.close()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_nobody_listening_is_connection_refused(run: Run) -> None:
    async def main() -> None:
        server = Server(port=free_port())
        async with client_of(server) as client:
            assert await failure_of(client, server.url()) is Reason.CONNECTION_REFUSED

    run(main())


def test_no_route_is_network_unreachable(run: Run) -> None:
    async def main() -> None:
        server = Server(port=free_port())
        policy = EgressPolicy((IPv4Network("240.0.0.0/4"),), True, frozenset({server.port}))
        async with client_of(server, policy=policy) as client:
            url = server.url("255.255.255.255")
            assert await failure_of(client, url) is Reason.NETWORK_UNREACHABLE

    run(main())


def test_the_next_address_is_tried_when_nothing_was_sent(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server:
            async with naming(lambda _name, _kind: ["127.0.0.9", "127.0.0.1"]) as dns:
                async with client_of(server, dns=dns.address) as client:
                    assert (await post(client, server.url("two.test"))).status == 200
                    assert len(server.requests) == 1

    run(main())


def test_a_literal_is_judged_without_asking_a_resolver(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server:
            strict = EgressPolicy(allow_http=True, ports=frozenset({server.port}))
            async with client_of(server, policy=strict) as client:
                for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "[::1]", "0.0.0.0"):
                    with pytest.raises(DestinationRefused):
                        await post(client, server.url(host))
                    # Taken apart under a wider policy, judged again under the client's own.
                wide = parse_destination(server.url(), server.policy())
                with pytest.raises(DestinationRefused):
                    await client.post(wide, b"", b"", asyncio.get_running_loop().time() + 5)
            assert server.connections == 0

    run(main())


def test_a_name_with_one_private_answer_is_refused_whole(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server:
            async with naming(lambda _name, _kind: ["127.0.0.1", "10.0.0.7"]) as dns:
                async with client_of(server, dns=dns.address) as client:
                    with pytest.raises(DestinationRefused) as refusal:
                        await post(client, server.url("mixed.test"))
                    assert "10.0.0.7" not in str(refusal.value)
            assert server.connections == 0

    run(main())


@pytest.mark.parametrize(
    "address",
    ["::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::", "fec0::1", "fe80::1"],
)
def test_a_crafted_aaaa_answer_is_refused(run: Run, address: str) -> None:
    async def main() -> None:
        server = Server(port=free_port())
        async with naming(lambda _name, _kind: [address]) as dns:
            async with client_of(server, dns=dns.address) as client:
                with pytest.raises(DestinationRefused):
                    await post(client, server.url("six.test"))

    run(main())


def test_a_rebinding_name_is_judged_at_each_connect_and_resolved_once(run: Run) -> None:
    """The address that was judged is the address that is connected to."""
    turns = iter(["127.0.0.1", "169.254.169.254", "169.254.169.254"])

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(OK)
        await peer.request()
        await peer.say(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))

    async def main() -> None:
        async with serving(script) as server:
            async with naming(lambda _n, kind: [next(turns)] if kind == A else []) as dns:
                async with client_of(server, dns=dns.address) as client:
                    url = server.url("rebind.test")
                    for _ in range(2):
                        assert (await post(client, url)).status == 200
                    assert dns.count("rebind.test") == 1
                    with pytest.raises(DestinationRefused):
                        await post(client, url)
                    assert dns.count("rebind.test") == 2
            assert server.connections == 1

    run(main())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(run: Run, status: int) -> None:
    async def main() -> None:
        async with serving(answer_all) as target:

            async def script(peer: Peer) -> None:
                await peer.request()
                location = target.url().encode()
                await peer.say(
                    b"HTTP/1.1 %d Go\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n"
                    % (status, location)
                )

            async with serving(script) as server, client_of(server) as client:
                assert (await post(client, server.url())).status == status
            assert target.connections == 0

    run(main())


def test_proxies_of_the_environment_are_not_used(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with serving(answer_all) as proxy, serving(answer_all) as server:
            for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
                monkeypatch.setenv(name, proxy.url(path=""))
            async with client_of(server) as client:
                assert (await post(client, server.url())).status == 200
            assert (proxy.connections, server.connections) == (0, 1)

    run(main())


def answering(*parts: bytes, then_wait: bool = False) -> Script:
    """Read a request, say the parts in turn, then close (or wait for the other side to)."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for part in parts:
            await peer.say(part)
            await asyncio.sleep(0.001)
        if then_wait:
            await peer.reader.read()

    return script


@pytest.mark.parametrize(
    ("parts", "status", "text"),
    [
        ([b"HTTP/1.1 100 Continue\r\n\r\n", OK], 200, "ok"),
        ([b"HTTP/1.1 103 Early\r\nLink: a\r\nRetry-After: 9\r\n\r\n" * 3 + OK], 200, "ok"),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, ""),
        ([b"HTTP/1.1 200 OK\r\n\r\nuntil", b" close"], 200, "until close"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"], 200, "ok"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na\0b"], 200, "a\ufffdb"),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\xed\xa0\x80"], 200, "\ufffd" * 3),
        ([bytes([byte]) for byte in OK], 200, "ok"),
        ([b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n"], 500, ""),
    ],
)
def test_an_answer_is_read_in_every_framing(
    run: Run, parts: list[bytes], status: int, text: str
) -> None:
    async def main() -> None:
        async with serving(answering(*parts)) as server, client_of(server) as client:
            answer = await post(client, server.url())
            assert (answer.status, answer.body_snippet) == (status, text)
            assert answer.retry_after is None

    run(main())


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], Reason.CONNECTION_CLOSED),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], Reason.BAD_RESPONSE),
        ([b"\x16\x03\x01\x02\x00"], Reason.BAD_RESPONSE),
        ([b"HTTP/1.1 20"], Reason.BAD_RESPONSE),
        ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"], Reason.BAD_RESPONSE),
        (
            [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nok"],
            Reason.BAD_RESPONSE,
        ),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"], Reason.BAD_RESPONSE),
        (
            [b"HTTP/1.1 101 Switch\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
            Reason.BAD_RESPONSE,
        ),
        ([b"HTTP/1.1 101 Switch\r\n\r\n"], Reason.BAD_RESPONSE),
        ([b"HTTP/1.1 200 OK\r\nx: " + b"a" * 70_000], Reason.RESPONSE_TOO_LARGE),
        ([b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 20_000 + b"\r\n"], Reason.RESPONSE_TOO_LARGE),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 4000], Reason.RESPONSE_TOO_LARGE),
    ],
)
def test_an_answer_that_is_not_whole_has_its_reason(
    run: Run, parts: list[bytes], reason: Reason
) -> None:
    async def main() -> None:
        async with serving(answering(*parts)) as server, client_of(server) as client:
            assert await failure_of(client, server.url()) is reason
            assert len(server.requests) == 1

    run(main())


def test_a_fresh_connection_that_is_reset_says_so(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        sock: socket.socket = peer.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.writer.transport.abort()

    async def main() -> None:
        async with serving(script) as server, client_of(server) as client:
            assert await failure_of(client, server.url()) is Reason.CONNECTION_RESET

    run(main())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x", b"a\r\nHost: evil"),
        (b"x", b"a\nb"),
        (b"x", b"a\0b"),
        (b"x", b"\xc3\xbc"),
        (b"x y", b"a"),
        (b"x:", b"a"),
        (b"", b"a"),
        (b"x\r\n", b"a"),
    ],
)
def test_a_header_that_could_split_the_request_is_refused(name: bytes, value: bytes) -> None:
    destination = parse_destination("https://example.com/", EgressPolicy())
    with pytest.raises(UsageError):
        request_head(destination, [(name, value)])

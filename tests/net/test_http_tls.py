"""TLS is always verified, against the name, while the connection goes to the vetted address."""

from __future__ import annotations

import asyncio
import ssl
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme

from outbox.errors import ConfigurationError
from processors.egress import EgressPolicy
from processors.failures import Reason, RequestFailed
from processors.http import HttpClient
from processors.resolver import CaresResolver
from tests.net.conftest import Run
from tests.net.peers import Peer, answer_all, client_of, naming, serving


@dataclass
class Authority:
    """A private authority, a server context that notes the names asked for, the CA file."""

    ca: trustme.CA
    ca_file: str
    asked: list[str | None] = field(default_factory=list)

    def context(self, *names: str) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        context.sni_callback = lambda _sock, name, _context: self.asked.append(name)
        return context


@pytest.fixture(scope="module")
def module_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return Authority(ca, str(path))


@pytest.fixture
def authority(module_authority: Authority) -> Authority:
    module_authority.asked.clear()
    return module_authority


async def post(client: HttpClient, url: str) -> int:
    deadline = asyncio.get_running_loop().time() + 5
    return (await client.post(url, [], b"{}", deadline)).status


async def tls_failure(client: HttpClient, url: str) -> str:
    with pytest.raises(RequestFailed) as caught:
        await post(client, url)
    assert caught.value.reason is Reason.TLS_ERROR
    assert "127.0.0.1" not in str(caught.value)
    return str(caught.value)


def test_the_name_is_shown_and_verified_and_the_connection_kept(
    run: Run, authority: Authority
) -> None:
    async def main() -> None:
        async with serving(answer_all, tls=authority.context("hooks.test")) as server:
            async with naming(lambda _name, _kind: ["127.0.0.1"]) as dns:
                policy = server.policy(authority.ca_file)
                async with client_of(server, dns=dns.address, policy=policy) as client:
                    url = server.url("hooks.test", "https")
                    for _ in range(3):
                        assert await post(client, url) == 200
            assert authority.asked == ["hooks.test"]
            assert server.connections == 1
            assert b"\r\nHost: hooks.test:%d\r\n" % server.port in server.requests[0]

    run(main())


def test_a_certificate_for_another_name_is_refused(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with serving(answer_all, tls=authority.context("other.test")) as server:
            async with naming(lambda _name, _kind: ["127.0.0.1"]) as dns:
                policy = server.policy(authority.ca_file)
                async with client_of(server, dns=dns.address, policy=policy) as client:
                    message = await tls_failure(client, server.url("hooks.test", "https"))
                    assert "certificate is not valid" in message
                    assert client._open == set()
            assert server.requests == []

    run(main())


def test_a_certificate_for_the_address_does_not_stand_for_the_name(
    run: Run, authority: Authority
) -> None:
    async def main() -> None:
        async with serving(answer_all, tls=authority.context("127.0.0.1")) as server:
            async with naming(lambda _name, _kind: ["127.0.0.1"]) as dns:
                policy = server.policy(authority.ca_file)
                async with client_of(server, dns=dns.address, policy=policy) as client:
                    await tls_failure(client, server.url("hooks.test", "https"))
                    assert await post(client, server.url("127.0.0.1", "https")) == 200

    run(main())


def test_an_unknown_authority_is_refused(run: Run, authority: Authority) -> None:
    async def main() -> None:
        async with serving(answer_all, tls=authority.context("localhost")) as server:
            async with client_of(server) as client:
                with pytest.raises(RequestFailed) as caught:
                    await post(client, server.url("127.0.0.1", "https"))
                assert caught.value.reason is Reason.TLS_ERROR
            assert server.requests == []

    run(main())


def test_an_expired_certificate_is_refused(run: Run, authority: Authority) -> None:
    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        past = datetime(2020, 1, 1, tzinfo=UTC)
        authority.ca.issue_cert("127.0.0.1", not_after=past).configure_cert(context)
        async with serving(answer_all, tls=context) as server:
            async with client_of(server, policy=server.policy(authority.ca_file)) as client:
                with pytest.raises(RequestFailed, match="expired"):
                    await post(client, server.url("127.0.0.1", "https"))

    run(main())


def test_old_protocol_versions_are_refused(run: Run, authority: Authority) -> None:
    async def main() -> None:
        context = authority.context("127.0.0.1")
        with warnings.catch_warnings(action="ignore"):  # that they are old is the point
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        async with serving(answer_all, tls=context) as server:
            async with client_of(server, policy=server.policy(authority.ca_file)) as client:
                with pytest.raises(RequestFailed) as caught:
                    await post(client, server.url("127.0.0.1", "https"))
                assert caught.value.reason in {Reason.TLS_ERROR, Reason.CONNECTION_RESET}

    run(main())


def test_a_dripped_tls_answer_ends_at_the_deadline(run: Run, authority: Authority) -> None:
    async def drip(peer: Peer) -> None:
        await peer.request()
        await peer.drip(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 999)

    async def main() -> None:
        async with serving(drip, tls=authority.context("127.0.0.1")) as server:
            async with client_of(server, policy=server.policy(authority.ca_file)) as client:
                url = server.url("127.0.0.1", "https")
                now = asyncio.get_running_loop().time()
                with pytest.raises(RequestFailed) as caught:
                    await client.post(url, [], b"{}", now + 0.3)
                assert caught.value.reason is Reason.TIMEOUT
                assert server.dripped > 0

    run(main())


def test_failed_handshakes_leave_no_file_open(run: Run, authority: Authority) -> None:
    def open_files() -> int:
        return sum(1 for _ in Path("/dev/fd").iterdir())

    async def main() -> None:
        async with serving(answer_all, tls=authority.context("other.test")) as server:
            async with client_of(server) as client:
                counts = []
                for _ in range(4):
                    for _ in range(5):
                        with pytest.raises(RequestFailed):
                            await post(client, server.url("127.0.0.1", "https"))
                    while any(not writer.is_closing() for writer in server.writers):
                        await asyncio.sleep(0)
                    await asyncio.sleep(0.01)
                    counts.append(open_files())
                assert counts[-1] <= counts[0]

    run(main())


@pytest.mark.parametrize("content", [None, "not a certificate"])
def test_a_ca_file_that_cannot_be_read_is_told_at_once(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    resolver = CaresResolver()
    with pytest.raises(ConfigurationError, match="CA file"):
        HttpClient(EgressPolicy(ca_file=str(path)), resolver)
    resolver.close()

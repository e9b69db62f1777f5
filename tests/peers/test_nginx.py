"""Signed webhooks to a real nginx: it takes every request, over connections that are kept."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest
import uvloop

from outbox.outcome import Kind, Outcome
from outbox.work import Endpoint, SigningKey, Work
from processors.egress import EgressPolicy
from processors.http import HttpClient
from processors.resolver import CaresResolver
from processors.webhook import WebhookProcessor

REQUESTS = 2_000
AT_ONCE = 64

CONFIG = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 512; }}
http {{
    log_format line '$status $connection $http_webhook_id $content_length';
    access_log {folder}/access.log line;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi; keepalive_requests 100000;
    server {{ listen 127.0.0.1:{port}; location / {{ return 200 'ok'; }} }}
}}
"""


@pytest.fixture
def nginx(nginx_program: Path, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx of our own that answers 200 to everything."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    config = tmp_path / "nginx.conf"
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(user + CONFIG.format(folder=tmp_path, port=port))
    with subprocess.Popen([nginx_program, "-p", tmp_path, "-c", config]) as server:
        try:
            _await_port(port)
            yield port
        finally:
            server.terminate()


def _await_port(port: int) -> None:
    until = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < until, "nginx does not listen"
        else:
            return


def test_nginx_takes_every_signed_webhook_once(nginx: int, tmp_path: Path) -> None:
    outcomes = uvloop.run(_deliver(nginx))
    assert {outcome.kind for outcome in outcomes} == {Kind.DELIVERED}
    lines = [line.split() for line in (tmp_path / "access.log").read_text().splitlines()]
    requests = [line for line in lines if line[2] != "-"]
    assert {line[2] for line in requests} == {str(UUID(int=n)) for n in range(REQUESTS)}
    assert len(requests) == REQUESTS
    assert len({line[1] for line in requests}) <= AT_ONCE, "connections were not kept"


async def _deliver(port: int) -> list[Outcome]:
    policy = EgressPolicy(
        allow_cidrs=(ipaddress.ip_network("127.0.0.0/8"),),
        allow_http=True,
        ports=frozenset({port}),
    )
    resolver = CaresResolver()
    client = HttpClient(policy, resolver)
    process = WebhookProcessor(client, policy, time.time)
    endpoint = Endpoint(
        id="1",
        org_id="acme",
        url=f"http://127.0.0.1:{port}/hook",
        keys=(SigningKey("hmac", b"k" * 32),),
        headers={},
        timeout=timedelta(seconds=15),
    )
    numbers = iter(range(REQUESTS))
    outcomes: list[Outcome] = []

    async def one_after_the_other() -> None:
        for number in numbers:
            work = Work(
                delivery_id=UUID(int=number),
                event_id=number,
                type="orders.paid",
                occurred_at="2026-01-01T00:00:00.000000Z",
                payload=b'{"total": 12.50}',
                attempt=1,
                body_format=1,
                endpoint=endpoint,
            )
            outcomes.append(await process(work, asyncio.get_running_loop().time() + 15))

    await asyncio.gather(*(one_after_the_other() for _ in range(AT_ONCE)))
    client.close()
    resolver.close()
    return outcomes

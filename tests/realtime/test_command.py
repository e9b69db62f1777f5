"""`outbox realtime` as a process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psycopg
import pytest

from outbox.realtime import server as module
from tests.cli.helpers import Process, wait_until
from tests.realtime.peer import peer
from tests.realtime.scene import SECRET, awaited, prepare, token


@pytest.fixture
def start(database: str) -> Iterator[Callable[..., Process]]:
    """Start the command on a database without the stand-in."""
    started: list[Process] = []

    def run(*args: str, **environ: str) -> Process:
        settings = {"OUTBOX_DATABASE_URL": database, "OUTBOX_JWT_SECRET": SECRET}
        started.append(Process(("realtime", "--port", "0", *args), settings | environ))
        return started[-1]

    yield run
    for process in started:
        process.close()


def address(process: Process) -> str:
    def said() -> Any:
        return re.search(r"listening on (http://\S+)", process.said)

    wait_until(lambda: said() is not None)
    return str(said()[1])


@awaited
async def test_it_installs_serves_and_leaves_when_told(
    start: Callable[..., Process], database: str
) -> None:
    process = start("--install-shim", "--refuse-at-once", "--private-only")
    url = address(process)
    prepare(database)
    page = httpx.get(url.removesuffix("realtime/v1"))
    assert "side by side" in page.text
    assert "connect-src 'self'" in page.headers["content-security-policy"]
    async with peer(url.replace("http", "ws"), token("alice")) as alice:
        await alice.joined("orders:acme")
        assert (await alice.refused("news", private=False)).startswith("PrivateOnly")
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("SELECT realtime.send('{}', 'hello', 'orders:acme')")
        assert (await alice.event("broadcast")).payload["event"] == "hello"
        process.popen.terminate()
        assert await alice.closed() == 1012
    assert process.popen.wait(20) == 0


def test_behind_a_pooler_it_says_that_rows_cannot_be_heard(
    realtime_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import asyncio

    from outbox.errors import ConfigurationError
    from outbox.realtime.tokens import Verifier
    from outbox.store import realtime as store
    from outbox.store.connect import HotConnection, connect_hot

    async def pooled(url: str, name: str) -> HotConnection:
        connection = await connect_hot(url, name)
        connection.direct = False
        return connection

    monkeypatch.setattr(store, "connect_hot", pooled)
    with module.bind("127.0.0.1", 0) as listening:
        server = None

        async def run() -> None:
            nonlocal server
            server = module.RealtimeServer(realtime_database, Verifier(SECRET, None))
            await module.serve(server, listening)

        with pytest.raises(BaseException, match="OUTBOX_LISTEN_URL") as raised:
            asyncio.run(run())
    assert isinstance(raised.value, ConfigurationError)

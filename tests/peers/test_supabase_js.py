"""The stand-in server with the real client library of the browser world, unmodified: supabase-js,
version 2.0.0 of the protocol, in Node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.chaos.proxy import Proxy, proxy_to
from tests.peers.javascript import node
from tests.realtime.peer import peer
from tests.realtime.scene import Scene, awaited, token

PRIVATE = {"private": True}


def base(scene: Scene) -> str:
    return scene.url.removesuffix("/realtime/v1")


@awaited
async def test_each_organization_hears_its_own(scene: Scene, javascript: Path) -> None:
    async with (
        node(javascript, base(scene), token("alice")) as alice,
        node(javascript, base(scene), token("greta")) as greta,
    ):
        for client, name, org in ((alice, "alice", "acme"), (greta, "greta", "globex")):
            await client.do("auth", token=token(name))
            await client.joined(f"orders:{org}", config=PRIVATE)
        for org in ("acme", "globex", "acme"):
            scene.send(f"orders:{org}", "orders.updated", org=org, total=12.5)
        await alice.event("broadcast")
        told = await alice.event("broadcast")
        assert told["event"] == "orders.updated"
        assert told["payload"] == {"id": told["meta"]["id"], "org": "acme", "total": 12.5}
        await greta.event("broadcast")
        await greta.do("join", topic="orders:acme", config=PRIVATE)
        refused = await greta.event("status", topic="orders:acme")
        assert refused["status"] == "CHANNEL_ERROR"
        assert refused["error"] == (
            "Unauthorized: You do not have permissions to read from this Channel topic: orders:acme"
        )
        assert {told["payload"]["org"] for told in greta.broadcasts()} == {"globex"}


@awaited
async def test_clients_talk_to_each_other_in_text_and_in_bytes(
    scene: Scene, javascript: Path
) -> None:
    both = {"broadcast": {"ack": True, "self": True}}
    async with (
        node(javascript, base(scene), token("alice")) as alice,
        node(javascript, base(scene), token("greta")) as greta,
    ):
        await alice.joined("room", config=both)
        await greta.joined("room", config={"presence": {"key": "greta", "enabled": True}})
        await alice.do("send", topic="room", event="hi", payload={"é": [1]})
        for client in (alice, greta):
            assert (await client.event("broadcast", event="hi"))["payload"] == {"é": [1]}
        assert (await alice.event("sent"))["result"] == "ok"
        await alice.do("send", topic="room", event="raw", bytes=[0, 255, 7])
        assert (await greta.event("broadcast", event="raw"))["payload"] == [0, 255, 7]
        await greta.do("httpSend", topic="room", event="rest", payload={"a": 1})
        assert (await greta.event("httpSent"))["result"] == {"success": True}
        assert (await alice.event("broadcast", event="rest"))["payload"] == {"a": 1}
        await greta.do("track", topic="room", payload={"typing": True})
        state = (await greta.until(lambda told: "greta" in told.get("state", {})))["state"]
        assert state["greta"][0]["typing"] is True
        await greta.do("leave", topic="room")
        assert (await greta.event("left"))["result"] == "ok"


@awaited
async def test_a_member_cannot_send_on_a_database_topic(scene: Scene, javascript: Path) -> None:
    async with node(javascript, base(scene), token("alice")) as alice:
        await alice.do("auth", token=token("alice"))
        await alice.joined("orders:acme", config=PRIVATE)
        await alice.do("httpSend", topic="orders:acme", event="forged", payload={})
        assert "Unauthorized" in (await alice.event("httpSent"))["error"]


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    """The way between a client and the server, to be cut."""
    with proxy_to(urlsplit(scene.url).port or 0) as opened:
        yield opened


@pytest.mark.parametrize("missed", [3, 30])
def test_after_a_cut_a_client_knows_that_it_missed_something_and_catches_up(
    scene: Scene, javascript: Path, proxy: Proxy, missed: int
) -> None:
    """A replay fills a short gap; beyond 25 messages only fetching anew does."""

    @awaited
    async def run() -> None:
        url = f"http://127.0.0.1:{proxy.port}"
        async with (
            node(javascript, url, token("alice")) as alice,
            peer(scene.ws, token("alice")) as other,
        ):
            await alice.do("auth", token=token("alice"))
            await alice.joined("orders:acme", config=PRIVATE, catchUp=True)
            await other.joined("orders:acme")
            scene.send("orders:acme", "before")
            await alice.event("broadcast", event="before")
            proxy.freeze()
            proxy.cut()
            await alice.event("status", status="CHANNEL_ERROR")
            for number in range(missed):
                scene.send("orders:acme", f"missed {number}")
            await other.until(lambda told: f"missed {missed - 1}" in str(told.payload))
            proxy.thaw()
            await alice.event("status", status="SUBSCRIBED")
            await alice.event("missed", topic="orders:acme")  # fetch anew what is shown
            await alice.event("broadcast", event=f"missed {missed - 1}")
            scene.send("orders:acme", "after")
            await alice.event("broadcast", event="after")
            told = [event["event"] for event in alice.broadcasts()]
            replayed = [e["event"] for e in alice.broadcasts() if (e["meta"] or {}).get("replayed")]
            first = max(0, missed - 25)
            assert replayed == [f"missed {number}" for number in range(first, missed)]
            assert told == ["before", *replayed, "after"]

    run()


@awaited
async def test_a_client_comes_back_when_the_server_lost_its_database_and_when_it_restarts(
    scene: Scene, javascript: Path, make_scene: Callable[..., Scene]
) -> None:
    async with node(javascript, base(scene), token("alice")) as alice:
        await alice.do("auth", token=token("alice"))
        await alice.joined("orders:acme", config=PRIVATE)
        scene.db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'outbox realtime%'"
        )
        await alice.event("status", status="CHANNEL_ERROR")
        await alice.event("missed")
        scene.send("orders:acme", "back")
        await alice.event("broadcast", event="back")
        port = urlsplit(scene.url).port
        await asyncio.to_thread(scene.stop)
        again: Any = await asyncio.to_thread(lambda: make_scene(port=port))
        await alice.event("missed")
        again.send("orders:acme", "again")
        await alice.event("broadcast", event="again")

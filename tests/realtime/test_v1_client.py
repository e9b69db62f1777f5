"""The PyPI client `realtime`, which speaks version 1.0.0, unmodified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from realtime import AsyncRealtimeChannel, AsyncRealtimeClient, RealtimeSubscribeStates

from tests.realtime.scene import WITHIN_S, Scene, awaited, token

# The client reads attributes that its version of websockets will lose.
pytestmark = pytest.mark.filterwarnings("ignore:ConnectionClosed:DeprecationWarning")


class Heard:
    """What a channel was told, and how it stands."""

    def __init__(self, channel: AsyncRealtimeChannel, event: str = "*") -> None:
        self.channel = channel
        self.messages: list[Any] = []
        self.system: list[Any] = []
        self.states: list[str] = []
        self.errors: list[str] = []
        self._changed = asyncio.Event()
        channel.on_broadcast(event, lambda message: self._note(self.messages, message))
        channel.on_system(lambda message: self._note(self.system, message))

    async def subscribe(self) -> Heard:
        await self.channel.subscribe(self._state)
        return self

    def _state(self, state: RealtimeSubscribeStates, error: Exception | None) -> None:
        if error is not None:
            self.errors.append(str(error))
        self._note(self.states, str(state.value))

    def _note(self, kept: list[Any], what: Any) -> None:
        kept.append(what)
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def client(scene: Scene, key: str) -> AsyncIterator[AsyncRealtimeClient]:
    made = AsyncRealtimeClient(scene.ws, key, initial_backoff=0.05, max_retries=9)
    await made.connect()
    try:
        yield made
    finally:
        await made.close()


def private(connected: AsyncRealtimeClient, topic: str, **broadcast: Any) -> AsyncRealtimeChannel:
    config: Any = {
        "broadcast": broadcast,
        "presence": {"key": "", "enabled": False},
        "private": True,
    }
    return connected.channel(topic, {"config": config})


@awaited
async def test_a_members_client_gets_what_sql_sends_and_another_organizations_gets_nothing(
    scene: Scene,
) -> None:
    async with client(scene, token("alice")) as alice, client(scene, token("greta")) as greta:
        ours = await Heard(private(alice, "orders:acme")).subscribe()
        theirs = await Heard(private(greta, "orders:globex")).subscribe()
        assert (ours.states, theirs.states) == (["SUBSCRIBED"], ["SUBSCRIBED"])
        scene.send("orders:acme", "orders.inserted", total=7)
        scene.send("orders:globex", "orders.inserted", total=8)
        await ours.until(lambda: len(ours.messages) == 1)
        await theirs.until(lambda: len(theirs.messages) == 1)
        [message] = ours.messages
        assert message["event"] == "orders.inserted"
        assert message["payload"]["total"] == 7
        assert message["meta"]["id"] == message["payload"]["id"]
        assert [m["payload"]["total"] for m in theirs.messages] == [8]


@awaited
async def test_clients_send_over_the_socket_and_over_rest(scene: Scene) -> None:
    async with client(scene, token("alice")) as alice, client(scene, token("greta")) as greta:
        both: Any = {"config": {"broadcast": {"ack": True, "self": True}}}
        channel = alice.channel("room", both)
        ours = await Heard(channel).subscribe()
        theirs = await Heard(greta.channel("room")).subscribe()
        await channel.send_broadcast("hi", {"n": 1})
        await theirs.until(lambda: len(theirs.messages) == 1)
        await ours.until(lambda: len(ours.messages) == 1)
        assert theirs.messages[0]["event"] == "hi"
        assert theirs.messages[0]["payload"] == {"n": 1}
        await channel.http_send("rest", {"n": 2})
        await theirs.until(lambda: len(theirs.messages) == 2)
        assert theirs.messages[1]["payload"] == {"n": 2}


@awaited
async def test_a_refused_join_is_an_error_in_the_words_of_the_server(scene: Scene) -> None:
    async with client(scene, token("greta")) as greta:
        heard = Heard(private(greta, "orders:acme"))
        joining = asyncio.create_task(heard.subscribe())
        await heard.until(lambda: bool(heard.states))
        assert heard.states[0] == "CHANNEL_ERROR"
        assert "You do not have permissions to read from this Channel topic" in heard.errors[0]
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)


@awaited
async def test_a_client_comes_back_after_the_server_hung_up_and_hears_again(scene: Scene) -> None:
    async with client(scene, token("alice")) as alice:
        heard = await Heard(private(alice, "orders:acme")).subscribe()
        scene.db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name LIKE 'outbox realtime%'"
        )
        await heard.until(lambda: heard.states.count("SUBSCRIBED") == 2)
        scene.send("orders:acme", "back")
        await heard.until(lambda: len(heard.messages) == 1)
        assert heard.messages[0]["event"] == "back"

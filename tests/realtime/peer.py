"""A websocket client of the protocol's own words, for what the client libraries do not do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect

from outbox.realtime.frames import V1, V2
from tests.realtime.scene import WITHIN_S


class Told(NamedTuple):
    """A frame of the server in one form for both versions; `kind` is text, or binary."""

    join_ref: Any
    ref: Any
    topic: str
    event: str
    payload: Any
    kind: str = "text"


class Peer:
    """One connection. Frames that a wait passes over are kept in `passed`."""

    def __init__(self, socket: ClientConnection, version: str) -> None:
        self.socket, self.version = socket, version
        self.passed: list[Told] = []
        self._refs = 0

    async def send(
        self, topic: str, event: str, payload: Any, *, join_ref: Any = None, ref: Any = "r"
    ) -> None:
        if self.version == V2:
            await self.socket.send(json.dumps([join_ref, ref, topic, event, payload]))
            return
        frame = {"topic": topic, "event": event, "payload": payload, "ref": ref}
        await self.socket.send(json.dumps({**frame, "join_ref": join_ref}))

    async def receive(self) -> Told:
        async with asyncio.timeout(WITHIN_S):
            data = await self.socket.recv()
        if isinstance(data, bytes):
            return _told(data)
        found = json.loads(data)
        if self.version == V2:
            return Told(*found)
        assert set(found) == {"topic", "event", "payload", "ref"}
        return Told(None, found["ref"], found["topic"], found["event"], found["payload"])

    async def until(self, condition: Callable[[Told], bool]) -> Told:
        while True:
            told = await self.receive()
            if condition(told):
                return told
            self.passed.append(told)

    async def event(self, name: str) -> Told:
        return await self.until(lambda told: told.event == name)

    async def join(
        self, sub_topic: str, *, private: bool = True, token: str | None = None, **config: Any
    ) -> dict[str, Any]:
        """Join; returns the reply's payload. The join's ref is the number of joins so far."""
        self._refs += 1
        ref = str(self._refs)
        payload: dict[str, Any] = {"config": {"private": private, **config}}
        if token is not None:
            payload["access_token"] = token
        await self.send(f"realtime:{sub_topic}", "phx_join", payload, join_ref=ref, ref=ref)
        reply = await self.until(lambda told: told.event == "phx_reply" and told.ref == ref)
        found: dict[str, Any] = reply.payload
        return found

    async def joined(self, sub_topic: str, **options: Any) -> None:
        reply = await self.join(sub_topic, **options)
        assert reply == {"status": "ok", "response": {"postgres_changes": []}}

    async def refused(self, sub_topic: str, **options: Any) -> str:
        reply = await self.join(sub_topic, **options)
        assert reply["status"] == "error", reply
        reason: str = reply["response"]["reason"]
        return reason

    async def silent(self) -> list[Told]:
        """What has come when a heartbeat is answered: everything that was under way before."""
        await self.send("phoenix", "heartbeat", {}, ref="beat")
        await self.until(lambda told: told.ref == "beat")
        passed, self.passed = self.passed, []
        return passed

    async def closed(self) -> int | None:
        """Wait for the server to hang up; returns its code."""
        async with asyncio.timeout(WITHIN_S):
            await self.socket.wait_closed()
        return self.socket.close_code


def _told(data: bytes) -> Told:
    assert data[0] == 4
    sizes, encoding = data[1:4], data[4]
    parts, start = [], 5
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    payload: dict[str, Any] = {"type": "broadcast", "event": parts[1].decode()}
    payload["payload"] = json.loads(data[start:]) if encoding else data[start:]
    if parts[2]:
        payload["meta"] = json.loads(parts[2])
    return Told(None, None, parts[0].decode(), "broadcast", payload, "binary")


@asynccontextmanager
async def peer(ws: str, key: str, version: str = V2) -> AsyncIterator[Peer]:
    vsn = "" if version == V1 else f"&vsn={version}"
    async with connect(f"{ws}/websocket?apikey={key}{vsn}", compression=None) as socket:
        yield Peer(socket, version)

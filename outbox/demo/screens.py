"""The screens: a websocket client for each organization, which keeps books of what it heard.

Run as a process of its own (`python -P -m outbox.demo.screens`), told by a line of JSON. It trusts
nothing of ours: it speaks the protocol of Supabase Realtime (version 1.0.0) in its own words. Each
joins the channel of its own organization, and before that tries those of all others.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from outbox.demo.told import obey, tell

TELL_S = 0.1
ROWS_MAX = 500
BEAT_S = 25.0
AGAIN_S = 0.2
PREFIX = "realtime:"


class Screen:
    """The client of one organization. `heard` are the ids of messages with the unix time of each,
    since they were last told; `admitted` are joins that should have been refused."""

    def __init__(self, org: str, own: str, others: Sequence[str], token: str) -> None:
        self.org, self.own, self.others, self._token = org, own, others, token
        self.heard: list[tuple[str, str, float]] = []
        self.refused = 0
        self.admitted = 0
        self.cuts = 0
        self.ready = asyncio.Event()

    async def watch(self, url: str) -> None:
        """Listen until cancelled, over as many connections as it takes."""
        address = f"{url}?apikey={self._token}&vsn=1.0.0"
        while True:
            with suppress(ConnectionClosed):
                async with connect(address, compression=None, max_size=None) as socket:
                    await self._listen(socket)
            self.cuts += 1
            await asyncio.sleep(AGAIN_S)

    async def _listen(self, socket: ClientConnection) -> None:
        beating = asyncio.create_task(_beat(socket))
        try:
            trying = [] if self.ready.is_set() else self.others
            asked = {str(n): topic for n, topic in enumerate((*trying, self.own), 1)}
            for ref, topic in asked.items():
                payload = {"config": {"private": True}, "access_token": self._token}
                await _say(socket, PREFIX + topic, "phx_join", payload, ref)
            async for text in socket:
                self._read(json.loads(text), asked, time.time())
        finally:
            beating.cancel()

    def _read(self, frame: dict[str, Any], asked: dict[str, str], now: float) -> None:
        event, payload = frame["event"], frame["payload"]
        if event == "broadcast":
            self.heard.append((self.org, payload["meta"]["id"], now))
        elif event == "phx_reply" and (topic := asked.pop(frame["ref"], None)) is not None:
            self._answered(topic, payload)
            if not asked:
                self.ready.set()

    def _answered(self, topic: str, payload: dict[str, Any]) -> None:
        joined = payload["status"] == "ok"
        if topic != self.own:
            self.admitted += joined
            self.refused += not joined
        elif not joined:
            raise RuntimeError(f"{topic} refused its own member: {payload['response']}")


async def _say(socket: ClientConnection, topic: str, event: str, payload: Any, ref: str) -> None:
    frame = {"topic": topic, "event": event, "payload": payload, "ref": ref, "join_ref": ref}
    await socket.send(json.dumps(frame))


async def _beat(socket: ClientConnection) -> None:
    with suppress(ConnectionClosed):
        while True:
            await asyncio.sleep(BEAT_S)
            await _say(socket, "phoenix", "heartbeat", {}, "beat")


async def run(task: dict[str, Any], reader: asyncio.StreamReader) -> None:
    """Listen until the next line, or the end of the input, which must follow."""
    screens = [Screen(**one) for one in task["screens"]]
    watching = [asyncio.create_task(one.watch(task["url"])) for one in screens]
    telling = asyncio.create_task(_tell_often(screens))
    ending: asyncio.Task[Any] = asyncio.create_task(reader.readline())
    done, _ = await asyncio.wait([ending, telling, *watching], return_when=asyncio.FIRST_COMPLETED)
    for one in (telling, *watching):
        if one not in done:
            one.cancel()
    await asyncio.gather(telling, *watching, return_exceptions=True)
    for one in done - {ending}:
        one.result()
    await reader.read()


async def _tell_often(screens: Sequence[Screen]) -> None:
    for one in screens:
        await one.ready.wait()
    while True:
        for one in screens:
            heard, one.heard = one.heard, []
            for start in range(0, len(heard), ROWS_MAX):
                tell({"heard": heard[start : start + ROWS_MAX]})
        counts = {name: sum(getattr(one, name) for one in screens) for name in COUNTS}
        tell({"counts": counts})
        await asyncio.sleep(TELL_S)


COUNTS = ("refused", "admitted", "cuts")


if __name__ == "__main__":
    asyncio.run(obey(run))

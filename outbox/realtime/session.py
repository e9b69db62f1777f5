"""One websocket: takes frames apart, hands them to channels, sends what they say.

A client that does not read is cut off when what waits for it exceeds a limit: it comes back, and
knows that it missed something. A frame that cannot be read is logged and skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import structlog

from outbox.realtime import joining
from outbox.realtime.channel import Channel
from outbox.realtime.frames import Frame, MalformedFrame, Push, decode, encode
from outbox.realtime.hub import Center
from outbox.realtime.joining import PREFIX, Refusal

log = structlog.get_logger("outbox.realtime")

CLOSE_DISCONNECT = 1001
CLOSE_RESTART = 1012


class Wire(Protocol):
    """The connection itself. `receive` returns None when the client has left."""

    async def receive(self) -> str | bytes | None: ...
    async def send(self, frame: str | bytes) -> None: ...
    async def close(self, code: int) -> None: ...


class Session:
    """A connected client. `token` is the key it connected with, already verified."""

    def __init__(
        self, center: Center, wire: Wire, version: str, token: str, headers: Mapping[str, str]
    ) -> None:
        self._center, self._wire = center, wire
        self.version, self.token, self.headers = version, token, headers
        self._channels: dict[str, Channel] = {}
        self._out: asyncio.Queue[str | bytes | int] = asyncio.Queue()
        self._over = False

    async def run(self) -> None:
        """Serve the client until it leaves or is hung up on."""
        loop = asyncio.get_running_loop()
        reader, writer = loop.create_task(self._read()), loop.create_task(self._write())
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._over = True
            for channel in list(self._channels.values()):
                channel.close()
            self._channels.clear()
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)

    # -- to the client ---------------------------------------------------------------------------

    def send(self, frame: str | bytes) -> None:
        """Queue a frame."""
        if self._over:
            return
        if self._out.qsize() >= self._center.limits.queue_max:
            log.warning("realtime.slow_client", waiting=self._out.qsize())
            self._out = asyncio.Queue()
            self.hang_up(CLOSE_DISCONNECT)
            return
        self._out.put_nowait(frame)

    def hang_up(self, code: int) -> None:
        """Close the connection after what is queued."""
        if not self._over:
            self._over = True
            self._out.put_nowait(code)

    def drain(self) -> None:
        """Say to each channel that the server asks it to leave, then hang up."""
        for channel in self._channels.values():
            channel.system(joining.SERVER_LEAVES)
        self.hang_up(CLOSE_RESTART)

    def forget(self, channel: Channel) -> None:
        """A channel has ended."""
        if self._channels.get(channel.topic) is channel:
            del self._channels[channel.topic]

    async def _write(self) -> None:
        while True:
            frame = await self._out.get()
            if isinstance(frame, int):
                await self._wire.close(frame)
                return
            await self._wire.send(frame)

    def _reply(self, frame: Frame | Push, response: dict[str, str], status: str = "ok") -> None:
        refs = {"join_ref": frame.join_ref, "ref": frame.ref}
        payload = {"status": status, "response": response}
        self.send(
            encode(self.version, **refs, topic=frame.topic, event="phx_reply", payload=payload)
        )

    # -- from the client -------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._center.limits.idle_s):
                    data = await self._wire.receive()
            except TimeoutError:
                self.hang_up(1000)
                await asyncio.Event().wait()  # the writer ends the session
                return
            if data is None:
                return
            try:
                frame = decode(self.version, data)
            except MalformedFrame as error:
                log.warning("realtime.malformed_frame", error=str(error))
                continue
            await self._route(frame)

    async def _route(self, frame: Frame | Push) -> None:
        channel = self._channels.get(frame.topic)
        if isinstance(frame, Frame) and frame.topic == "phoenix":
            if frame.event == "heartbeat":
                self._reply(frame, {})
        elif isinstance(frame, Frame) and frame.event == "phx_join":
            self._join(frame)
        elif channel is None:
            if isinstance(frame, Frame) and frame.event == "phx_leave":
                self._reply(frame, {})
            else:
                self._reply(frame, {"reason": "unmatched topic"}, "error")
        elif frame.join_ref is None or frame.join_ref == channel.join_ref:
            await channel.inbox.put(frame)

    def _join(self, frame: Frame) -> None:
        if not frame.topic.startswith(PREFIX):
            self._reply(frame, {"reason": "unmatched topic"}, "error")
            return
        before = self._channels.pop(frame.topic, None)
        if before is not None:
            before.close()
            before.say_closed()
        channel = Channel(self._center, self, frame, self._too_many())
        self._channels[frame.topic] = channel
        channel.open()

    def _too_many(self) -> Refusal | None:
        self._center.joins.add()
        if self._center.joins.exceeded:
            return joining.TOO_MANY_JOINS
        if len(self._channels) >= self._center.limits.channels:
            return joining.TOO_MANY_CHANNELS
        return None

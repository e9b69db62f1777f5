"""One joined topic of one socket: from the join, through its messages, to its close.

A channel is a task of its own with an inbox, so that one that waits (for the database, or to refuse
late) holds up no other. Policies are asked at the join and for a new token; whether it may send is
asked when it first does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4

import orjson
import structlog

from outbox.errors import DatabaseUnavailable
from outbox.realtime import joining
from outbox.realtime.frames import Broadcast, Frame, Push, Ref, encode, encode_broadcast, fits
from outbox.realtime.hub import Center, Room
from outbox.realtime.joining import Join, Refusal, Replay
from outbox.realtime.tokens import Claims, TokenRefused
from outbox.store.realtime import Acting, PartitionMissing, Row

log = structlog.get_logger("outbox.realtime")

INBOX_MAX = 1000


class Socket(Protocol):
    """The session, as a channel knows it."""

    version: str
    token: str
    headers: Mapping[str, str]

    def send(self, frame: str | bytes) -> None: ...
    def hang_up(self, code: int) -> None: ...
    def forget(self, channel: Channel) -> None: ...


class Channel:
    """A topic of a socket. `open` and `close` are the socket's; messages come through `inbox`."""

    def __init__(
        self, center: Center, socket: Socket, request: Frame, refusal: Refusal | None
    ) -> None:
        self._center, self._socket = center, socket
        self.topic = request.topic
        self.sub_topic = request.topic.removeprefix(joining.PREFIX)
        self.join_ref: Ref = request.ref if request.join_ref is None else request.join_ref
        self._join_request, self._refusal = request, refusal
        self._join: Join = joining.read_join(request.payload)
        self.inbox: asyncio.Queue[Frame | Push | None] = asyncio.Queue(INBOX_MAX)
        self._task: asyncio.Task[None] | None = None
        self._room: Room | None = None
        self._token = ""
        self._claims: Claims | None = None
        self._writable: dict[str, bool] = {}
        self._held: list[tuple[str | bytes, str | None]] | None = None
        self._replayed: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._extra: set[asyncio.Task[None]] = set()
        self._presence_key = self._join.presence_key or str(uuid4())

    @property
    def version(self) -> str:
        """The protocol version of the socket."""
        return self._socket.version

    # -- life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin: join, then take messages."""
        self._task = asyncio.get_running_loop().create_task(self._live())

    async def _live(self) -> None:
        try:
            if await self._joins():
                while await self._handle(await self.inbox.get()):
                    pass
        except Exception as error:
            log.exception("realtime.channel_crash", topic=self.topic, error=str(error))
            self._detach()
            self._push("phx_error", {"reason": "channel_crash"}, ref=self.join_ref)
        self._detach()
        self._socket.forget(self)

    def close(self) -> None:
        """End without a word: the socket is gone, or says the word itself."""
        if self._task is not None:
            self._task.cancel()
        self._detach()

    def _detach(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._extra:
            task.cancel()
        if self._room is not None:
            self._center.hub.leave(self._join.private, self.sub_topic, self)
            left = self._room.presence.untrack(self)
            if left is not None:
                self._tell_presence(left)
            self._room = None

    # -- to the client ---------------------------------------------------------------------------

    def receive(self, frame: str | bytes, message_id: str | None) -> None:
        """A message of the room. One that was replayed is not sent again."""
        if self._held is not None:
            self._held.append((frame, message_id))
        elif message_id is None or message_id not in self._replayed:
            self._socket.send(frame)

    def _push(self, event: str, payload: Any, *, ref: Ref = None) -> None:
        self._socket.send(
            encode(
                self.version,
                join_ref=self.join_ref,
                ref=ref,
                topic=self.topic,
                event=event,
                payload=payload,
            )
        )

    def _reply(self, ref: Ref, response: Mapping[str, Any], status: str = "ok") -> None:
        self._push("phx_reply", {"status": status, "response": response}, ref=ref)

    def system(self, message: str, status: str = "ok", extension: str = "system") -> None:
        """A `system` event."""
        told = {"extension": extension, "status": status, "message": message}
        self._push("system", {**told, "channel": self.sub_topic})

    def say_closed(self) -> None:
        """The channel's last frame."""
        self._push("phx_close", {}, ref=self.join_ref)

    def _shut(self, message: str) -> bool:
        """An error that ends the channel, for good as far as the client library is concerned."""
        self._detach()
        self.system(message, "error")
        self.say_closed()
        return False

    # -- joining ---------------------------------------------------------------------------------

    async def _joins(self) -> bool:
        refusal = self._refusal
        rows: list[Row] = []
        if refusal is None:
            try:
                refusal = await self._authorize()
                if refusal is None:
                    rows = await self._enter()
            except PartitionMissing:
                refusal = joining.NO_PARTITION
            except DatabaseUnavailable:
                refusal = joining.NO_DATABASE
        if refusal is not None:
            self._detach()
            await asyncio.sleep(self._center.limits.join_delay_s)
            self._reply(self._join_request.ref, {"reason": refusal.reason}, "error")
            if refusal is joining.TOO_MANY_JOINS:
                self._socket.hang_up(1001)
            return False
        self._reply(self._join_request.ref, {"postgres_changes": []})
        self._greet(rows)
        return True

    async def _authorize(self) -> Refusal | None:
        """Why the client may not join; in the order in which Supabase looks."""
        if self._center.limits.private_only and not self._join.private:
            return joining.PRIVATE_ONLY
        try:
            self._take_token(self._join.token)
        except TokenRefused as refused:
            return refused.refusal
        if not self.sub_topic:
            return joining.NO_TOPIC
        if self._join.private and not await self._may_read():
            return joining.unreadable(self.sub_topic)
        return self._join.replay if isinstance(self._join.replay, Refusal) else None

    def _take_token(self, token: str | None) -> None:
        if token is None or token.startswith("sb_"):
            token = self._socket.token
        self._claims = self._center.verifier.verify(token, self._center.now())
        self._token = token
        self._wake_at(self._claims.exp)

    def _wake_at(self, exp: float) -> None:
        """Look at the token again when it expires, and every five minutes."""
        if self._timer is not None:
            self._timer.cancel()
        wait_s = min(self._center.limits.token_check_s, max(exp - self._center.now(), 0) + 0.01)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(wait_s, self._look_at_token)

    def _look_at_token(self) -> None:
        try:
            self.inbox.put_nowait(None)
        except asyncio.QueueFull:  # a client that floods it must not outlive its token
            self._timer = asyncio.get_running_loop().call_later(1.0, self._look_at_token)

    def _acting(self) -> Acting:
        assert self._claims is not None
        claims = self._claims
        return Acting(claims.role, claims.text, claims.sub, self._socket.headers)

    async def _may_read(self) -> bool:
        extensions = ["broadcast", "presence"] if self._join.presence else ["broadcast"]
        seen = await self._center.store.may_read(self._acting(), self.sub_topic, extensions)
        return "broadcast" in seen

    async def _enter(self) -> list[Row]:
        """Subscribe, then read what is to be replayed: what comes meanwhile is held, so that
        nothing falls between the two."""
        self._held = []
        self._room = self._center.hub.enter(self._join.private, self.sub_topic, self)
        if not isinstance(self._join.replay, Replay):
            return []
        replay = self._join.replay
        return await self._center.store.replay(self.sub_topic, replay.since_ms, replay.limit)

    def _greet(self, rows: list[Row]) -> None:
        for row in rows:
            assert row.event is not None
            assert row.payload is not None
            meta = {"id": row.id, "replayed": True}
            message = Broadcast(row.event, row.payload.encode(), meta, binary=False)
            frame = encode_broadcast(self.version, self.topic, message)
            assert frame is not None
            self._socket.send(frame)
            self._replayed.add(row.id)
        held, self._held = self._held or [], None
        for waiting, message_id in held:
            self.receive(waiting, message_id)
        if self._join.presence and self._room is not None:
            self._push("presence_state", self._room.presence.state())
        if self._join.table_changes:
            self.system("postgres_changes is not served here", "error", "postgres_changes")
        if self._join.replication_ready:
            task = asyncio.get_running_loop().create_task(self._tell_replicating())
            self._extra.add(task)

    async def _tell_replicating(self) -> None:
        try:
            async with asyncio.timeout(self._center.limits.replication_s):
                await self._center.replicating.wait()
        except TimeoutError:
            self._shut(joining.NOT_REPLICATING)
            self._socket.forget(self)
            assert self._task is not None
            self._task.cancel()
        else:
            self.system(joining.REPLICATING)

    # -- messages --------------------------------------------------------------------------------

    async def _handle(self, frame: Frame | Push | None) -> bool:
        """Take one message; false ends the channel."""
        match frame:
            case None:
                return self._check_expiry()
            case Push():
                return await self._broadcast(frame.ref, _of_push(frame))
            case Frame(event="phx_leave"):
                self._detach()
                self._reply(frame.ref, {})
                self.say_closed()
                return False
            case Frame(event="access_token"):
                return await self._access_token(frame.payload)
            case Frame(event="broadcast"):
                return await self._broadcast(frame.ref, _of_text(frame.payload))
            case Frame(event="presence"):
                return await self._presence(frame)
        return True

    def _check_expiry(self) -> bool:
        assert self._claims is not None
        late_s = self._center.now() - self._claims.exp
        if late_s >= 0:
            return self._shut(joining.expired(int(late_s)).text)
        self._wake_at(self._claims.exp)
        return True

    async def _access_token(self, payload: Any) -> bool:
        token = payload.get("access_token") if isinstance(payload, dict) else None
        if not isinstance(token, str) or token.startswith("sb_") or token == self._token:
            return True
        try:
            self._take_token(token)
            if self._join.private and not await self._may_read():
                return self._shut(joining.revoked(self.sub_topic))
        except TokenRefused as refused:
            return self._shut(refused.refusal.text)
        except DatabaseUnavailable:
            return self._shut(joining.NO_DATABASE.text)
        self._writable.clear()
        return True

    async def _broadcast(self, ref: Ref, message: Broadcast | None) -> bool:
        self._center.events.add()
        if self._center.events.exceeded:
            return self._shut(joining.TOO_MANY_MESSAGES)
        if message is None or not fits(self.topic, message.event):
            return True
        if not await self._may_write("broadcast"):
            return True  # no reply: the client's own deadline tells it
        if len(message.payload) > self._center.limits.payload_bytes:
            if self._join.ack:
                self._reply(ref, {"reason": "payload_size_exceeded"}, "error")
            return True
        sender = None if self._join.to_self else self
        self._center.hub.publish(self._join.private, self.sub_topic, message, but=sender)
        if self._join.ack:
            self._reply(ref, {})
        return True

    async def _may_write(self, extension: str) -> bool:
        if not self._join.private:
            return True
        if extension not in self._writable:
            store = self._center.store
            try:
                may = await store.may_write(self._acting(), self.sub_topic, extension)
            except (DatabaseUnavailable, PartitionMissing):
                return False  # not known: asked again with the next message
            self._writable[extension] = may
        return self._writable[extension]

    async def _presence(self, frame: Frame) -> bool:
        said = frame.payload if isinstance(frame.payload, dict) else {}
        if not await self._may_write("presence") or self._room is None:
            return True
        change = None
        if str(said.get("event")).lower() == "track":
            payload = said.get("payload")
            payload = payload if isinstance(payload, dict) else {}
            change = self._room.presence.track(self, self._presence_key, payload)
        elif str(said.get("event")).lower() == "untrack":
            change = self._room.presence.untrack(self)
        if change is not None:
            self._tell_presence(change)
        self._reply(frame.ref, {})
        return True

    def _tell_presence(self, change: Mapping[str, Any]) -> None:
        assert self._room is not None
        for member in self._room.members:
            if isinstance(member, Channel):
                member.tell_presence(change)

    def tell_presence(self, change: Mapping[str, Any]) -> None:
        """Somebody came or went, where the client asked to know."""
        if self._join.presence:
            self._push("presence_diff", change)


def _of_push(frame: Push) -> Broadcast:
    return Broadcast(frame.event, frame.payload, is_json=frame.is_json)


def _of_text(payload: Any) -> Broadcast | None:
    """A broadcast of a text frame; only event and payload are taken from it."""
    if not isinstance(payload, dict) or not isinstance(payload.get("event"), str):
        return None
    return Broadcast(payload["event"], orjson.dumps(payload.get("payload")), binary=False)

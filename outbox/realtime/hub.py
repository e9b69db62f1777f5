"""Who is subscribed to what, and what each gets when something is published.

A topic that is joined as private and one of the same name that is not are two rooms: what is sent
to one never reaches the other. A message is encoded once for each version, not for each client.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from outbox.realtime.frames import Broadcast, encode_broadcast, fits
from outbox.realtime.joining import PREFIX
from outbox.realtime.limits import Clock, Limits, Rate
from outbox.realtime.presence import Presence
from outbox.realtime.tokens import Verifier
from outbox.store.realtime import RealtimeStore, Row

log = structlog.get_logger("outbox.realtime")

RoomKey = tuple[bool, str]


class Member(Protocol):
    """A channel, as a room knows it."""

    @property
    def version(self) -> str: ...

    def receive(self, frame: str | bytes, message_id: str | None) -> None: ...


@dataclass(slots=True)
class Room:
    """The channels of one topic, in the order in which they joined, and who is present there."""

    members: dict[Member, None] = field(default_factory=dict)
    presence: Presence = field(default_factory=Presence)


class Hub:
    """The rooms of a server."""

    def __init__(self) -> None:
        self._rooms: dict[RoomKey, Room] = {}

    def enter(self, private: bool, sub_topic: str, member: Member) -> Room:
        """Subscribe a channel; returns the room."""
        room = self._rooms.setdefault((private, sub_topic), Room())
        room.members[member] = None
        return room

    def leave(self, private: bool, sub_topic: str, member: Member) -> None:
        """Unsubscribe a channel. A room that nobody is in is no more."""
        room = self._rooms.get((private, sub_topic))
        if room is not None:
            room.members.pop(member, None)
            if not room.members:
                del self._rooms[(private, sub_topic)]

    def publish(
        self, private: bool, sub_topic: str, message: Broadcast, *, but: Member | None = None
    ) -> int:
        """Send a message to all in a room, `but` one; returns to how many."""
        room = self._rooms.get((private, sub_topic))
        if room is None:
            return 0
        frames: dict[str, str | bytes | None] = {}
        message_id = message.meta.get("id")
        known = message_id if isinstance(message_id, str) else None
        sent = 0
        for member in list(room.members):
            version = member.version
            if version not in frames:
                frames[version] = encode_broadcast(version, PREFIX + sub_topic, message)
            frame = frames[version]
            if frame is not None and member is not but:
                member.receive(frame, known)
                sent += 1
        return sent

    def has(self, private: bool, sub_topic: str) -> bool:
        """Whether anybody would get a message."""
        return (private, sub_topic) in self._rooms


@dataclass(slots=True)
class Center:
    """What every session and request of a server shares."""

    store: RealtimeStore
    verifier: Verifier
    limits: Limits
    now: Clock
    hub: Hub = field(default_factory=Hub)
    replicating: asyncio.Event = field(default_factory=asyncio.Event)
    events: Rate = field(init=False)
    joins: Rate = field(init=False)

    def __post_init__(self) -> None:
        self.events = Rate(self.limits.events_per_s, self.now)
        self.joins = Rate(self.limits.joins_per_s, self.now)

    def publish_rows(self, rows: Sequence[Row]) -> None:
        """Send committed messages out. What the protocol cannot carry is logged and dropped, as
        Supabase does, which tells nobody."""
        for row in rows:
            if (problem := self._problem(row)) is not None:
                log.warning("realtime.dropped", id=row.id, topic=row.topic, reason=problem)
                continue
            self.events.add()
            assert row.event is not None
            assert row.private is not None
            if not self.hub.has(row.private, row.topic):
                continue
            payload = row.binary_payload
            is_json = row.payload is not None
            if row.payload is not None:
                payload = row.payload.encode()
            assert payload is not None
            message = Broadcast(row.event, payload, {"id": row.id}, is_json)
            self.hub.publish(row.private, row.topic, message)

    def _problem(self, row: Row) -> str | None:
        payload = row.binary_payload if row.payload is None else row.payload
        if row.event is None or row.private is None or payload is None:
            return "event, private and payload must not be null"
        if not fits(PREFIX + row.topic, row.event):
            return "topic or event is too long"
        if len(payload if isinstance(payload, bytes) else payload.encode()) > (
            self.limits.payload_bytes
        ):
            return "the payload is too large"
        return "too many messages per second" if self.events.exceeded else None

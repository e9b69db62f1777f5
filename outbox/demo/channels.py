"""The live part of the demo: the stand-in for Supabase Realtime, and the screens that listen to it.

Owns both processes, the secret that signs the tokens of members, and what the screens told. It
promises that every screen has joined its channel before the shop opens.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from outbox.demo.child import Child
from outbox.demo.scene import ORGS, WATCHED, topic_of
from outbox.demo.tokens import sign
from outbox.errors import OutboxError

STILL_S = 5.0
"""So long without any message, and what is still missing on the screens is missing."""
LOOK_S = 0.02

Heard = tuple[str, str]
"""The organization of a screen, and the id of a message."""


@dataclass(slots=True)
class Channels:
    """Where the screens listen, and what they heard: unix times by screen and message. `refused`
    are their joins of other organizations' channels, `admitted` those that were let in; `cuts` are
    the connections that they lost."""

    server: Child
    screens: Child
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(48), repr=False)
    page: str = ""
    heard: dict[Heard, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    ready: asyncio.Event = field(default_factory=asyncio.Event)

    @classmethod
    async def start(cls, stack: AsyncExitStack) -> Channels:
        """Start both processes, which are ended by the stack."""
        server = await Child.start("outbox.demo.standin")
        stack.push_async_callback(server.close)
        screens = await Child.start("outbox.demo.screens")
        stack.push_async_callback(screens.close)
        return cls(server, screens)

    async def open(self, url: str, members: Mapping[str, str]) -> None:
        """Serve this database; `members` is a user of each organization."""
        way = f"/live/{secrets.token_urlsafe(9)}"
        watched = {org: members[org] for org in WATCHED}
        self.server.tell({"url": url, "secret": self.secret, "way": way, "members": watched})
        address = f"127.0.0.1:{await _told_port(self.server)}"
        self.page = f"http://{address}{way}"
        screens = [
            {
                "org": org,
                "own": topic_of(org),
                "others": [topic_of(other) for other in ORGS if other != org],
                "token": sign(self.secret, members[org]),
            }
            for org in ORGS
        ]
        url = f"ws://{address}/realtime/v1/websocket"
        self.screens.tell({"url": url, "screens": screens})

    async def watch_server(self) -> None:
        """Raises OutboxError when the server ends."""
        async for _ in self.server.messages():
            pass

    async def watch_screens(self) -> None:
        """Take down what the screens tell. Raises OutboxError when they end."""
        async for message in self.screens.messages():
            for org, message_id, at in message.get("heard", ()):
                self.heard.setdefault((org, message_id), at)
            if "counts" in message:
                self.counts = message["counts"]
                self.ready.set()

    async def until_heard(self, wanted: Collection[Heard], still_s: float = STILL_S) -> None:
        """Wait until the screens have heard all of these, or nothing more for `still_s` seconds."""
        known, moved_at = len(self.heard), time.monotonic()
        while not self.heard.keys() >= set(wanted):
            await asyncio.sleep(LOOK_S)
            if len(self.heard) > known:
                known, moved_at = len(self.heard), time.monotonic()
            elif time.monotonic() - moved_at > still_s:
                return

    def dismiss(self) -> None:
        """The screens hang up: nothing is counted any more."""
        self.screens.tell({"leave": True})


async def _told_port(server: Child) -> int:
    async for message in server.messages():
        return int(message["port"])
    raise OutboxError("the stand-in for Realtime did not start")

"""The server of `outbox realtime`, for the demo: on 127.0.0.1, with a short way to its page.

Run as a process of its own (`python -P -m outbox.demo.standin`): a line of JSON on standard input
names the database, the secret of the tokens and who watches what; ended by its closed input.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any
from urllib.parse import urlencode

from outbox.demo.scene import REPLAYED, topic_of
from outbox.demo.tokens import sign
from outbox.demo.told import obey, tell
from outbox.logs import configure_logs
from outbox.realtime.limits import Limits
from outbox.realtime.server import RealtimeServer, bind, serve
from outbox.realtime.tokens import Verifier
from outbox.store.realtime import require_shim

HOST = "127.0.0.1"
EVENTS_PER_S = 1_000_000
"""The demo writes as fast as it is told to, which is beyond the limit of a small plan."""


def page(secret: str, members: dict[str, str]) -> str:
    """The page with the topics of these organizations, each with a fresh token of its member."""
    watched = [f"{topic_of(org)}|{sign(secret, user)}" for org, user in members.items()]
    return f"/#{urlencode([('replay', REPLAYED), *(('watch', one) for one in watched)])}"


async def run(task: dict[str, Any], reader: asyncio.StreamReader) -> None:
    """Serve until the input ends."""
    url, secret = task["url"], task["secret"]
    await asyncio.to_thread(require_shim, url)
    server = RealtimeServer(
        url,
        Verifier(secret, None),
        Limits(events_per_s=EVENTS_PER_S).without_delays(),
        ways={task["way"]: lambda: page(secret, task["members"])},
    )

    async def until_let_go() -> None:
        await reader.read()
        server.stop()

    with bind(HOST, 0) as listening:
        leash = asyncio.create_task(until_let_go())
        await serve(server, listening, lambda: tell({"port": listening.getsockname()[1]}))
        leash.cancel()


if __name__ == "__main__":
    configure_logs(None, stream=sys.stderr)
    asyncio.run(obey(run))

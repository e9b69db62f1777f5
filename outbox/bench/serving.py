"""How the receivers of the bench run: one listening socket, told and telling in lines of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

HOST = "127.0.0.1"
BACKLOG = 4096

Tell = Callable[[dict[str, Any]], dict[str, Any]]


def serve(protocol: Callable[[], asyncio.Protocol], tell: Tell) -> None:
    """Print the port, then what `tell` makes of each line of input; return when the input ends."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(_serve(protocol, tell))


async def _serve(protocol: Callable[[], asyncio.Protocol], tell: Tell) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, HOST, 0, backlog=BACKLOG)
    _say({"port": server.sockets[0].getsockname()[1]})
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        _say(tell(json.loads(line)))
    server.close()


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()

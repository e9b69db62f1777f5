"""A TCP proxy on loopback that a test can make bad: half-open, slow, cut.

`frozen`: sockets stay open on both sides and nothing is forwarded, new connections included; what
was sent meanwhile arrives after the thaw. `abandon` leaves every connection of this moment so for
ever, while new ones work: what a firewall does that forgot them. `delay_s` is added to each chunk
in each direction. `cut` closes every connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

_CHUNK = 65536


@dataclass(eq=False)
class _Link:
    """One proxied connection. `open` is cleared while nothing may pass. `task` is kept, since the
    loop alone would let it be collected, and its sockets with it."""

    task: asyncio.Task[Any] | None
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)


class Proxy:
    """Forwards `port` to a port of this host, from a thread of its own."""

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self._loop = asyncio.new_event_loop()
        self._links: set[_Link] = set()
        self._dead: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._frozen = False
        self.delay_s = 0.0
        self.port = 0

    def through(self, url: str) -> str:
        """A URL of the target, led through this proxy."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        return parts._replace(netloc=f"{credentials}@127.0.0.1:{self.port}").geturl()

    def freeze(self) -> None:
        """Forward nothing more, and close nothing."""
        self._do(self._freeze)

    def thaw(self) -> None:
        """Forward again, also what came meanwhile."""
        self._do(self._thaw)

    def abandon(self) -> int:
        """Leave today's connections open and dead, and close the dead ones of the last time: they
        take places in the server. Returns how many there were."""
        before = len(self._links)
        self._do(self._abandon)
        return before

    def cut(self) -> None:
        """Close every connection."""
        self._do(self._cut)

    def _freeze(self) -> None:
        self._frozen = True
        for link in self._links:
            link.open.clear()

    def _thaw(self) -> None:
        self._frozen = False
        for link in self._links:
            link.open.set()

    def _abandon(self) -> None:
        self._close(self._dead)
        self._dead.clear()
        for link in self._links:
            link.open.clear()
        self._dead |= self._links
        self._links.clear()

    def _cut(self) -> None:
        self._close(self._links)

    def _close(self, links: set[_Link]) -> None:
        for writer in [writer for link in links for writer in link.writers]:
            writer.transport.abort()

    def _do(self, action: object) -> None:
        async def run() -> None:
            assert callable(action)
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(asyncio.current_task(), [writer])
        self._links.add(link)
        if not self._frozen:
            link.open.set()
        try:
            await link.open.wait()
            onward = await asyncio.open_connection("127.0.0.1", self._target)
            link.writers.append(onward[1])
            await asyncio.gather(
                self._pump(link, reader, onward[1]), self._pump(link, onward[0], writer)
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(link)
            for one in link.writers:
                one.close()

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await link.open.wait()
                writer.write(data)
                await writer.drain()
        await link.open.wait()  # a close is not forwarded either
        for one in link.writers:
            one.close()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _finish(self) -> None:
        assert self._server is not None
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextmanager
def proxy_to(port: int) -> Iterator[Proxy]:
    """A running proxy to a port of this host."""
    proxy = Proxy(port)
    loop = proxy._loop
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(proxy._start(), loop).result(10)
    try:
        yield proxy
    finally:
        asyncio.run_coroutine_threadsafe(proxy._finish(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

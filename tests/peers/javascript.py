"""Node with supabase-js, and Chromium, as tests drive them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.realtime.scene import WITHIN_S


class Node:
    """A running client.mjs: tell it what to do, wait for what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.heard: list[dict[str, Any]] = []

    async def do(self, command: str, **more: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": command, **more}).encode() + b"\n")
        await self._process.stdin.drain()

    async def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next event for which the condition holds; what comes before it stays in `heard`."""
        assert self._process.stdout is not None
        async with asyncio.timeout(WITHIN_S):
            while True:
                line = await self._process.stdout.readline()
                assert line, "the client has ended"
                event: dict[str, Any] = json.loads(line)
                self.heard.append(event)
                if condition(event):
                    return event

    async def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        wanted = {"on": kind, **fields}
        return await self.until(lambda event: wanted.items() <= event.items())

    async def joined(self, topic: str, **more: Any) -> None:
        await self.do("join", topic=topic, **more)
        await self.event("status", topic=topic, status="SUBSCRIBED")

    def broadcasts(self) -> list[dict[str, Any]]:
        return [event for event in self.heard if event["on"] == "broadcast"]


@asynccontextmanager
async def node(folder: Path, url: str, key: str) -> AsyncIterator[Node]:
    process = await asyncio.create_subprocess_exec(
        *("node", "client.mjs", url, key),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=2**22,
    )
    try:
        yield Node(process)
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


# -- a browser -------------------------------------------------------------------------------------


class Browser:
    """One page of a headless Chromium, over its debugging protocol."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._ids = count(1)

    async def call(self, method: str, **params: Any) -> Any:
        number = next(self._ids)
        await self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        async with asyncio.timeout(WITHIN_S):
            while True:
                answer = json.loads(await self._socket.recv())
                if answer.get("id") == number:
                    assert "error" not in answer, answer
                    return answer["result"]

    async def value(self, expression: str) -> Any:
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        return found["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true."""
        async with asyncio.timeout(WITHIN_S):
            while not (value := await self.value(expression)):
                await asyncio.sleep(0.02)
        return value


@asynccontextmanager
async def browser(program: str, folder: Path, url: str) -> AsyncIterator[Browser]:
    process = await asyncio.create_subprocess_exec(
        program,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
        f"--user-data-dir={folder / 'profile'}",
        "--remote-debugging-port=0",
        url,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with connect(await _page_of(folder, url), max_size=None) as socket:
            page = Browser(socket)
            await page.until("location.protocol === 'http:' && document.readyState === 'complete'")
            yield page
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _page_of(folder: Path, url: str) -> str:
    """The debugging address of the page, once it is there."""
    import httpx

    port_file = folder / "profile" / "DevToolsActivePort"
    async with asyncio.timeout(3 * WITHIN_S), httpx.AsyncClient() as client:
        while True:
            with suppress(OSError, IndexError, httpx.HTTPError):
                port = port_file.read_text().splitlines()[0]
                pages = (await client.get(f"http://127.0.0.1:{port}/json")).json()
                for page in pages:
                    if page["type"] == "page" and page["url"].startswith(url.partition("#")[0]):
                        return str(page["webSocketDebuggerUrl"])
            await asyncio.sleep(0.05)

"""A child process that is told and tells in lines of JSON, and never outlives this process.

Its standard input is the leash: closed when this process ends in whatever way, upon which the
child ends too.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from outbox.errors import OutboxError

LINE_BYTES_MAX = 1 << 20
END_S = 2.0


class Child:
    """One running module of this package."""

    def __init__(self, module: str, process: asyncio.subprocess.Process) -> None:
        self._module = module
        self._process = process

    @classmethod
    async def start(cls, module: str) -> Child:
        """Start `module`, with the path as it is here and the working folder not on it."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=LINE_BYTES_MAX,
            start_new_session=True,  # Ctrl-C reaches this process, which then ends its children
        )
        return cls(module, process)

    def tell(self, message: dict[str, Any]) -> None:
        """Send one message."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """What it tells. Raises OutboxError where it ends before it is told to."""
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            if "error" in message:
                raise OutboxError(f"{self._module} failed: {message['error']}")
            yield message
        code = await self._process.wait()
        raise OutboxError(f"{self._module} ended with exit code {code}")

    async def close(self) -> None:
        """Let it end, within `END_S` seconds, else make it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), END_S)
        if self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

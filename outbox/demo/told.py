"""The child's side of outbox/demo/child.py: lines of JSON in by standard input, and out."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any


def tell(message: dict[str, Any]) -> None:
    """Tell the parent. Where it is gone nobody listens, and the input ends too."""
    with suppress(BrokenPipeError):
        sys.stdout.write(json.dumps(message) + "\n")
        sys.stdout.flush()


async def listening() -> asyncio.StreamReader:
    """What the parent tells, line by line; it ends with the parent."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


async def obey(run: Callable[[dict[str, Any], asyncio.StreamReader], Awaitable[None]]) -> None:
    """Be told one thing and do it; what goes wrong is told to the parent, which ends the demo."""
    reader = await listening()
    if not (line := await reader.readline()):
        return
    try:
        await run(json.loads(line), reader)
    except Exception as error:  # noqa: BLE001 (told, see above)
        tell({"error": f"{type(error).__name__}: {error}"})

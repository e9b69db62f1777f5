"""Documents as the rest of the system knows them: read by organization, removed when nobody names
them any more.

Every object is noted in PostgreSQL before it is stored and forgotten there when an artifact names
it, so that what nobody names (a worker died, an event was redacted meanwhile) is found and removed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from outbox.errors import NotFound
from outbox.settings import Settings
from outbox.store.artifacts import REMOVE_S, ArtifactBook
from outbox.store.connect import HotConnection, connect_hot, translated
from outbox.store.upkeep import upkeep
from processors.storage import Store, key_of, open_store

log = structlog.get_logger("outbox.artifacts")

TEND_S = 60.0
"""How often a worker looks for what is to be removed."""


async def fetch(settings: Settings, org_id: str | None, sha256: str) -> bytes:
    """The bytes of a document of an organization. Raises NotFound where the organization has no
    such document, whoever else may have it."""
    key = key_of(org_id, sha256)
    if not await _known(settings, org_id, sha256):
        raise NotFound(f"there is no document {sha256} of this organization")
    content = await open_store(settings).get(key)
    if content is None:
        raise NotFound(f"the document {sha256} is not where OUTBOX_ARTIFACTS_URL says")
    return content


async def _known(settings: Settings, org_id: str | None, sha256: str) -> bool:
    """Over a connection that is given up when no answer comes: an e-mail waits for this."""
    with translated():
        connection = await connect_hot(settings.database, "artifacts")
        try:
            return await ArtifactBook(connection).knows(org_id, sha256)
        finally:
            await connection.raw.close()


# -- removing -------------------------------------------------------------------------------------


async def remove_strays(
    store: Store, book: ArtifactBook, clock: Callable[[], float] = time.monotonic
) -> int:
    """Remove stored bytes that no artifact names any more; returns how many. Raises StoreFailed and
    the driver's errors; what is left waits for the next time."""
    removed = 0
    began = clock()
    while strays := await book.strays():
        for stray in strays:
            if clock() - began > REMOVE_S / 2:
                return removed  # a slow store: the claims must not run out while we remove
            await store.remove(key_of(stray.org_id, stray.sha256))
            await book.forget(stray)
            removed += 1
        began = clock()
    return removed


async def tend(settings: Settings, connection: HotConnection) -> int:
    """Once: let go what is past OUTBOX_ARTIFACTS_KEEP, and remove what nobody names or finished."""
    book = ArtifactBook(connection)
    if settings.artifacts_keep is not None:
        await book.expire(settings.artifacts_keep)
    store = open_store(settings)
    await store.sweep()
    return await remove_strays(store, book)


async def tend_once(settings: Settings) -> int:
    """The same over a connection of its own, for commands."""
    connection = await connect_hot(settings.database, "artifacts")
    try:
        return await tend(settings, connection)
    finally:
        await connection.raw.close()


def tending(settings: Settings) -> Coroutine[Any, Any, None]:
    """Tend every minute until cancelled, whatever happens to database or bucket."""

    async def body(connection: HotConnection) -> None:
        if removed := await tend(settings, connection):
            log.info("artifacts.removed", count=removed)

    return upkeep("artifacts", lambda: connect_hot(settings.database, "artifacts"), TEND_S, body)


def places(settings: Settings, found: Sequence[tuple[str | None, str]]) -> list[dict[str, Any]]:
    """Where documents (organization, SHA-256) lie: `url`, a link where one can be made, and
    `place`. For the command line."""
    store = open_store(settings)

    async def look() -> list[dict[str, Any]]:
        keys = [key_of(org, sha256) for org, sha256 in found]
        return [{"url": await store.url(key), "place": store.place(key)} for key in keys]

    return asyncio.run(look())

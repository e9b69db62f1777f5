"""Artifacts: the documents that were rendered, by event and delivery; and the strays, stored bytes
that no artifact names.

Promises: whatever is stored is named here, as a stray from before it is stored until an artifact
takes its place in the transaction that settles the delivery. An artifact that goes (redacted,
removed, past its life) leaves its content as a stray, which is removed once no artifact of the
organization names it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import psycopg

from outbox.store import arrays
from outbox.store.connect import FAILED, HotConnection
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

LIST_MAX = 1000
STRAYS_MAX = 100
EXPIRED_MAX = 500
REMOVE_S = 300.0
"""So long a claim to remove content holds; removing itself takes no longer than a minute."""
STRAY_AFTER = timedelta(hours=1)
"""So long after content was noted nobody is still about to settle it."""


@dataclass(frozen=True, slots=True)
class Stray:
    """Content to remove from the store, which is claimed until `removing_until`."""

    org_id: str | None
    sha256: str
    removing_until: datetime


class BeingRemoved(Exception):
    """The content is being removed from the store: it can be stored again in a moment."""


class ArtifactBook:
    """A worker's statements about artifacts over one hot connection, one at a time."""

    def __init__(self, connection: HotConnection) -> None:
        self._connection = connection

    async def note(self, found: Sequence[tuple[str | None, str]]) -> set[tuple[str | None, str]]:
        """Say that this content (organization, SHA-256) is about to be stored. Returns what may
        be; the rest is being removed."""
        pairs = sorted({(org or "", sha256) for org, sha256 in found})
        cursor = await self._connection.run(
            "artifact_note",
            {
                "orgs": arrays.texts([org for org, _ in pairs]),
                "sha256s": arrays.texts([sha256 for _, sha256 in pairs]),
            },
        )
        return {(org or None, sha256) for org, sha256 in await cursor.fetchall()}

    async def knows(self, org_id: str | None, sha256: str) -> bool:
        """Whether an artifact of this organization has this content."""
        params = {"org_id": org_id, "sha256": sha256}
        cursor = await self._connection.run("artifact_find", params)
        return await cursor.fetchone() is not None

    async def strays(self) -> list[Stray]:
        """Claim some of the content that is to be removed, for REMOVE_S."""
        cursor = await self._connection.run(
            "artifact_strays",
            {
                "after_s": STRAY_AFTER.total_seconds(),
                "hold_s": REMOVE_S,
                "rows_max": STRAYS_MAX,
            },
        )
        return [Stray(org or None, sha256, until) for org, sha256, until in await cursor.fetchall()]

    async def forget(self, stray: Stray) -> None:
        """It is removed."""
        await self._connection.run(
            "artifact_forget",
            {
                "org": stray.org_id or "",
                "sha256": stray.sha256,
                "removing_until": stray.removing_until,
            },
        )

    async def expire(self, keep: timedelta) -> int:
        """Let artifacts older than `keep` go; returns how many."""
        total = 0
        while True:
            cursor = await self._connection.run(
                "artifact_expire", {"keep_s": keep.total_seconds(), "rows_max": EXPIRED_MAX}
            )
            row = await cursor.fetchone()
            assert row is not None
            total += int(row[0])
            if row[0] < EXPIRED_MAX:
                return total


class Notes:
    """Notes of many deliveries that run at once: one statement for all that came while the one
    before was under way, over a connection that is opened again when it breaks."""

    def __init__(self, open_connection: Callable[[], Awaitable[HotConnection]]) -> None:
        self._open = open_connection
        self._connection: HotConnection | None = None
        self._waiting: list[tuple[tuple[str | None, str], asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def note(self, org_id: str | None, sha256: str) -> None:
        """Return when it is committed. Raises BeingRemoved and the driver's errors."""
        noted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(((org_id, sha256), noted))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write())
        await noted

    async def close(self) -> None:
        """Close what is open."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._hang_up()

    async def _write(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            error: BaseException = BeingRemoved()
            free: set[tuple[str | None, str]] = set()
            try:
                free = await self._note([one for one, _ in batch])
            except FAILED as raised:
                error = raised
            for one, noted in batch:
                if noted.done():
                    continue  # cancelled meanwhile
                if one in free:
                    noted.set_result(None)
                else:
                    noted.set_exception(error)

    async def _note(self, found: Sequence[tuple[str | None, str]]) -> set[tuple[str | None, str]]:
        fresh = self._connection is None
        try:
            if self._connection is None:
                self._connection = await self._open()
            return await ArtifactBook(self._connection).note(found)
        except FAILED:
            await self._hang_up()
            if fresh:
                raise
            return await self._note(found)

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.raw.close()


def list_artifacts(
    connection: Connection,
    org: str | None = None,
    *,
    subject: str | None = None,
    event: int | None = None,
    sha256: str | None = None,
    ids: Sequence[UUID] | None = None,
    before: UUID | None = None,
    rows_max: int = 100,
) -> list[dict[str, Any]]:
    """Artifacts, newest first; `before` is the last id of the page before."""
    parameters = {
        "org_id": org,
        "subject": subject,
        "event_id": event,
        "sha256": sha256,
        "ids": None if ids is None else list(ids),
        "before": before,
        "rows_max": rows_max,
    }
    return [row[0] for row in connection.execute(statement("artifact_list"), parameters)]


def ids_of(
    connection: Connection,
    org: str | None,
    subject: str | None,
    ids: Sequence[UUID] | None,
) -> list[UUID]:
    """The ids of artifacts, all of them: of these ids, or about a subject."""
    parameters = {"org_id": org, "subject": subject, "ids": ids}
    return [row[0] for row in connection.execute(statement("artifact_ids"), parameters)]


def remove_artifacts(connection: Connection, ids: Sequence[UUID]) -> int:
    """Let artifacts go by id; returns how many there were."""
    row = connection.execute(statement("artifact_remove"), {"ids": list(ids)}).fetchone()
    assert row is not None
    return int(row[0])

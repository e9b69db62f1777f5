"""E-mail in PostgreSQL: frozen messages, their recipients, the suppression list.

`Emails` serves a worker: many attempts run at once, so what they ask is collected while the
statement before is under way and asked together. The rest serves commands, and the intake of
reports.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar
from uuid import UUID

import psycopg

from outbox.bounces import Report
from outbox.errors import DatabaseUnavailable, NotFound
from outbox.recipients import HARD, Recipient
from outbox.store import arrays
from outbox.store.connect import FAILED, HotConnection, connect_hot, describe
from outbox.store.statements import statement

Connection = psycopg.Connection[tuple[Any, ...]]

BATCH_MAX = 250
BATCH_BYTES_MAX = 32 * 1024 * 1024
LINGER_S = 0.002
"""How long a statement waits for company: nobody notices it in a mail, and at full speed it makes
five statements one."""
LIST_MAX = 1000

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class EmailsUnavailable(DatabaseUnavailable):
    """PostgreSQL did not take a statement about e-mail; nothing is known of what it did."""


@dataclass(frozen=True, slots=True)
class Person:
    """A recipient as it stands; `suppressed` says that nothing may be sent to it now."""

    n: int
    address: str
    state: Recipient
    suppressed: bool = False


@dataclass(frozen=True, slots=True)
class Frozen:
    """A message as it was frozen, and whom it is for. `again` says that the delivery was given a
    new budget since."""

    slot: int
    sender: str
    smtputf8: bool
    mime: bytes = field(repr=False)
    people: tuple[Person, ...]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to freeze. `people` are address, state (queued, or rejected with a reason)."""

    delivery_id: UUID
    message_id: str
    sender: str
    smtputf8: bool
    mime: bytes = field(repr=False)
    people: tuple[tuple[str, Recipient, str | None], ...]


class Emails:
    """A worker's statements about messages, over one connection that is opened when it is first
    needed and again when it is lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: HotConnection | None = None
        self._lock = asyncio.Lock()
        self._opens = _Together(self._open, lambda _: 0)
        self._freezes = _Together(self._freeze, lambda draft: len(draft.mime))
        self._sendings = _Together(self._sending, lambda _: 0)

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await self._connection.raw.close()

    async def open(self, delivery_id: UUID) -> Frozen | None:
        """The message of a delivery, if it is frozen. Raises EmailsUnavailable, as all do."""
        return await self._opens.ask(delivery_id)

    async def freeze(self, draft: Draft) -> Frozen | None:
        """Freeze a message; what was frozen before stands. None if this is no delivery any more."""
        return await self._freezes.ask(draft) or await self.open(draft.delivery_id)

    async def sending(self, delivery_id: UUID, slot: int, numbers: Sequence[int]) -> bool:
        """Commit that these recipients may have been sent to from now on; False if the delivery is
        not under way any more, and nothing may be sent."""
        marked = await self._sendings.ask((delivery_id, slot, tuple(numbers)))
        return marked == len(numbers)

    # -- the statements -------------------------------------------------------------------------

    async def _open(self, ids: list[UUID]) -> list[Frozen | None]:
        found = await self._opened(ids)
        again = [delivery_id for delivery_id, frozen in found.items() if frozen.again]
        if again:
            await self._run("email_reopen", {"now": None, "ids": arrays.uuids(again)})
            found |= await self._opened(again)
        return [found.get(delivery_id) for delivery_id in ids]

    async def _opened(self, ids: list[UUID]) -> dict[UUID, Frozen]:
        rows = await self._run("email_open", {"ids": arrays.uuids(ids)})
        return {
            delivery_id: Frozen(slot, sender, smtputf8, mime, _people(people), again)
            for delivery_id, slot, sender, smtputf8, mime, again, people in rows
        }

    async def _freeze(self, drafts: list[Draft]) -> list[Frozen | None]:
        params = {
            "now": None,
            "ids": arrays.uuids([d.delivery_id for d in drafts]),
            "message_ids": arrays.texts([d.message_id for d in drafts]),
            "senders": arrays.texts([d.sender for d in drafts]),
            "smtputf8": arrays.booleans([d.smtputf8 for d in drafts]),
            "mimes": [d.mime for d in drafts],
            "recipients": arrays.texts([json.dumps(d.people) for d in drafts]),
        }
        found = {row[0]: row for row in await self._run("email_freeze", params)}
        return [
            None
            if (row := found.get(d.delivery_id)) is None
            else Frozen(row[1], d.sender, d.smtputf8, d.mime, _people(row[2]))
            for d in drafts
        ]

    async def _sending(self, asked: list[tuple[UUID, int, tuple[int, ...]]]) -> list[int]:
        params = {
            "now": None,
            "wanted": json.dumps({str(delivery_id): numbers for delivery_id, _, numbers in asked}),
            "slots": arrays.numbers(sorted({slot for _, slot, _ in asked})),
        }
        marked = [row[0] for row in await self._run("email_sending", params)]
        return [marked.count(delivery_id) for delivery_id, _, _ in asked]

    async def _run(self, name: str, params: dict[str, Any]) -> list[tuple[Any, ...]]:
        async with self._lock:
            connection = self._connection
            if connection is None or connection.raw.closed:
                connection = self._connection = await connect_hot(self._url, "email")
            try:
                return await (await connection.run(name, params)).fetchall()
            except FAILED:
                if connection.raw.closed or connection.raw.broken:
                    self._connection = None
                raise


def _people(rows: list[list[Any]] | None) -> tuple[Person, ...]:
    return tuple(
        Person(n, address, Recipient(state), suppressed)
        for n, address, state, suppressed in rows or ()
    )


class _Together(Generic[Item, Answer]):
    """Asks many at once: what comes in while one statement runs goes into the next."""

    def __init__(
        self,
        ask_all: Callable[[list[Item]], Awaitable[Sequence[Answer]]],
        size_of: Callable[[Item], int],
    ) -> None:
        self._ask_all = ask_all
        self._size_of = size_of
        self._waiting: list[tuple[Item, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, item: Item) -> Answer:
        """The answer to one; an error of the statement is everybody's."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._work())
        return await future

    async def _work(self) -> None:
        while self._waiting:
            await asyncio.sleep(LINGER_S)
            part = self._part()
            try:
                answers = await self._ask_all([item for item, _ in part])
            except BaseException as error:
                for _, future in part:
                    if not future.done():
                        future.set_exception(_apart(error))
                if not isinstance(error, Exception):
                    raise
                continue
            for (_, future), answer in zip(part, answers, strict=True):
                if not future.done():
                    future.set_result(answer)

    def _part(self) -> list[tuple[Item, asyncio.Future[Answer]]]:
        """The next ones: so many, and so many bytes; whoever does not wait any more is left out."""
        size, n = 0, 0
        for item, _ in self._waiting[:BATCH_MAX]:
            size += self._size_of(item)
            n += 1
            if size > BATCH_BYTES_MAX:
                break
        part, self._waiting = self._waiting[:n], self._waiting[n:]
        return [(item, future) for item, future in part if not future.done()]


def _apart(error: BaseException) -> BaseException:
    """An error of its own for each who waits: raising one in several tasks mixes their traces."""
    if isinstance(error, asyncio.CancelledError):
        return asyncio.CancelledError()
    apart = EmailsUnavailable(f"e-mail cannot be read or written: {describe(error)}")
    apart.__cause__ = error
    return apart


# -- for operators --------------------------------------------------------------------------------


def list_emails(
    connection: Connection,
    org: str | None = None,
    *,
    state: str | None = None,
    address: str | None = None,
    before: datetime | None = None,
    rows_max: int = 100,
) -> list[dict[str, Any]]:
    """Messages with their recipients, newest first."""
    parameters = {
        "id": None,
        "org_id": org,
        "state": state,
        "address": address,
        "before": before,
        "rows_max": rows_max,
    }
    return [row[0] for row in connection.execute(statement("email_list"), parameters)]


def show_email(connection: Connection, delivery_id: UUID, org: str | None = None) -> dict[str, Any]:
    """The message of one delivery. Raises NotFound."""
    parameters = {
        "id": delivery_id,
        "org_id": org,
        "state": None,
        "address": None,
        "before": None,
        "rows_max": 1,
    }
    row = connection.execute(statement("email_list"), parameters).fetchone()
    if row is None:
        raise _unknown(delivery_id)
    return dict(row[0])


def email_mime(connection: Connection, delivery_id: UUID, org: str | None = None) -> bytes:
    """The message of one delivery as it was frozen. Raises NotFound."""
    parameters = {"id": delivery_id, "org_id": org}
    row = connection.execute(statement("email_mime"), parameters).fetchone()
    if row is None:
        raise _unknown(delivery_id)
    return bytes(row[0])


def _unknown(delivery_id: UUID) -> NotFound:
    return NotFound(
        f"there is no e-mail of delivery {delivery_id}, or it is past retention;"
        " see: outbox emails list"
    )


@dataclass(frozen=True, slots=True)
class Noted:
    """What reports did: how many were of a message that is here, and how many changed something."""

    reports: int = 0
    known: int = 0
    changed: int = 0


def note_reports(
    connection: Connection, reports: Sequence[Report], org: str | None = None
) -> Noted:
    """Note what became of messages. With `org` only its own messages are touched. The same report
    twice changes nothing."""
    known = changed = 0
    for report in reports:
        parameters = {
            "now": None,
            "id": report.delivery_id,
            "org_id": org,
            "address": report.address,
            "state": report.state,
            "code": report.code,
            "reply": report.reply,
            "reason": suppression_reason(report),
        }
        with connection.transaction():
            row = connection.execute(statement("email_report"), parameters).fetchone()
        assert row is not None
        known += row[0] > 0
        changed += row[1] > 0
    return Noted(len(reports), known, changed)


def suppression_reason(report: Report) -> str | None:
    """Why an address is suppressed after a report, or None."""
    if report.state is Recipient.COMPLAINED:
        return "complained"
    if report.state is Recipient.BOUNCED and report.code in HARD:
        return f"bounced {report.code}"
    return None


def add_suppression(
    connection: Connection, address: str, org: str | None, reason: str = "manual"
) -> bool:
    """Suppress an address in an organization; False if it was suppressed already."""
    parameters = {"org_id": org or "", "address": address.lower(), "reason": reason}
    return connection.execute(statement("suppression_add"), parameters).fetchone() is not None


def remove_suppression(connection: Connection, address: str, org: str | None) -> None:
    """Send to an address again. Raises NotFound."""
    parameters = {"org_id": org or "", "address": address.lower()}
    if connection.execute(statement("suppression_remove"), parameters).fetchone() is None:
        raise NotFound(f"{address} is not suppressed; see: outbox suppressions list")


def list_suppressions(
    connection: Connection,
    org: str | None = None,
    *,
    after: tuple[str | None, str] | None = None,
    rows_max: int = LIST_MAX,
) -> list[dict[str, Any]]:
    """Suppressed addresses; `after` is organization and address of the last of the page before."""
    parameters = {
        "org_id": org,
        "after_org": None if after is None else after[0] or "",
        "after": None if after is None else after[1],
        "rows_max": rows_max,
    }
    return [row[0] for row in connection.execute(statement("suppression_list"), parameters)]

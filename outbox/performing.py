"""Makes one attempt with a user's function: on the loop, in a thread, or in a process of its own.

Owns the bound on threads and processes, and how what the function returned or raised becomes an
outcome. A coroutine that is told to end and does not, and a thread that does not, are left behind:
the attempt is settled without them, and a thread counts against the bound until it ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import structlog

from outbox.effects import Effects
from outbox.errors import UsageError
from outbox.outcome import Cancelled, Internal, Kind, Outcome, from_raised
from outbox.processing import Context, Event, UserProcessor
from outbox.pulse import Pulse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outbox.work import Work

log = structlog.get_logger("outbox.processor")

THREADS_MAX = 64
PROCESSES_MAX = 2 * (os.cpu_count() or 1)
LEAVE_S = 5.0
"""How long a coroutine that is told to end may take before it is left behind."""
ROOM_S_MAX = 30.0
"""How long an attempt waits for a thread or a process before it is given up, uncharged."""

DONE = Outcome(Kind.DELIVERED, "done")


@dataclass(frozen=True, slots=True)
class Room:
    """How many functions of the user's may run at once in this process, beside coroutines."""

    threads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(THREADS_MAX))
    processes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PROCESSES_MAX))


async def perform(
    processor: UserProcessor, work: Work, deadline: float, room: Room | None = None
) -> Outcome:
    """One attempt. `deadline` is a time of the running loop. Without a room that it shares with
    others, a coroutine is awaited in place, so that its caller sees each of its awaits."""
    try:
        context = _context(processor, work, deadline)
    except UsageError as error:
        # What was stored no longer passes the check: a mistake of the program, not of the event.
        return Outcome(Kind.INTERNAL, "config_refused", detail={"error": str(error)[:500]})
    try:
        result = await _run(processor, Event.of(work), context, room)
        outcome = _read(result)
    except asyncio.CancelledError:
        context.pulse.call_off()
        raise
    except Cancelled as error:
        # It stopped because it was told to, a moment before the task was.
        raise asyncio.CancelledError(str(error)) from error
    except Exception as error:  # noqa: BLE001 (translated in one place)
        outcome = from_raised(error)
        if outcome.reason == "exception":
            context.logger.warning("processor.raised", error=outcome.detail["error"])
    return _with_emissions(outcome, context)


def _context(processor: UserProcessor, work: Work, deadline: float) -> Context:
    loop_now = asyncio.get_running_loop().time()
    stored = {} if work.setup is None else work.setup.config
    return Context(
        key=work.delivery_id,
        attempt=work.attempt,
        deadline=time.monotonic() + (deadline - loop_now),
        organization=work.org_id,
        config=processor.configured(stored),
        raw=stored,
        processor=processor.name,
        pulse=work.pulse or Pulse(),
    )


def _read(result: object) -> Outcome:
    if result is None:
        return DONE
    if isinstance(result, Outcome):
        return result
    raise TypeError(
        f"a processor returns None or an outbox.Outcome, not {result.__class__.__name__}"
    )


def _with_emissions(outcome: Outcome, context: Context) -> Outcome:
    if not context.emissions or outcome.kind is not Kind.DELIVERED:
        return outcome
    effects = outcome.effects or Effects()
    return replace(outcome, effects=replace(effects, emit=(*effects.emit, *context.emissions)))


async def _run(
    processor: UserProcessor, event: Event, context: Context, room: Room | None
) -> object:
    if processor.is_async:
        made: Any = processor.function(event, context)
        return await (made if room is None else _leaving_behind(made, context))
    room = room or Room()
    if not processor.isolated:
        return await _in_thread(lambda: processor.function(event, context), room.threads)
    from outbox.isolation import run_isolated

    async with _admitted(room.processes):
        return await run_isolated(processor, event, context)


# -- on the loop ----------------------------------------------------------------------------------


async def _leaving_behind(made: Any, context: Context) -> object:
    """Await a coroutine; when this is cancelled it is told to end, and waited for a moment."""
    task = asyncio.ensure_future(made)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        context.pulse.call_off()
        if not task.done():
            task.cancel()
            await asyncio.wait([task], timeout=LEAVE_S)
        if not task.done():
            context.logger.error("processor.does_not_end", hint="it swallows CancelledError")
            task.add_done_callback(_forget)
        elif not task.cancelled():
            _forget(task)
        raise


def _forget(task: asyncio.Future[object]) -> None:
    if not task.cancelled():
        task.exception()


# -- in a thread ----------------------------------------------------------------------------------


async def _in_thread(function: Callable[[], object], room: asyncio.Semaphore) -> object:
    """Run a function in a daemon thread of its own. Its place is free when the thread has ended,
    however long that takes."""
    await _enter(room)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[object] = loop.create_future()
    inside = contextvars.copy_context()

    def end(result: object, error: BaseException | None) -> None:
        room.release()
        if ended.done():
            return
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def body() -> None:
        result, error = None, None
        try:
            result = inside.run(function)
        except BaseException as raised:  # noqa: BLE001 (handed to whoever awaits it)
            error = _carried(raised)
        with suppress(RuntimeError):  # the loop has closed: nobody waits
            loop.call_soon_threadsafe(end, result, error)

    threading.Thread(target=body, name="outbox processor", daemon=True).start()
    return await ended


def _carried(error: BaseException) -> BaseException:
    """What a future can hold: StopIteration it cannot, and SystemExit would end this process."""
    if isinstance(error, Exception | Cancelled) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__} left the processor: {error}")


# -- room -----------------------------------------------------------------------------------------


async def _enter(room: asyncio.Semaphore) -> None:
    """Wait for a place. Where none comes free, other work, or work that never ended, has them all:
    our fault and not the attempt's."""
    try:
        async with asyncio.timeout(ROOM_S_MAX):
            await room.acquire()
    except TimeoutError:
        raise Internal("no thread or process came free", reason="no_room") from None


@asynccontextmanager
async def _admitted(room: asyncio.Semaphore) -> AsyncIterator[None]:
    await _enter(room)
    try:
        yield
    finally:
        room.release()


Perform = Callable[["Work", float], Awaitable[Outcome]]


def performer(processor: UserProcessor, room: Room) -> Perform:
    """The processor as a worker calls it, within the room that it shares with others."""

    async def make(work: Work, deadline: float) -> Outcome:
        return await perform(processor, work, deadline, room)

    return make

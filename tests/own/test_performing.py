"""One attempt of a user's function: what it is given, what its end means, how it is stopped."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import outbox
from outbox.attempt import fitting
from outbox.errors import PayloadTooLarge, UsageError
from outbox.outcome import Kind, Outcome
from outbox.performing import Room, perform
from outbox.processing import Context, UserProcessor
from outbox.store.attempts import Settlement
from outbox.work import Setup, Work
from tests.own import jobs

WORK = Work(
    delivery_id=UUID(int=7),
    event_id=5,
    type="orders.paid",
    occurred_at="2030-01-01T00:00:00.000000Z",
    payload=b'{"do": "end", "n": 12345678901234567890123}',
    attempt=2,
    body_format=1,
    org_id="acme",
    subject="orders/5",
    headers={"a": "b"},
    kind="job",
    setup=Setup(1, 1, {"table": "contacts"}),
)


@pytest.fixture(autouse=True)
def _gate() -> Iterator[None]:
    jobs.GATE.clear()
    jobs.SEEN.clear()
    yield
    jobs.GATE.set()


def attempt(processor: UserProcessor, work: Work = WORK, left_s: float = 60.0) -> Outcome:
    async def run() -> Outcome:
        return await perform(processor, work, asyncio.get_running_loop().time() + left_s)

    return asyncio.run(run())


def doing(**task: Any) -> Work:
    return replace(WORK, payload=json.dumps(task).encode())


def made(function: Callable[..., Any], **options: Any) -> UserProcessor:
    return outbox.processor("job.made", **options)(function)


def raising(error: BaseException) -> UserProcessor:
    def function(_event: outbox.Event, _ctx: Context) -> None:
        raise error

    return made(function)


# -- what it is given ------------------------------------------------------------------------------


def test_it_gets_the_event_and_a_context() -> None:
    jobs.GATE.set()
    assert attempt(jobs.tells).kind is Kind.DELIVERED
    [(event, ctx)] = jobs.SEEN
    assert (event.id, event.type, event.org_id, event.subject) == (
        5, "orders.paid", "acme", "orders/5",
    )  # fmt: skip
    assert event.occurred_at == datetime(2030, 1, 1, tzinfo=UTC)
    assert event.data["n"] == 12345678901234567890123
    assert (event.headers, ctx.key, ctx.attempt) == ({"a": "b"}, UUID(int=7), 2)
    assert (ctx.organization, ctx.config) == ("acme", {"table": "contacts"})
    assert ctx.time_left > timedelta()
    assert ctx.processor == "job.tells"


def test_its_logger_names_delivery_organization_and_processor() -> None:
    context = Context(UUID(int=7), 1, 0.0, "acme", {}, "job.x")
    bound = context.logger._context
    assert bound == {"delivery": str(UUID(int=7)), "org": "acme", "processor": "job.x"}


@dataclass
class Book:
    table: str


def no_more(config: dict[str, Any]) -> None:
    if config != {"table": "contacts"}:
        raise ValueError("only contacts")


@pytest.mark.parametrize(("config", "seen"), [(Book, Book("contacts")), (no_more, None)])
def test_the_configuration_is_checked_and_made(config: Callable[..., Any], seen: object) -> None:
    found: list[object] = []
    processor = made(lambda _event, ctx: found.append(ctx.config), config=config)
    assert attempt(processor).kind is Kind.DELIVERED
    assert found == [seen or {"table": "contacts"}]
    with pytest.raises(UsageError, match=r"configuration of job\.made is refused"):
        processor.configured({"other": 1})


def test_a_configuration_that_passes_no_more_costs_no_attempt() -> None:
    processor = made(lambda _event, _ctx: None, config=Book)
    outcome = attempt(processor, replace(WORK, setup=Setup(1, 1, {"gone": 1})))
    assert (outcome.kind, outcome.reason) == (Kind.INTERNAL, "config_refused")


# -- how it ends -----------------------------------------------------------------------------------

ENDS: list[tuple[BaseException, Kind, str]] = [
    (outbox.Retry("x"), Kind.RETRY, "retry"),
    (outbox.Throttled(reason="rate_limited", after=60), Kind.THROTTLED, "rate_limited"),
    (outbox.Rejected("x"), Kind.REJECTED, "rejected"),
    (outbox.Denied("x"), Kind.DENIED, "denied"),
    (outbox.Ambiguous("x"), Kind.AMBIGUOUS, "ambiguous"),
    (outbox.Internal("x"), Kind.INTERNAL, "internal"),
    (KeyError("x"), Kind.RETRY, "exception"),
    (StopIteration("x"), Kind.RETRY, "exception"),
    (SystemExit(3), Kind.RETRY, "exception"),
]


@pytest.mark.parametrize(("error", "kind", "reason"), ENDS, ids=lambda v: type(v).__name__)
def test_what_it_raises_is_an_outcome(error: BaseException, kind: Kind, reason: str) -> None:
    outcome = attempt(raising(error))
    assert (outcome.kind, outcome.reason) == (kind, reason)
    if reason == "rate_limited":
        assert outcome.after == timedelta(seconds=60)
    if isinstance(error, KeyError):
        assert outcome.detail == {"error": "KeyError: 'x'"}


def test_what_it_returns_is_an_outcome_or_nothing() -> None:
    own = Outcome(Kind.REJECTED, "no")
    assert attempt(made(lambda _event, _ctx: own)) == own
    wrong = attempt(made(lambda _event, _ctx: 5))
    assert (wrong.kind, wrong.reason) == (Kind.RETRY, "exception")
    assert "not int" in str(wrong.detail["error"])


def test_what_it_emits_goes_along_only_if_it_is_delivered() -> None:
    def function(_event: outbox.Event, ctx: Context) -> Outcome:
        ctx.emit("a.b", {"x": 1}, subject="s", dedupe_for=timedelta(days=1))
        return Outcome(Kind[ctx.config["end"]], "x")

    processor = made(function)
    delivered = attempt(processor, replace(WORK, setup=Setup(1, 1, {"end": "DELIVERED"})))
    assert delivered.effects is not None
    assert [(e.type, e.payload, e.subject) for e in delivered.effects.emit] == [
        ("a.b", '{"x":1}', "s")
    ]
    assert attempt(processor, replace(WORK, setup=Setup(1, 1, {"end": "RETRY"}))).effects is None


REFUSED: list[tuple[tuple[object, object], dict[str, Any]]] = [
    (("not a type", 1), {}),
    (("outbox.mine", 1), {}),
    (("a.b", {1, 2}), {}),
    (("a.b", "{"), {}),
    (("a.b", 1), {"subject": "x" * 1001}),
    (("a.b", 1), {"subject": "\ud800"}),
    (("a.b", 1), {"headers": {"x": "y" * 9000}}),
    (("a.b", 1), {"deliver_at": datetime(2030, 1, 1)}),  # noqa: DTZ001
    (
        ("a.b", 1),
        {
            "deliver_at": datetime(2030, 1, 2, tzinfo=UTC),
            "expires_at": datetime(2030, 1, 1, tzinfo=UTC),
        },
    ),
]


@pytest.mark.parametrize(("given", "options"), REFUSED)
def test_what_cannot_be_emitted_is_said_at_once(
    given: tuple[Any, Any], options: dict[str, Any]
) -> None:
    """At the settle it would cost the whole attempt."""
    context = Context(UUID(int=1), 1, 0.0, None, {}, "job.x")
    with pytest.raises(UsageError):
        context.emit(*given, **options)
    assert context.emissions == []
    with pytest.raises(PayloadTooLarge):
        context.emit("a.b", ["x" * 2**20])


def test_what_one_attempt_emits_fits_into_a_statement() -> None:
    context = Context(UUID(int=1), 1, 0.0, None, {}, "job.x")
    large = ["x" * 1_000_000]
    for _ in range(16):
        context.emit("a.b", large)
    with pytest.raises(PayloadTooLarge):
        context.emit("a.b", large)
    context.emit("a.b", 1)
    settled = [
        Settlement(UUID(int=n), 1, "delivered", True, "done", None, None, effects)
        for n, effects in enumerate([None, "x" * 6, "x" * 6, None])
    ]
    assert [len(fitting(settled, size)) for size in (0, 5, 6, 11, 12)] == [1, 1, 2, 2, 4]
    assert len(fitting(settled[1:], 5)) == 1


# -- how it is stopped -----------------------------------------------------------------------------


def cancelled_when(
    ready: Callable[[], bool], processor: UserProcessor, work: Work = WORK, room: Room | None = None
) -> Coroutine[Any, Any, Work]:
    async def run() -> Work:
        loop = asyncio.get_running_loop()
        pulsed = replace(work, pulse=outbox_pulse())
        task = asyncio.ensure_future(perform(processor, pulsed, loop.time() + 60, room or Room()))
        end = time.monotonic() + 20
        while not ready():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        return pulsed

    return run()


def outbox_pulse() -> Any:
    from outbox.pulse import Pulse

    return Pulse()


@pytest.mark.parametrize("processor", [jobs.tells, jobs.thread], ids=["async", "thread"])
def test_a_cancel_reaches_it(processor: UserProcessor) -> None:
    async def run() -> None:
        work = await cancelled_when(lambda: bool(jobs.SEEN), processor)
        assert work.pulse is not None
        assert work.pulse.called_off
        end = time.monotonic() + 20
        while jobs.SEEN[-1] != "cancelled":
            assert time.monotonic() < end
            await asyncio.sleep(0.005)

    asyncio.run(run())


def test_a_thread_that_does_not_end_counts_until_it_does() -> None:
    async def run() -> None:
        room = Room(threads=asyncio.Semaphore(1))
        await cancelled_when(room.threads.locked, jobs.deaf, room=room)
        assert room.threads.locked()
        jobs.GATE.set()
        end = time.monotonic() + 20
        while room.threads.locked():
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
        assert jobs.SEEN == ["ended"]

    asyncio.run(run())


def test_without_room_no_attempt_is_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.performing.ROOM_S_MAX", 0.01)

    async def run() -> Outcome:
        room = Room(threads=asyncio.Semaphore(0))
        return await perform(jobs.deaf, WORK, asyncio.get_running_loop().time() + 9, room)

    outcome = asyncio.run(run())
    assert (outcome.kind, outcome.reason) == (Kind.INTERNAL, "no_room")


def test_a_coroutine_that_swallows_its_cancellation_is_left_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("outbox.performing.LEAVE_S", 0.05)

    async def run() -> None:
        others = asyncio.all_tasks()
        ready = iter([False, False, True])
        await cancelled_when(lambda: next(ready), jobs.stubborn)
        assert jobs.SEEN == ["swallowed"]
        jobs.GATE.set()
        await asyncio.wait(asyncio.all_tasks() - others)

    asyncio.run(run())


# -- in a process of its own -----------------------------------------------------------------------


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in {"Z", "X"}


def test_a_process_passes_on_what_it_emits_and_returns() -> None:
    outcome = attempt(jobs.apart)
    assert (outcome.kind, outcome.reason, outcome.detail) == (
        Kind.DELIVERED, "apart", {"attempt": 2},
    )  # fmt: skip
    assert outcome.effects is not None
    [emission] = outcome.effects.emit
    told = json.loads(emission.payload)
    assert told["config"] == {"table": "contacts"}
    assert told["pid"] != os.getpid()
    assert emission.headers == {"x": "y"}


def test_what_a_process_raises_is_an_outcome_and_its_death_a_retry() -> None:
    raised = attempt(jobs.apart, doing(do="raise"))
    assert (raised.kind, raised.reason, raised.after) == (
        Kind.THROTTLED, "busy", timedelta(seconds=7),
    )  # fmt: skip
    died = attempt(jobs.apart, doing(do="die"))
    assert (died.kind, died.reason, died.detail) == (Kind.RETRY, "process_died", {"exit": -9})


def test_a_process_that_never_ends_is_killed_with_what_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outbox.isolation.STOP_S", 0.05)
    path = tmp_path / "pids"
    ready = lambda: path.exists() and " " in path.read_text()  # noqa: E731
    asyncio.run(cancelled_when(ready, jobs.apart, doing(do="loop", path=str(path))))
    pids = [int(pid) for pid in path.read_text().split()]
    end = time.monotonic() + 20
    while any(map(alive, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_process_tells_its_progress_and_hears_the_cancel() -> None:
    async def run() -> None:
        pulse = outbox_pulse()
        work = replace(doing(do="wait"), pulse=pulse)
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(perform(jobs.apart, work, loop.time() + 60))
        end = time.monotonic() + 20
        while pulse.metadata.get("pid") is None:
            assert time.monotonic() < end
            await asyncio.sleep(0.005)
        news = pulse.news()
        assert (news.percent, news.note) == (50, "half")
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert not alive(pulse.metadata["pid"])

    asyncio.run(run())

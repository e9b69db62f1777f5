"""Processors of the user's own: the decorator that makes a function one, and what the function
gets.

Promises: importing this pulls in no driver, broker or command line, and nothing is registered
anywhere: whoever looks for processors finds them in the modules it is told (processors/own.py).
"""

from __future__ import annotations

import inspect
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any
from uuid import UUID

from outbox.durations import parse_duration
from outbox.effects import Emission
from outbox.errors import PayloadTooLarge, UsageError
from outbox.outcome import Cancelled, Outcome
from outbox.pulse import NOTE_CHARS_MAX, Pulse
from outbox.retry import parse_retry

if TYPE_CHECKING:
    from outbox.work import Work

RESERVED = frozenset({"webhook", "email", "pdf", "broadcast", "processor"})
"""Names of kinds that are built in."""

NAME_CHARS_MAX = 200
EMISSIONS_MAX = 1000
EMISSIONS_BYTES_MAX = 16 * 1024 * 1024
"""Events that one attempt may bring about, and the bytes of all their payloads: they are written in
one statement."""

TIMEOUT = timedelta(minutes=15)
CONCURRENCY = 10

_NAME = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")

Function = Callable[["Event", "Context"], "Outcome | Awaitable[Outcome | None] | None"]


@dataclass(frozen=True)
class Event:
    """The event that a processor is to act on."""

    id: int
    type: str
    occurred_at: datetime
    org_id: str | None
    subject: str | None
    headers: Mapping[str, str]
    payload: bytes = field(repr=False)
    """The stored JSON text."""

    @cached_property
    def data(self) -> Any:
        """The payload, read when first asked for."""
        return json.loads(self.payload)

    @classmethod
    def of(cls, work: Work) -> Event:
        """The event of an attempt."""
        return cls(
            id=work.event_id,
            type=work.type,
            occurred_at=datetime.fromisoformat(work.occurred_at),
            org_id=work.org_id,
            subject=work.subject,
            headers=work.headers or {},
            payload=work.payload,
        )


@dataclass
class Context:
    """What a processor may ask and tell while it makes one attempt.

    `key` is the idempotency key: the same in every attempt of a delivery. `attempt` counts from 1
    within the present budget. `deadline` is a `time.monotonic()` at which the attempt is stopped.
    `config` is what the subscription is configured with, as the decorator's `config` made it.
    `metadata` is a small dict of yours that `outbox deliveries show` prints while it runs.
    """

    key: UUID
    attempt: int
    deadline: float
    organization: str | None
    config: Any
    processor: str
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The configuration as it is stored."""
    pulse: Pulse = field(default_factory=Pulse, repr=False)
    emissions: list[Emission] = field(default_factory=list, repr=False)
    _emitted_bytes: int = field(default=0, repr=False)

    @property
    def metadata(self) -> dict[str, Any]:
        """Look at it while it runs; about 8 KB of JSON at most."""
        return self.pulse.metadata

    @property
    def cancelled(self) -> bool:
        """Whether to stop: cancelled, too late, or no longer ours."""
        return self.pulse.called_off

    @property
    def time_left(self) -> timedelta:
        """How long until the deadline; zero after it."""
        return timedelta(seconds=max(0.0, self.deadline - time.monotonic()))

    @cached_property
    def logger(self) -> Any:
        """A structlog logger that names delivery, organization and processor in each line."""
        import structlog

        return structlog.get_logger("outbox.processor").bind(
            delivery=str(self.key), org=self.organization, processor=self.processor
        )

    def heartbeat(self) -> None:
        """Raise Cancelled if nobody waits for this attempt any more. Costs nothing; call it
        often."""
        if self.pulse.called_off:
            raise Cancelled("the attempt was cancelled, its time is over or its lease is lost")

    def progress(self, percent: float | None = None, note: str | None = None) -> None:
        """Say how far it is (0 to 100) and what it does; shown by `outbox deliveries show`."""
        if percent is not None and not 0 <= percent <= 100:
            raise UsageError(f"progress is a percentage from 0 to 100, not {percent!r}")
        self.pulse.tell(percent, None if note is None else clean(note)[:NOTE_CHARS_MAX])

    def emit(self, type: str, payload: object, **options: Any) -> None:  # noqa: A002
        """Emit an event that follows from this one, with the options of `outbox.emit` but `org`: it
        belongs to the organization of this one, and is written in the transaction that settles the
        attempt, if it is delivered. Raises UsageError or PayloadTooLarge."""
        from outbox.store.emission import emission

        if len(self.emissions) >= EMISSIONS_MAX:
            raise UsageError(f"one attempt emits at most {EMISSIONS_MAX} events")
        one = emission(type, payload, **options)
        size = self._emitted_bytes + len(one.payload.encode())
        if size > EMISSIONS_BYTES_MAX:
            mb = EMISSIONS_BYTES_MAX >> 20
            raise PayloadTooLarge(
                f"the events that one attempt emits have at most {mb} MB together"
            )
        self._emitted_bytes = size
        self.emissions.append(one)


def clean(text: str) -> str:
    """A text as PostgreSQL can store it."""
    return str(text).replace("\x00", "").encode("utf-8", "replace").decode()


class UserProcessor:
    """A function that performs deliveries. Calling it calls the function itself, as its own tests
    want; `perform` makes a whole attempt, as a worker does."""

    def __init__(
        self,
        function: Function,
        name: str,
        *,
        config: Callable[..., Any] | None,
        concurrency: int | None,
        timeout: timedelta,
        retry: str | None,
        isolated: bool,
    ) -> None:
        update_wrapper(self, function)
        self.function = function
        self.name = name
        self.concurrency = concurrency
        self.timeout = timeout
        self.retry = retry
        self.isolated = isolated
        self.is_async = inspect.iscoroutinefunction(function)
        self.module = function.__module__
        self.qualname = function.__qualname__
        self._config = config

    @property
    def summary(self) -> str:
        """The first line of the function's documentation."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, event: Event, context: Context) -> Any:
        return self.function(event, context)

    def __repr__(self) -> str:
        return f"<processor {self.name} ({self.module}.{self.qualname})>"

    def configured(self, config: Mapping[str, Any]) -> Any:
        """What the context's `config` is for a subscription's configuration. Raises UsageError."""
        if self._config is None:
            return dict(config)
        made = self._config
        try:
            if hasattr(made, "model_validate"):
                return made.model_validate(dict(config))
            found = made(**config) if isinstance(made, type) else made(dict(config))
        except Exception as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            text = " ".join(line.strip() for line in lines)[:300]
            raise UsageError(f"the configuration of {self.name} is refused: {text}") from error
        return dict(config) if found is None else found

    async def perform(self, work: Work, deadline: float) -> Outcome:
        """One attempt, as a worker makes it. `deadline` is a time of the running loop."""
        from outbox.performing import perform

        return await perform(self, work, deadline)


def processor(
    name: str,
    *,
    config: Callable[..., Any] | None = None,
    concurrency: int | None = CONCURRENCY,
    timeout: timedelta | str = TIMEOUT,
    retry: str | None = None,
    isolated: bool = False,
) -> Callable[[Function], UserProcessor]:
    """Make a function `(event, context)`, sync or async, a kind of destination.

    `config` is a pydantic model, a dataclass, or a function of a dict that raises where the
    configuration of a subscription is wrong. `concurrency` (attempts at once, over all workers),
    `timeout` (the longest an attempt may take) and `retry` hold where a subscription says nothing
    else. `isolated` runs a sync function in a process of its own, which is killed at the deadline.

    Raises UsageError for what cannot be.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > NAME_CHARS_MAX:
        raise UsageError(
            f"{name!r} cannot name a processor; write letters, digits, _ and - joined by dots, as"
            " in sync.xero"
        )
    if name in RESERVED:
        raise UsageError(f"the name {name!r} is a built-in kind's; write for example sync.{name}")
    limit = parse_duration(timeout) if isinstance(timeout, str) else timeout
    if limit <= timedelta():
        raise UsageError(f"the timeout of {name} must be above zero")
    if concurrency is not None and not 1 <= concurrency <= 100_000:
        raise UsageError(f"the concurrency of {name} must be from 1 to 100000")
    if retry is not None:
        parse_retry(retry)

    def decorate(function: Function) -> UserProcessor:
        if isinstance(function, UserProcessor) or not callable(function):
            raise UsageError(f"@outbox.processor({name!r}) goes on a function")
        made = UserProcessor(
            function,
            name,
            config=config,
            concurrency=concurrency,
            timeout=limit,
            retry=retry,
            isolated=isolated,
        )
        if isolated and (made.is_async or "<locals>" in made.qualname):
            raise UsageError(
                f"{name} is isolated, so it must be an ordinary function at the top of a module"
            )
        return made

    return decorate

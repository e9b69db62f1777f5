"""A broker that keeps a record of everything and has the faults it is told to have.

It fills the place of Redis, RabbitMQ or `memory://` wherever a `Courier` is asked for
(`outbox.runtime`), or is moved by hand, message by message. As with any broker, nothing in it may
matter: whatever it loses, repeats, delays or reorders, PostgreSQL knows better.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from threading import Condition, Thread

from outbox.errors import BrokerUnavailable, UsageError

Accept = Callable[[int, list[str]], None]

_LOOK_S = 0.005
"""How often a consumer looks for a delayed message: its clock may be one that moves by hand."""


@dataclass(frozen=True, slots=True)
class Message:
    """What a relay handed over at once: ids of deliveries, of 32 hexadecimal digits each, and the
    token of their leases."""

    token: int
    ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to a message that is sent: the probabilities (0 to 1) that it is lost, that it
    arrives twice, that it overtakes what waits, and the longest time it is held back."""

    lose: float = 0.0
    repeat: float = 0.0
    reorder: float = 0.0
    delay: timedelta = timedelta()

    def __post_init__(self) -> None:
        for share in (self.lose, self.repeat, self.reorder):
            if not 0 <= share <= 1:
                raise UsageError("the probability of a fault lies between 0 and 1")
        if self.delay < timedelta():
            raise UsageError("a delay is not below zero")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    message: Message
    ready_at: float


class RecordingBroker:
    """A courier in memory.

    `sent`, `lost` and `handed` list messages in the order in which that happened to them. `down`
    may be set: then sending and asking raise BrokerUnavailable. `random` decides about faults,
    `clock` (monotonic seconds) about delays; both are injected so that a run can be repeated.
    """

    def __init__(
        self,
        faults: Faults | None = None,
        *,
        random: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.faults = faults or Faults()
        self.down = False
        self.sent: list[Message] = []
        self.lost: list[Message] = []
        self.handed: list[Message] = []
        self._random = random or Random(0)  # noqa: S311 (faults need no secrecy, but a seed)
        self._clock = clock
        self._queue: list[_Waiting] = []
        self._changed = Condition()
        self._consumers: list[_Consumer] = []

    # -- what relays and workers use ------------------------------------------------------------

    def send(self, token: int, ids: Sequence[str]) -> None:
        """Hand over ids leased under a token. Raises BrokerUnavailable while `down`."""
        self._check()
        message = Message(token, tuple(ids))
        with self._changed:
            self.sent.append(message)
            if self._random.random() < self.faults.lose:
                self.lost.append(message)
                return
            for _ in range(2 if self._random.random() < self.faults.repeat else 1):
                self._shelve(message)
            self._changed.notify_all()

    def depth(self) -> int:
        """How many ids wait. Raises BrokerUnavailable while `down`."""
        self._check()
        return sum(len(message.ids) for message in self.waiting)

    def consume(self, accept: Accept, *, threads: int = 2) -> _Consumer:
        """Start threads that hand over what waits, as it becomes ready."""
        consumer = _Consumer(self, accept, threads)
        self._consumers.append(consumer)
        return consumer

    def close(self) -> None:
        """Stop the consumers."""
        for consumer in self._consumers:
            consumer.stop()

    # -- by hand --------------------------------------------------------------------------------

    @property
    def waiting(self) -> list[Message]:
        """What was sent and neither lost nor handed over, delayed messages included."""
        with self._changed:
            return [entry.message for entry in self._queue]

    def deliver(self, index: int = 0) -> Message:
        """Take out a waiting message, delayed or not, as a consumer would be handed it."""
        with self._changed:
            message = self._queue.pop(index).message
            self.handed.append(message)
        return message

    def lose(self, index: int = 0) -> Message:
        """Lose a waiting message."""
        with self._changed:
            message = self._queue.pop(index).message
            self.lost.append(message)
        return message

    def lose_all(self) -> None:
        """Lose everything that waits, as a flush or a restart would."""
        with self._changed:
            self.lost += [entry.message for entry in self._queue]
            self._queue.clear()

    def forget(self) -> None:
        """Empty it, and its records."""
        with self._changed:
            for record in (self._queue, self.sent, self.lost, self.handed):
                record.clear()

    def repeat(self, index: int = 0) -> Message:
        """Add a copy of a waiting message behind all others."""
        with self._changed:
            entry = self._queue[index]
            self._queue.append(_Waiting(entry.message, entry.ready_at))
            self._changed.notify_all()
        return entry.message

    # -- inside ---------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.down:
            raise BrokerUnavailable("the recording broker is down")

    def _shelve(self, message: Message) -> None:
        overtakes = self._random.random() < self.faults.reorder
        place = self._random.randint(0, len(self._queue)) if overtakes else len(self._queue)
        wait_s = self.faults.delay.total_seconds() * self._random.random()
        self._queue.insert(place, _Waiting(message, self._clock() + wait_s))

    def _next(self, stopping: Callable[[], bool]) -> Message | None:
        """The first message that is ready, when there is one; None when `stopping`."""
        with self._changed:
            while not stopping():
                now = self._clock()
                for index, entry in enumerate(self._queue):
                    if entry.ready_at <= now:
                        del self._queue[index]
                        self.handed.append(entry.message)
                        return entry.message
                self._changed.wait(_LOOK_S if self._queue else None)
            return None

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Consumer:
    """Threads that hand messages over until they are stopped."""

    def __init__(self, broker: RecordingBroker, accept: Accept, threads: int) -> None:
        self._broker = broker
        self._accept = accept
        self._stopping = False
        self._threads = [Thread(target=self._run, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def alive(self) -> bool:
        """Whether all of its threads run."""
        return all(thread.is_alive() for thread in self._threads)

    def stop(self, timeout: timedelta = timedelta(seconds=10)) -> bool:
        """Hand over nothing more; returns whether all threads ended in time."""
        self._stopping = True
        self._broker._wake()  # noqa: SLF001 (two halves of one thing)
        until = time.monotonic() + timeout.total_seconds()
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _run(self) -> None:
        while (message := self._broker._next(lambda: self._stopping)) is not None:  # noqa: SLF001
            self._accept(message.token, list(message.ids))

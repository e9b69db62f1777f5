"""What every courier does, whichever broker carries the messages.

Owns the message format and the running of a Dramatiq worker in this process. One message carries
one lease token and at most 125 delivery ids. The broker's acknowledgement means *received*: the
actor returns as soon as `accept` has taken the ids, and whatever `accept` raises is logged and
acknowledged too, because the lease, not the broker, brings a delivery back.

Dramatiq's retries, time limits, delays and shutdown notices are off: no middleware is installed
and no delay queue is consumed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from threading import Event, Lock, Thread
from typing import Any

import dramatiq
import structlog
from dramatiq.worker import Worker

IDS_PER_MESSAGE = 125
"""Few enough that several workers share a burst; a message costs Dramatiq 0.5 ms to carry. Two of
them are a batch of a worker: with 100 a webhook cost 5 % more, with 200 or 250 2 to 15 %."""

ACTOR = "deliver"

# How long a lost wake-up can cost a consumer.
POLL_S = 1.0
# How long an idle worker thread may take to see that it should stop.
_IDLE_MS = 200

_HEX_DIGITS = 32

Accept = Callable[[int, list[str]], None]
"""Takes the ids (32 hexadecimal digits each) leased under a token. May block: that is the
back-pressure on the broker."""

_log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Batch:
    """Deliveries leased together: the token that proves it, and their ids, of 32 hexadecimal digits
    each."""

    token: int
    ids: Sequence[str]


class Courier(ABC):
    """Carries batches to whoever consumes. Every method may be called from any thread."""

    @abstractmethod
    def send(self, batches: Sequence[Batch]) -> None:
        """Hand all batches to the broker in one round trip. Blocks for seconds at most.

        Raises BrokerUnavailable; the messages may then have been sent or not.
        """

    @abstractmethod
    def depth(self) -> int:
        """About how many delivery ids wait in the broker, for flow control only.

        Raises BrokerUnavailable.
        """

    @abstractmethod
    def consume(self, accept: Accept, *, threads: int = 2) -> Consumer:
        """Start a worker whose `threads` threads call `accept`. Never fails for want of a broker:
        it keeps trying to connect, see `Consumer.connected`.
        """

    @abstractmethod
    def close(self) -> None:
        """Close what `send` and `depth` opened. Consumers are stopped by their own `stop`."""


class Link:
    """Whether a consumer reaches its broker, said in one log line a change."""

    def __init__(self, place: str) -> None:
        self.connected = False
        self._place = place
        self._said: bool | None = None
        self._lock = Lock()

    def up(self) -> None:
        if not self.connected and self._changed(to=True):
            _log.info("broker_connected", broker=self._place)

    def down(self, reason: str) -> None:
        if self._changed(to=False):
            _log.warning("broker_unreachable", broker=self._place, reason=reason)

    def _changed(self, *, to: bool) -> bool:
        with self._lock:
            changed, self._said, self.connected = self._said is not to, to, to
            return changed


class Consumer:
    """A running Dramatiq worker with the one actor `deliver`.

    At most `threads` messages are in this process and not yet accepted: that many are prefetched,
    and those inside `accept` count.
    """

    def __init__(
        self,
        broker: dramatiq.Broker,
        accept: Accept,
        *,
        threads: int,
        link: Link,
        stopping: Event,
        on_stop: Callable[[], None],
    ) -> None:
        assert threads >= 1, "a consumer needs a thread"
        _declare(broker, accept)
        self._broker = broker
        self._link = link
        self._stopping = stopping
        self._on_stop = on_stop
        self._worker = Worker(broker, worker_timeout=_IDLE_MS, worker_threads=threads)
        self._worker.queue_prefetch = threads
        self._worker.start()

    @property
    def alive(self) -> bool:
        """Every thread runs and nobody has asked to stop."""
        return not self._stopping.is_set() and all(t.is_alive() for t in self._threads())

    @property
    def connected(self) -> bool:
        """The broker answered when it was last asked."""
        return self._link.connected

    def stop(self, timeout: timedelta = timedelta(seconds=10)) -> bool:
        """Fetch nothing more, wait for running `accept` calls. May be called again.

        True when all threads have ended; False when an `accept` still blocks after `timeout`
        (its thread is a daemon and does not keep the process). What was fetched and not accepted
        goes back to the broker if it can be reached. Takes up to two seconds beyond `timeout`.
        """
        if not self._stopping.is_set():
            self._stopping.set()
            self._on_stop()
            self._worker.stop(timeout=int(timeout.total_seconds() * 1000))
            self._broker.close()
        return not any(thread.is_alive() for thread in self._threads())

    def _threads(self) -> Iterator[Thread]:
        yield from self._worker.workers
        yield from self._worker.consumers.values()


def to_messages(batches: Iterable[Batch], queue: str) -> list[dramatiq.Message[None]]:
    """One message for each IDS_PER_MESSAGE ids of each batch, in order."""
    return [
        dramatiq.Message(
            queue_name=queue,
            actor_name=ACTOR,
            args=(batch.token, "".join(batch.ids[start : start + IDS_PER_MESSAGE])),
            kwargs={},
            options={},
        )
        for batch in batches
        for start in range(0, len(batch.ids), IDS_PER_MESSAGE)
    ]


def unpack(packed: str) -> list[str]:
    """The ids that were joined. Raises ValueError for anything else: PostgreSQL would refuse the
    whole batch of a worker for one that is no id."""
    if len(packed) % _HEX_DIGITS or 2 * len(bytes.fromhex(packed)) != len(packed):
        raise ValueError("joined ids are 32 hexadecimal digits each")
    return [packed[start : start + _HEX_DIGITS] for start in range(0, len(packed), _HEX_DIGITS)]


def count_ids(message: dramatiq.Message[Any]) -> int:
    """How many delivery ids a message of `to_messages` carries."""
    return len(message.args[1]) // _HEX_DIGITS


def _declare(broker: dramatiq.Broker, accept: Accept) -> None:
    """Give the broker its actor. The queue is declared with it."""

    def deliver(token: int, packed: str) -> None:
        try:
            accept(token, unpack(packed))
        except Exception:  # noqa: BLE001 (an accept may raise anything)
            # Acknowledged all the same: a requeue could loop, the lease cannot.
            _log.exception("broker_accept_failed", token=token)

    dramatiq.actor(broker=broker, actor_name=ACTOR, queue_name=queue_of(broker))(deliver)


def queue_of(broker: dramatiq.Broker) -> str:
    """The one queue a broker of ours consumes."""
    queue = getattr(broker, "queue", None)
    assert isinstance(queue, str), "brokers of this package name their queue"
    return queue

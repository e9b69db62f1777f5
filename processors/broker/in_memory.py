"""The courier inside one process: for a single node, the demo and `outbox run --workers`.

Owns a queue in memory. A process that ends loses it, which costs the leases' time, as with any
broker. Threads wake each other; nothing polls faster than once a second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from threading import Condition, Event
from typing import Any

from dramatiq import Broker, Message, MessageProxy
from dramatiq import Consumer as DramatiqConsumer

from processors.broker.courier import (
    POLL_S,
    Accept,
    Batch,
    Consumer,
    Courier,
    Link,
    count_ids,
    to_messages,
)

_QUEUE = "deliver"


class _Shelf:
    """Waiting messages, and the condition that announces any change of them or their takers."""

    def __init__(self) -> None:
        self.messages: deque[Message[Any]] = deque()
        self.changed = Condition()

    def wake(self) -> None:
        with self.changed:
            self.changed.notify_all()


class MemoryCourier(Courier):
    """Messages on a shelf of this object."""

    def __init__(self) -> None:
        self._shelf = _Shelf()

    def send(self, batches: Sequence[Batch]) -> None:
        messages = to_messages(batches, _QUEUE)
        with self._shelf.changed:
            self._shelf.messages.extend(messages)
            self._shelf.changed.notify_all()

    def depth(self) -> int:
        """Exactly the ids that no consumer has fetched."""
        with self._shelf.changed:
            return sum(map(count_ids, self._shelf.messages))

    def consume(self, accept: Accept, *, threads: int = 2) -> Consumer:
        link, stopping = Link("memory://"), Event()
        link.up()
        broker = _MemoryBroker(self._shelf, stopping)
        return Consumer(
            broker,
            accept,
            threads=threads,
            link=link,
            stopping=stopping,
            on_stop=self._shelf.wake,
        )

    def close(self) -> None:
        """Nothing is open."""


class _MemoryBroker(Broker):
    """As much of a Dramatiq broker as a worker asks for."""

    queue = _QUEUE

    def __init__(self, shelf: _Shelf, stopping: Event) -> None:
        super().__init__(middleware=[])
        self._shelf = shelf
        self._stopping = stopping

    def declare_queue(self, queue_name: str) -> None:
        self.queues[queue_name] = self._shelf

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 0) -> DramatiqConsumer:  # noqa: ARG002
        return _MemoryConsumer(self._shelf, self._stopping, prefetch)


class _Taken(MessageProxy):
    """A message off the shelf that can be put back."""

    def __init__(self, message: Message[Any]) -> None:
        super().__init__(message)
        self.plain = message


class _MemoryConsumer(DramatiqConsumer):
    """Takes at most `prefetch` messages that are not yet acknowledged."""

    def __init__(self, shelf: _Shelf, stopping: Event, prefetch: int) -> None:
        self._shelf = shelf
        self._stopping = stopping
        self._free = prefetch

    def __next__(self) -> MessageProxy | None:
        with self._shelf.changed:
            self._shelf.changed.wait_for(self._ready_or_stopping, POLL_S)
            if self._stopping.is_set() or not self._ready():
                # While stopping the thread only waits for the workers; an ack wakes it.
                if self._stopping.is_set():
                    self._shelf.changed.wait(0.02)
                return None
            self._free -= 1
            return _Taken(self._shelf.messages.popleft())

    def ack(self, message: MessageProxy) -> None:  # noqa: ARG002
        with self._shelf.changed:
            self._free += 1
            self._shelf.changed.notify_all()

    nack = ack

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        with self._shelf.changed:
            taken = [message.plain for message in messages if isinstance(message, _Taken)]
            self._shelf.messages.extendleft(reversed(taken))
            self._free += len(taken)
            self._shelf.changed.notify_all()

    def _ready(self) -> bool:
        return self._free > 0 and bool(self._shelf.messages)

    def _ready_or_stopping(self) -> bool:
        return self._stopping.is_set() or self._ready()

"""A Dramatiq consumer that outlives its connection.

Owns what Dramatiq's consumer thread would do loudly: on a lost connection it logs a critical line
every three seconds and lets acknowledging threads sleep for five. Here the loss is one log line,
the consumer reopens with a growing pause of at most two seconds, and a message whose connection is
gone is not acknowledged: the broker may deliver it again, the lease token makes that harmless.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from threading import Condition, Event

from dramatiq import Consumer, MessageProxy
from dramatiq.errors import BrokerConnectionError

from processors.broker.address import Address
from processors.broker.courier import POLL_S, Link

_PAUSE_S_MIN = 0.05
_PAUSE_S_MAX = 2.0
# While stopping, the consumer thread only waits for the worker threads to end.
_STOPPING_PAUSE_S = 0.02


class SteadyConsumer(Consumer):
    """Hands on what the consumer made by `reopen` yields, at most `prefetch` at a time.

    `lost` names the client's exceptions that mean "this connection is of no more use".
    `idle` is called after the stock consumer yielded nothing; it may block up to a second.
    """

    def __init__(
        self,
        reopen: Callable[[], Consumer],
        *,
        address: Address,
        link: Link,
        stopping: Event,
        prefetch: int,
        lost: tuple[type[Exception], ...],
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._reopen = reopen
        self._address = address
        self._link = link
        self._stopping = stopping
        self._prefetch = prefetch
        # StopIteration: RabbitMQ cancelled the consumer because the queue was deleted.
        self._lost: tuple[type[Exception], ...] = (
            BrokerConnectionError,
            OSError,
            StopIteration,
            *lost,
        )
        self._idle = idle
        self._stock: Consumer | None = None
        self._pause_s = _PAUSE_S_MIN
        self._freed = Condition()
        # By object, not by message id: the same message may be here twice.
        self._taken: dict[int, Consumer] = {}

    def __next__(self) -> MessageProxy | None:
        if self._stopping.is_set():
            time.sleep(_STOPPING_PAUSE_S)
            return None
        try:
            return self._take() if self._has_room() else None
        except self._lost as error:
            self._drop(error)
            self._stopping.wait(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _PAUSE_S_MAX)
            return None

    def ack(self, message: MessageProxy) -> None:
        self._finish(message, Consumer.ack)

    def nack(self, message: MessageProxy) -> None:
        self._finish(message, Consumer.nack)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        held = list(messages)
        with self._freed:
            mine = [m for m in held if self._taken.pop(id(m), None) is self._stock]
        try:
            if self._stock is not None and mine:
                self._stock.requeue(mine)
        except self._lost as error:
            self._link.down(self._address.reason(error))

    def close(self) -> None:
        stock, self._stock = self._stock, None
        try:
            if stock is not None:
                stock.close()
        except self._lost:
            pass  # it is gone already

    def _take(self) -> MessageProxy | None:
        if self._stock is None:
            self._stock = self._reopen()
        message = next(self._stock)
        if message is None:
            self._idle()
        else:
            with self._freed:
                self._taken[id(message)] = self._stock
        self._link.up()
        self._pause_s = _PAUSE_S_MIN
        return message

    def _has_room(self) -> bool:
        with self._freed:
            return self._freed.wait_for(lambda: len(self._taken) < self._prefetch, POLL_S)

    def _finish(self, message: MessageProxy, how: Callable[[Consumer, MessageProxy], None]) -> None:
        """Tell the broker, if the message came over the connection we have now."""
        stock = self._taken.get(id(message))
        try:
            if stock is not None and stock is self._stock:
                (stock.ack if how is Consumer.ack else stock.nack)(message)
        except self._lost as error:
            self._link.down(self._address.reason(error))
        finally:
            with self._freed:
                self._taken.pop(id(message), None)
                self._freed.notify_all()

    def _drop(self, error: Exception) -> None:
        self._link.down(self._address.reason(error))
        self.close()

"""The courier over RabbitMQ (AMQP 0-9-1), by Dramatiq's broker on pika.

Owns the sending side: one connection in one thread of its own, because a pika connection belongs
to a thread and must be served while idle or its heartbeats stop. A send publishes every message
and then asks passively for the queue: the answer, one round trip for all, proves that the server
has taken them, and tells the depth. Messages are transient, since a lost one costs only time.

RabbitMQ gives back what a dead consumer held as soon as its connection is gone, at the latest
after two heartbeats. The queue's dead-letter companion, which Dramatiq declares, stays empty:
nothing is rejected and nothing expires.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

import pika
import pika.exceptions
from dramatiq import Consumer as DramatiqConsumer
from dramatiq import Message
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.errors import BrokerConnectionError

from outbox.errors import ConfigurationError
from processors.broker.address import Address
from processors.broker.courier import (
    IDS_PER_MESSAGE,
    POLL_S,
    Accept,
    Batch,
    Consumer,
    Courier,
    Link,
    count_ids,
    to_messages,
)
from processors.broker.steady import SteadyConsumer

_CONNECT_TIMEOUT_S = 2.0
_HEARTBEAT_S = 10
# How long a caller waits; the thread itself gives a silent server up after two heartbeats.
_CALL_TIMEOUT_S = 5.0
_BLOCKED_TIMEOUT_S = 5.0
_ATTEMPTS = 2  # the second one on a new connection, or with the queue declared again
_LOST = (BrokerConnectionError, pika.exceptions.AMQPError, OSError)
# The server counts: it sends no more than the prefetch that the stock consumer asks for.
_UNBOUNDED = 65_535


class AmqpCourier(Courier):
    """Messages in the queue `{namespace}.deliver`."""

    def __init__(self, address: Address, *, namespace: str) -> None:
        self._address = address
        self._queue = f"{namespace}.deliver"
        self._sender = _Sender(address, self._queue)
        self._lock = Lock()
        self._sent_ids = self._sent_messages = 0

    def send(self, batches: Sequence[Batch]) -> None:
        messages = to_messages(batches, self._queue)
        if not messages:
            return
        self._call(lambda: self._sender.publish(messages))
        with self._lock:
            self._sent_messages += len(messages)
            self._sent_ids += sum(map(count_ids, messages))

    def depth(self) -> int:
        """Messages not pushed to a consumer x the ids a message of this process held on average
        so far; a full message is assumed before the first send.
        """
        waiting = self._call(self._sender.waiting)
        with self._lock:
            if not self._sent_messages:
                return waiting * IDS_PER_MESSAGE
            return -(-waiting * self._sent_ids // self._sent_messages)

    def consume(self, accept: Accept, *, threads: int = 2) -> Consumer:
        link, stopping = Link(self._address.place), Event()
        broker = _AmqpBroker(self._address, self._queue, link, stopping)
        return Consumer(
            broker, accept, threads=threads, link=link, stopping=stopping, on_stop=lambda: None
        )

    def close(self) -> None:
        self._sender.close()

    def _call(self, job: Callable[[], int]) -> int:
        try:
            return self._sender.call(job)
        except (*_LOST, TimeoutError) as error:
            raise self._address.unavailable(error) from error


class _AmqpBroker(RabbitmqBroker):
    """Dramatiq's RabbitMQ broker without delays, with consumers that outlive connections."""

    def __init__(self, address: Address, queue: str, link: Link, stopping: Event) -> None:
        super().__init__(middleware=[])
        self.parameters = _parameters(address)
        self.queue = queue
        self._address = address
        self._link = link
        self._stopping = stopping

    def get_declared_delay_queues(self) -> set[str]:
        """None: nothing is ever delayed, so no thread should consume it."""
        return set()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 1000) -> DramatiqConsumer:
        return SteadyConsumer(
            lambda: self._fresh(queue_name, prefetch, timeout),
            address=self._address,
            link=self._link,
            stopping=self._stopping,
            prefetch=_UNBOUNDED,
            lost=_LOST,
        )

    def _fresh(self, queue_name: str, prefetch: int, timeout: int) -> DramatiqConsumer:
        try:
            return super().consume(queue_name, prefetch, timeout)
        finally:
            # Declaring opened a second connection, which nobody would serve from here on.
            del self.connection


class _Sender:
    """The thread that owns the sending connection. It starts with the first call."""

    def __init__(self, address: Address, queue: str) -> None:
        self._broker = _AmqpBroker(address, queue, Link(address.place), Event())
        self._broker.declare_queue(queue)
        self._queue = queue
        self._jobs: SimpleQueue[tuple[Callable[[], int], Future[int]] | None] = SimpleQueue()
        self._lock = Lock()
        self._thread: Thread | None = None

    def call(self, job: Callable[[], int]) -> int:
        """Run the job in the thread. Raises what it raises, TimeoutError after five seconds."""
        self._start()
        future: Future[int] = Future()
        self._jobs.put((job, future))
        try:
            return future.result(_CALL_TIMEOUT_S)
        except TimeoutError:
            future.cancel()  # if it has not begun it never will
            raise TimeoutError(f"no answer within {_CALL_TIMEOUT_S:g} s") from None

    def publish(self, messages: Sequence[Message[Any]]) -> int:
        """In the thread: publish all, and wait until the server has seen them."""
        return self._attempt(lambda: self._publish(messages))

    def waiting(self) -> int:
        """In the thread: how many messages the queue holds."""
        return self._attempt(self._count)

    def close(self) -> None:
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            self._jobs.put(None)
            thread.join(_CALL_TIMEOUT_S)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._run, name="outbox-amqp-send", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                work = self._jobs.get(timeout=POLL_S)
            except Empty:
                self._serve_heartbeats()
                continue
            if work is None:
                break
            job, future = work
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(job())
            except BaseException as error:  # noqa: BLE001 (the caller gets it)
                future.set_exception(error)
        del self._broker.connection

    def _attempt(self, job: Callable[[], int]) -> int:
        for _ in range(_ATTEMPTS - 1):
            try:
                return job()
            except _LOST:
                # The queue may be gone with its server, or the connection was closed while idle.
                self._forget()
        try:
            return job()
        except _LOST:
            self._forget()
            raise

    def _publish(self, messages: Sequence[Message[Any]]) -> int:
        self._broker.declare_queue(self._queue, ensure=True)
        properties = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Transient)
        channel = self._broker.channel
        for message in messages:
            channel.basic_publish("", self._queue, message.encode(), properties)
        return self._count()

    def _count(self) -> int:
        self._broker.declare_queue(self._queue, ensure=True)
        answer = self._broker.channel.queue_declare(self._queue, passive=True)
        return int(answer.method.message_count)

    def _forget(self) -> None:
        self._broker.queues_pending.add(self._queue)
        del self._broker.connection

    def _serve_heartbeats(self) -> None:
        connection = getattr(self._broker.state, "connection", None)
        try:
            if connection is not None:
                connection.process_data_events(0)
        except _LOST:
            self._forget()


def _parameters(address: Address) -> pika.URLParameters:
    """Connection parameters with our limits, unless the URL's query sets its own heartbeat."""
    try:
        parameters = pika.URLParameters(address.url)
    except (ValueError, TypeError, KeyError, OSError):
        raise ConfigurationError(  # without the cause: it may quote the URL
            f"the broker URL for {address.place} has an option that pika does not accept"
        ) from None
    if parameters.heartbeat is None:
        parameters.heartbeat = _HEARTBEAT_S
    parameters.socket_timeout = _CONNECT_TIMEOUT_S
    parameters.stack_timeout = 2 * _CONNECT_TIMEOUT_S
    parameters.blocked_connection_timeout = _BLOCKED_TIMEOUT_S
    parameters.connection_attempts = 1
    _hush()
    return parameters


def _hush() -> None:
    """pika and Dramatiq's wrapper log several errors for each failed connection; `Link` says it
    once a change.
    """
    for name in ("pika", "dramatiq.brokers.rabbitmq"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

"""The courier over Redis.

Owns two things Dramatiq's Redis broker does not do. *Sending*: all messages of a call go in one
MULTI/EXEC, in the layout the broker's own script writes (a hash of messages and a list of their
ids; a test compares the two), so that a batch is one round trip and the sender leaves no heartbeat
behind. *The bell*: the stock consumer sleeps between polls, which costs up to half a second; each
send also pushes to a short, expiring list, and a consumer that found nothing blocks on it. A lost
bell costs the poll interval of a second, nothing else.

A consumer that dies leaves at most `threads` messages unacknowledged. Another consumer's Dramatiq
maintenance (a random one of 100 fetches, and there is a fetch a second when idle) puts them back
60 s after the last heartbeat; by then their leases have expired and their tokens are refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from threading import Event, Lock
from urllib.parse import urlsplit
from uuid import uuid4

import redis
from dramatiq import Consumer as DramatiqConsumer
from dramatiq import Message, MessageProxy
from dramatiq.brokers.redis import RedisBroker
from dramatiq.errors import DecodeError
from redis.backoff import NoBackoff
from redis.retry import Retry

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

QUEUE = "deliver"

_DATABASE = re.compile(r"(/[0-9]{0,4})?")

# What redis-py lets a hash hold; its mapping types are invariant.
_Field = bytes | bytearray | memoryview | str | int | float

# One element wakes one consumer; more than this many need not wake for one send.
_BELLS_MAX = 8
_BELL_LIFE_S = 10
_CONNECT_TIMEOUT_S = 2.0
# Longer than the block on the bell; also the limit of one `send`.
_SOCKET_TIMEOUT_S = 3.0
_HEALTH_CHECK_S = 30
_MAINTENANCE_PER_MILLION = 10_000
# Nothing is rejected on purpose; what another program's actors leave here need not stay a week.
_DEAD_MESSAGE_LIFE_MS = 3_600_000


class RedisCourier(Courier):
    """Messages in the Redis keys `{namespace}:deliver*`."""

    def __init__(self, address: Address, *, namespace: str) -> None:
        self._address = address
        self._namespace = namespace
        self._list = f"{namespace}:{QUEUE}"
        self._bell = f"{self._list}.bell"
        self._client = _client(address)
        self._lock = Lock()
        self._sent_ids = self._sent_messages = 0

    def send(self, batches: Sequence[Batch]) -> None:
        messages = to_messages(batches, QUEUE)
        if not messages:
            return
        encoded: dict[_Field, _Field] = {
            message.message_id: message.copy(
                options={"redis_message_id": message.message_id}
            ).encode()
            for message in messages
        }
        rings = [b""] * min(len(messages), _BELLS_MAX)
        try:
            with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(f"{self._list}.msgs", mapping=encoded)
                pipe.rpush(self._list, *encoded)
                pipe.lpush(self._bell, *rings)
                pipe.ltrim(self._bell, 0, _BELLS_MAX - 1)
                pipe.expire(self._bell, _BELL_LIFE_S)
                pipe.execute()
        except redis.RedisError as error:
            raise self._address.unavailable(error) from error
        with self._lock:
            self._sent_messages += len(messages)
            self._sent_ids += sum(map(count_ids, messages))

    def depth(self) -> int:
        """Messages not fetched x the ids a message of this process held on average so far; a full
        message is assumed before the first send.
        """
        try:
            waiting = self._client.llen(self._list)
        except redis.RedisError as error:
            raise self._address.unavailable(error) from error
        assert isinstance(waiting, int)
        with self._lock:
            if not self._sent_messages:
                return waiting * IDS_PER_MESSAGE
            return -(-waiting * self._sent_ids // self._sent_messages)

    def consume(self, accept: Accept, *, threads: int = 2) -> Consumer:
        link, stopping = Link(self._address.place), Event()
        broker = BellBroker(self._address, self._namespace, self._bell, link, stopping)
        return Consumer(
            broker,
            accept,
            threads=threads,
            link=link,
            stopping=stopping,
            on_stop=broker.wake_self,
        )

    def close(self) -> None:
        self._client.close()


class BellBroker(RedisBroker):
    """Dramatiq's Redis broker whose consumers wait for a bell instead of sleeping."""

    queue = QUEUE

    def __init__(
        self, address: Address, namespace: str, bell: str, link: Link, stopping: Event
    ) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            client=_client(address),
            namespace=namespace,
            middleware=[],
            maintenance_chance=_MAINTENANCE_PER_MILLION,
            dead_message_ttl=_DEAD_MESSAGE_LIFE_MS,
        )
        self._address = address
        self._bell = bell
        self._link = link
        self._stopping = stopping

    def get_declared_delay_queues(self) -> set[str]:
        """None: nothing is ever delayed, so no thread should poll for it."""
        return set()

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 0) -> DramatiqConsumer:  # noqa: ARG002
        """A consumer with a bell. `timeout` is the stock consumer's sleep, which is not wanted."""
        return SteadyConsumer(
            lambda: self._fresh(queue_name, prefetch),
            address=self._address,
            link=self._link,
            stopping=self._stopping,
            prefetch=prefetch,
            # An unreadable message is another program's: leave it, like what was cached with it.
            lost=(redis.RedisError, DecodeError),
            idle=self._wait_for_bell,
        )

    def close(self) -> None:
        self.client.close()

    def ring(self, times: int) -> None:
        """Wake that many consumers, those that wait longest first."""
        with self.client.pipeline(transaction=True) as pipe:
            pipe.lpush(self._bell, *[b""] * times)
            pipe.ltrim(self._bell, 0, _BELLS_MAX - 1)
            pipe.expire(self._bell, _BELL_LIFE_S)
            pipe.execute()

    def wake_self(self) -> None:
        """Cut the wait of our consumer, which should stop; others wake for nothing. Among more
        than eight it may not be reached: then its wait ends by itself within a second.
        """
        if self._link.connected:
            with suppress(redis.RedisError):
                self.ring(_BELLS_MAX)

    def _fresh(self, queue_name: str, prefetch: int) -> DramatiqConsumer:
        # A reply lost with the old connection leaves messages marked as ours for ever, as long as
        # we send heartbeats. Under a new id the old one falls silent and they are put back.
        self.broker_id = str(uuid4())
        return _Requeueing(self, super().consume(queue_name, prefetch, timeout=0))

    def _wait_for_bell(self) -> None:
        # The fetch before this found nothing; whatever arrived since has rung.
        self.client.blpop([self._bell], timeout=POLL_S)


class _Requeueing(DramatiqConsumer):
    """The stock consumer, but what it puts back rings the bell."""

    def __init__(self, broker: BellBroker, stock: DramatiqConsumer) -> None:
        self._broker = broker
        self._stock = stock
        self.ack = stock.ack  # type: ignore[method-assign]
        self.nack = stock.nack  # type: ignore[method-assign]

    def __next__(self) -> MessageProxy | None:
        return next(self._stock)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        self._stock.requeue(messages)
        self._broker.ring(1)

    def close(self) -> None:
        # Fetched together and not yet handed on: nobody else would look there for a minute.
        cached = [data for data in getattr(self._stock, "message_cache", ()) if data is not None]
        if cached:
            self._stock.message_cache = []  # type: ignore[attr-defined]
            self.requeue([MessageProxy(Message.decode(data)) for data in cached])
        self._stock.close()


def _client(address: Address) -> redis.Redis:
    """A client that has not connected. One silent retry covers a connection the server closed
    while it was idle; a timeout is not retried, so that a call stays within its limit.
    """
    if not _DATABASE.fullmatch(urlsplit(address.url).path):
        # redis-py takes database 0 for whatever it cannot read.
        raise ConfigurationError(f"the broker URL for {address.place} must end in /N, a number")
    try:
        pool = redis.ConnectionPool.from_url(
            address.url,
            protocol=2,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            socket_timeout=_SOCKET_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=_HEALTH_CHECK_S,
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
        )
        pool.connection_class(**pool.connection_kwargs)  # unknown options show here, not later
    except (ValueError, TypeError):
        raise ConfigurationError(  # without the cause: it may quote the URL
            f"the broker URL for {address.place} has an option that redis-py does not know"
        ) from None
    return redis.Redis(connection_pool=pool)

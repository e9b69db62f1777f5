"""The courier between the relay and the workers: lease tokens and delivery ids, nothing else.

Owns how deliveries travel: Dramatiq over Redis, over RabbitMQ, or inside this process. A broker
may lose, repeat, delay or reorder anything and no delivery suffers: PostgreSQL holds the lease,
the token fences it, and a lost message comes back when its lease expires. Nothing here connects
before it is used, and Dramatiq's global broker is never set.
"""

from __future__ import annotations

import re

from outbox.errors import ConfigurationError
from processors.broker.address import Address
from processors.broker.courier import Accept, Batch, Consumer, Courier

__all__ = ["Accept", "Batch", "Consumer", "Courier", "open_broker"]

# What both a Redis key prefix and a Dramatiq queue name can hold.
_NAMESPACE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")


def open_broker(url: str, *, namespace: str = "outbox") -> Courier:
    """A courier for `redis://`, `rediss://`, `amqp://`, `amqps://` or `memory://`.

    Couriers of one URL and one namespace exchange messages; other namespaces never see them. Each
    `memory://` courier is a broker of its own: relay and worker share the object. Nothing is
    connected yet. Raises ConfigurationError for a URL or namespace that cannot work; its text
    never holds the URL, which may carry a password.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise ConfigurationError(
            "the broker namespace must be 1 to 63 letters, digits, '_' or '-', not beginning "
            "with a digit or '-'"
        )
    address = Address.parse(url)
    if address.scheme in {"redis", "rediss"}:
        from processors.broker.over_redis import RedisCourier

        return RedisCourier(address, namespace=namespace)
    if address.scheme in {"amqp", "amqps"}:
        from processors.broker.over_amqp import AmqpCourier

        return AmqpCourier(address, namespace=namespace)
    from processors.broker.in_memory import MemoryCourier

    return MemoryCourier()

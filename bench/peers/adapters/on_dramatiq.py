"""Dramatiq as it comes, over Redis. As a program it enqueues; `dramatiq` loads it to work."""

from __future__ import annotations

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from bench.peers.adapters.job import Order, Stamps, ThreadSender, body

ORDER = Order.read()
STAMPS, SENDER = Stamps(ORDER.stamps), ThreadSender(ORDER.post_url)

broker = RedisBroker(url=ORDER.redis_url)  # type: ignore[no-untyped-call]
dramatiq.set_broker(broker)


def perform(number: int, text: str) -> None:
    """One job."""
    if ORDER.kind == "webhook":
        SENDER.send(number, text.encode())
    STAMPS.done()


job = dramatiq.actor(actor_name="job", max_retries=0)(perform)

if __name__ == "__main__":
    for each in range(1, ORDER.jobs + 1):
        job.send(each, body(each))

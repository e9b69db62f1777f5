"""Celery over Redis, results ignored. As a program it enqueues; `celery` loads it to work."""

from __future__ import annotations

from celery import Celery

from bench.peers.adapters.job import Order, Stamps, ThreadSender, body

ORDER = Order.read()
STAMPS, SENDER = Stamps(ORDER.stamps), ThreadSender(ORDER.post_url)
PREFETCHED_EACH_THREAD = 32

app = Celery("bench", broker=ORDER.redis_url)
app.conf.update(
    task_ignore_result=True,
    worker_prefetch_multiplier=PREFETCHED_EACH_THREAD,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    broker_connection_retry_on_startup=True,
)


def perform(number: int, text: str) -> None:
    """One job."""
    if ORDER.kind == "webhook":
        SENDER.send(number, text.encode())
    STAMPS.done()


job = app.task(name="job")(perform)

if __name__ == "__main__":
    with app.producer_pool.acquire() as producer:
        for each in range(1, ORDER.jobs + 1):
            job.apply_async((each, body(each)), producer=producer)

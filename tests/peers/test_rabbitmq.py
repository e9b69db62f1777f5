"""The courier over a real RabbitMQ: OUTBOX_TEST_AMQP_URL, or guest on the standard local port.

Its faults are made by a proxy and by the protocol, since the server is not ours to restart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import pika
import pytest
import structlog
from pika.adapters.blocking_connection import BlockingChannel

from outbox.errors import BrokerUnavailable
from processors.broker import Batch, Courier, open_broker
from processors.broker.courier import IDS_PER_MESSAGE
from tests.broker.helpers import Receiver, new_ids, proxy_to, wait_until

URL = os.environ.get("OUTBOX_TEST_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672")
SUFFIXES = ("", ".DQ", ".XQ")


@pytest.fixture
def channel() -> Iterator[BlockingChannel]:
    """A channel of the test's own, and the proof that the peer is there."""
    try:
        connection = pika.BlockingConnection(pika.URLParameters(URL))
    except (pika.exceptions.AMQPError, OSError):
        pytest.fail("no RabbitMQ at OUTBOX_TEST_AMQP_URL or 127.0.0.1:5672", pytrace=False)
    yield connection.channel()
    connection.close()


@pytest.fixture
def namespace(channel: BlockingChannel) -> Iterator[str]:
    name = f"test-{uuid4().hex[:12]}"
    yield name
    for suffix in SUFFIXES:
        channel.queue_delete(f"{name}.deliver{suffix}")


@pytest.fixture
def courier(namespace: str) -> Iterator[Courier]:
    opened = open_broker(URL, namespace=namespace)
    yield opened
    opened.close()


def waiting(channel: BlockingChannel, queue: str) -> int:
    return int(channel.queue_declare(queue, passive=True).method.message_count)


def test_everything_sent_arrives_once_with_its_token(courier: Courier) -> None:
    batches = [Batch(token, new_ids(size)) for token, size in ((1, 1), (2**63 - 1, 51), (3, 240))]
    receiver = Receiver()
    consumer = courier.consume(receiver)
    courier.send(batches)
    for batch in batches:
        receiver.wait_for(batch.token, batch.ids)
    assert consumer.stop()
    assert receiver.counted() == Counter((b.token, each) for b in batches for each in b.ids)
    assert all(len(ids) <= IDS_PER_MESSAGE for _, ids in receiver.calls)


def test_depth_counts_what_nobody_received_and_falls_to_zero(courier: Courier) -> None:
    courier.send([Batch(1, ids := new_ids(130))])
    assert courier.depth() == 130
    receiver = Receiver()
    consumer = courier.consume(receiver)
    receiver.wait_for(1, ids)
    assert courier.depth() == 0
    assert consumer.stop()


def test_a_blocked_accept_leaves_the_rest_in_the_broker(courier: Courier) -> None:
    receiver = Receiver()
    receiver.open.clear()
    consumer = courier.consume(receiver, threads=2)
    courier.send([Batch(1, ids := new_ids(4 * IDS_PER_MESSAGE))])
    receiver.wait_entered(2)
    wait_until(lambda: courier.depth() == 2 * IDS_PER_MESSAGE)
    receiver.open.set()
    receiver.wait_for(1, ids)
    assert consumer.stop()


def test_an_accept_that_raises_fills_no_dead_letter_queue(
    courier: Courier, namespace: str, channel: BlockingChannel
) -> None:
    receiver = Receiver()
    receiver.fails = lambda token: True
    consumer = courier.consume(receiver)
    courier.send([Batch(1, ids := new_ids(200))])
    receiver.wait_for(1, ids)
    assert consumer.stop()
    assert receiver.counted().total() == 200
    assert [waiting(channel, f"{namespace}.deliver{suffix}") for suffix in SUFFIXES] == [0, 0, 0]


def test_two_namespaces_never_meet(
    courier: Courier, namespace: str, channel: BlockingChannel
) -> None:
    other = open_broker(URL, namespace=f"{namespace}-other")
    here, there = Receiver(), Receiver()
    consumers = [courier.consume(here), other.consume(there)]
    courier.send([Batch(1, mine := new_ids(60))])
    other.send([Batch(2, theirs := new_ids(60))])
    here.wait_for(1, mine)
    there.wait_for(2, theirs)
    assert [consumer.stop() for consumer in consumers] == [True, True]
    assert {token for token, _ in here.calls + there.calls} == {1, 2}
    assert {token for token, _ in here.calls} == {1}
    other.close()
    for suffix in SUFFIXES:
        channel.queue_delete(f"{namespace}-other.deliver{suffix}")


def test_a_cut_connection_is_opened_again_with_a_log_line_a_change(namespace: str) -> None:
    parts = urlsplit(URL)
    receiver = Receiver()
    with structlog.testing.capture_logs() as lines:
        with proxy_to(parts.port or 5672) as proxy:
            address = URL.replace(f":{parts.port or 5672}", f":{proxy.port}")
            courier = open_broker(address, namespace=namespace)
            consumer = courier.consume(receiver)
            courier.send([Batch(1, ids := new_ids(60))])
            receiver.wait_for(1, ids)
            proxy.refuse()
            wait_until(lambda: not consumer.connected)
            with pytest.raises(BrokerUnavailable) as refused:
                courier.send([Batch(2, new_ids(1))])
            proxy.admit()
            wait_until(lambda: consumer.connected)
            courier.send([Batch(3, ids := new_ids(120))])
            receiver.wait_for(3, ids)
            assert consumer.alive
            assert consumer.stop()
            courier.close()
    assert "guest:guest" not in str(refused.value)
    events = [line["event"] for line in lines]
    assert events == ["broker_connected", "broker_unreachable", "broker_connected"]


def test_a_deleted_queue_is_declared_again(
    courier: Courier, namespace: str, channel: BlockingChannel
) -> None:
    receiver = Receiver()
    consumer = courier.consume(receiver)
    courier.send([Batch(1, ids := new_ids(1))])
    receiver.wait_for(1, ids)
    channel.queue_delete(f"{namespace}.deliver")
    courier.send([Batch(2, ids := new_ids(60))])
    receiver.wait_for(2, ids)
    assert consumer.stop()

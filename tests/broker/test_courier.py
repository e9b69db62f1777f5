"""What every courier promises, on a real Redis and in memory."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from processors.broker import Batch, Courier
from processors.broker.courier import IDS_PER_MESSAGE, Link, unpack
from tests.broker.helpers import Receiver, new_ids, wait_until

TOKENS = st.integers(min_value=1, max_value=2**63 - 1)


@given(ids=st.lists(st.uuids().map(lambda each: each.hex), max_size=60))
def test_joined_ids_come_apart_again(ids: list[str]) -> None:
    assert unpack("".join(ids)) == ids


@pytest.mark.parametrize(
    "wrong",
    ["1", "1" * 31, "1" * 33, "x" * 32, "1" * 31 + "é", "1" * 30 + "  ", " " + "1" * 31, "-" * 32],
)
def test_what_is_no_id_never_reaches_a_worker(wrong: str) -> None:
    """PostgreSQL would refuse the batch that it is in, again and again."""
    for joined in (wrong, "0" * 32 + wrong, wrong + "0" * 32):
        with pytest.raises(ValueError, match="hexadecimal"):
            unpack(joined)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.tuples(TOKENS, st.integers(0, 160)), max_size=5))
def test_everything_sent_arrives_once_with_its_token(
    courier: Courier, sizes: list[tuple[int, int]]
) -> None:
    batches = [Batch(token, new_ids(size)) for token, size in sizes]
    receiver = Receiver()
    consumer = courier.consume(receiver)
    try:
        courier.send(batches)
        for batch in batches:
            receiver.wait_for(batch.token, batch.ids)
    finally:
        assert consumer.stop()
    assert receiver.counted() == Counter((b.token, each) for b in batches for each in b.ids)
    assert all(1 <= len(ids) <= IDS_PER_MESSAGE for _, ids in receiver.calls)
    assert courier.depth() == 0


def test_ids_of_a_batch_stay_in_order(courier: Courier) -> None:
    ids = new_ids(2 * IDS_PER_MESSAGE + 20)
    courier.send([Batch(1, ids)])
    receiver = Receiver()
    consumer = courier.consume(receiver, threads=1)
    receiver.wait_for(1, ids)
    consumer.stop()
    assert [each for _, part in receiver.calls for each in part] == ids


def test_sending_nothing_is_allowed(courier: Courier) -> None:
    courier.send([])
    courier.send([Batch(1, [])])
    assert courier.depth() == 0


def test_depth_counts_what_nobody_received_and_falls_to_zero(courier: Courier) -> None:
    ids = new_ids(130)
    courier.send([Batch(1, ids)])
    assert courier.depth() == 130
    receiver = Receiver()
    consumer = courier.consume(receiver)
    receiver.wait_for(1, ids)
    assert courier.depth() == 0
    consumer.stop()


def test_a_blocked_accept_leaves_the_rest_in_the_broker(courier: Courier) -> None:
    ids = new_ids(6 * IDS_PER_MESSAGE)
    receiver = Receiver()
    receiver.open.clear()
    consumer = courier.consume(receiver, threads=2)
    courier.send([Batch(1, ids)])
    receiver.wait_entered(2)
    try:
        # Two threads hold a message each; none beyond those was fetched.
        assert courier.depth() == 4 * IDS_PER_MESSAGE
        assert receiver.entered == 2
    finally:
        receiver.open.set()
    receiver.wait_for(1, ids)
    assert consumer.stop()


def test_an_accept_that_raises_is_logged_and_not_called_again(courier: Courier) -> None:
    receiver = Receiver()
    receiver.fails = lambda token: token == 1
    broken, whole = new_ids(50), new_ids(50)
    with structlog.testing.capture_logs() as lines:
        consumer = courier.consume(receiver, threads=1)
        courier.send([Batch(1, broken)])
        receiver.wait_for(1, broken)
        courier.send([Batch(2, whole)])
        receiver.wait_for(2, whole)
        assert consumer.alive
        consumer.stop()
    again = Receiver()
    consumer = courier.consume(again)
    courier.send([Batch(3, whole)])
    again.wait_for(3, whole)
    consumer.stop()
    assert [token for token, _ in receiver.calls + again.calls] == [1, 2, 3]
    assert [line["token"] for line in lines if line["event"] == "broker_accept_failed"] == [1]


def test_stop_ends_all_threads_and_leaves_later_messages(courier: Courier) -> None:
    receiver = Receiver()
    consumer = courier.consume(receiver)
    courier.send([Batch(1, ids := new_ids(3))])
    receiver.wait_for(1, ids)
    assert (consumer.alive, consumer.connected) == (True, True)
    assert consumer.stop()
    assert (consumer.alive, consumer.stop()) == (False, True), "stopping twice is allowed"
    courier.send([Batch(2, new_ids(7))])
    wait_until(lambda: courier.depth() > 0)
    assert len(receiver.calls) == 1


def test_stop_waits_no_longer_than_told_for_a_blocked_accept(courier: Courier) -> None:
    receiver = Receiver()
    receiver.open.clear()
    consumer = courier.consume(receiver, threads=1)
    courier.send([Batch(1, ids := new_ids(1))])
    receiver.wait_entered(1)
    assert not consumer.stop(timedelta(milliseconds=50))
    receiver.open.set()
    receiver.wait_for(1, ids)
    wait_until(consumer.stop)


def test_two_consumers_share_the_work(courier: Courier) -> None:
    receiver = Receiver()
    receiver.open.clear()
    consumers = [courier.consume(receiver, threads=1) for _ in range(2)]
    ids = new_ids(200)
    courier.send([Batch(1, ids)])
    receiver.wait_entered(2)
    receiver.open.set()
    receiver.wait_for(1, ids)
    assert [consumer.stop() for consumer in consumers] == [True, True]
    assert receiver.counted().total() == 200


def test_a_link_speaks_once_a_change() -> None:
    link = Link("somewhere")
    with structlog.testing.capture_logs() as lines:
        for step in ("down", "down", "up", "up", "down", "down", "up"):
            link.up() if step == "up" else link.down("refused")
    events = [line["event"] for line in lines]
    assert events == ["broker_unreachable", "broker_connected"] * 2

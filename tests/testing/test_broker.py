"""The clock and the broker for tests do what they are told, and nothing else."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import uuid4

import pytest

from outbox.errors import BrokerUnavailable, UsageError
from outbox.runtime import Courier
from outbox.testing import Clock, Faults, Message, RecordingBroker

IDS = [uuid4().hex for _ in range(200)]


def filled(broker: RecordingBroker) -> RecordingBroker:
    for token, delivery_id in enumerate(IDS):
        broker.send(token, [delivery_id])
    return broker


def test_a_clock_moves_only_when_told() -> None:
    clock = Clock(datetime(2026, 1, 1, tzinfo=UTC))
    assert clock() == clock() == datetime(2026, 1, 1, tzinfo=UTC)
    assert clock.advance(90) == clock() == datetime(2026, 1, 1, 0, 1, 30, tzinfo=UTC)
    clock.advance(timedelta(hours=1))
    assert clock.monotonic() == 3690
    with pytest.raises(UsageError, match="forward"):
        clock.advance(-1)
    with pytest.raises(UsageError, match="timezone"):
        Clock(datetime(2026, 1, 1))  # noqa: DTZ001 (what is refused)


def test_what_is_sent_waits_and_is_handed_out_in_order() -> None:
    broker = RecordingBroker()
    courier: Courier = broker
    courier.send(7, IDS[:2])
    courier.send(8, IDS[2:3])
    assert courier.depth() == 3
    assert broker.deliver() == Message(7, tuple(IDS[:2]))
    assert broker.deliver() == Message(8, tuple(IDS[2:3]))
    assert broker.handed == broker.sent
    assert courier.depth() == 0


def test_by_hand_it_loses_and_repeats() -> None:
    broker = filled(RecordingBroker())
    assert broker.lose(1) == Message(1, (IDS[1],))
    assert broker.repeat() == broker.waiting[-1] == Message(0, (IDS[0],))
    assert len(broker.waiting) == len(IDS)
    broker.lose_all()
    assert (broker.depth(), len(broker.lost)) == (0, len(IDS) + 1)
    broker.forget()
    assert broker.sent == broker.lost == []


@pytest.mark.parametrize(
    ("faults", "expected"),
    [(Faults(lose=0.5), (70, 130)), (Faults(repeat=0.5), (270, 330)), (Faults(lose=1.0), (0, 0))],
)
def test_faults_lose_and_repeat_their_share_and_the_same_with_the_same_seed(
    faults: Faults, expected: tuple[int, int]
) -> None:
    runs = [filled(RecordingBroker(faults, random=Random(5))).waiting for _ in range(2)]
    assert runs[0] == runs[1]
    assert expected[0] <= len(runs[0]) <= expected[1]


def test_faults_reorder() -> None:
    broker = filled(RecordingBroker(Faults(reorder=0.5)))
    assert broker.waiting != broker.sent
    assert sorted(broker.waiting, key=lambda message: message.token) == broker.sent


def test_a_broker_that_is_down_says_so_and_takes_nothing() -> None:
    broker = RecordingBroker()
    broker.down = True
    with pytest.raises(BrokerUnavailable):
        broker.send(1, IDS[:1])
    with pytest.raises(BrokerUnavailable):
        broker.depth()
    broker.down = False
    assert broker.depth() == 0


def test_consumers_are_handed_what_is_ready_and_what_is_delayed_later() -> None:
    """The clock of the delays moves by hand. One that was sent last and without a delay shows that
    the others were passed over."""
    clock = Clock()
    arrived: list[int] = []
    prompt_one_is_here, all_are_here = threading.Event(), threading.Event()

    def accept(token: int, ids: list[str]) -> None:
        arrived.append(token)
        if token == -1:
            prompt_one_is_here.set()
        if len(arrived) == len(IDS) + 1:
            all_are_here.set()

    broker = filled(RecordingBroker(Faults(delay=timedelta(minutes=1)), clock=clock.monotonic))
    broker.faults = Faults()
    broker.send(-1, IDS[:1])
    consumer = broker.consume(accept, threads=1)
    assert consumer.alive
    assert prompt_one_is_here.wait(60)
    assert arrived == [-1]
    assert broker.depth() == len(IDS)
    clock.advance(60)
    assert all_are_here.wait(60)
    assert sorted(arrived) == [-1, *range(len(IDS))]
    assert consumer.stop()
    broker.send(1, IDS[:1])
    assert broker.depth() == 1


@pytest.mark.parametrize("wrong", [{"lose": 1.1}, {"repeat": -1.0}, {"reorder": 2.0}])
def test_a_probability_lies_between_0_and_1(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        Faults(**wrong)  # type: ignore[arg-type]


def test_a_delay_is_not_below_zero() -> None:
    with pytest.raises(UsageError, match="below zero"):
        Faults(delay=timedelta(seconds=-1))

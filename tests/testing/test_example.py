"""A processor that pays out, and the proof that crashes and duplicates pay nobody twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st

from outbox.testing import Bench, Kind, Outcome, ProcessorMachine, Work


class Bank:
    """Stands for the outside world: it remembers the key of each payment it has made."""

    def __init__(self) -> None:
        self.payments: dict[UUID, tuple[str, int]] = {}

    async def pay(self, key: UUID, account: str, cents: int) -> None:
        await asyncio.sleep(0)
        self.payments.setdefault(key, (account, cents))
        await asyncio.sleep(0)


async def pay_out(bank: Bank, work: Work) -> Outcome:
    """The processor. The delivery's id is the same in every attempt, so it is the key."""
    order = json.loads(work.payload)
    if order["cents"] <= 0:
        return Outcome(Kind.REJECTED, "nothing_to_pay")
    await bank.pay(work.delivery_id, order["account"], order["cents"])
    return Outcome(Kind.DELIVERED, "paid")


class Payouts(ProcessorMachine):
    types = ("orders.closed",)
    payloads = st.fixed_dictionaries(
        {"account": st.sampled_from(["ann", "bob"]), "cents": st.integers(0, 5)}
    )

    async def begin(self) -> None:
        self.bank = Bank()

    async def process(self, work: Work, deadline: float) -> Outcome:
        return await pay_out(self.bank, work)

    async def effects(self) -> Mapping[UUID, object]:
        return self.bank.payments


TestPayouts = Payouts.TestCase
TestPayouts.settings = settings(max_examples=20, stateful_step_count=30, deadline=None)


def test_a_payout_that_was_paid_twice_is_paid_once(outbox_bench: Bench) -> None:
    bank = Bank()
    outbox_bench.emit("orders.closed", {"account": "ann", "cents": 250})
    outbox_bench.route()
    [started] = outbox_bench.take(outbox_bench.broker.deliver())
    for _ in range(2):
        outbox_bench.perform(started.work, lambda work, deadline: pay_out(bank, work))
    assert list(bank.payments.values()) == [("ann", 250)]

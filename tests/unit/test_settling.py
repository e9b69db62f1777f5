"""What waits to be settled: nothing waits behind a flow that does not end."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID, uuid4

from outbox.settling import Settling
from outbox.store.attempts import Attempts, Settlement

SIZE = 3


def ended(verdict: str = "delivered", effects: str | None = None) -> Settlement:
    return Settlement(uuid4(), 1, verdict, True, "x", None, None, effects)


class Books(Attempts):
    """Statements that only write down what they are given, by their names."""

    def __init__(self) -> None:
        self.written: list[tuple[str, int]] = []

    async def settle(self, ended: Sequence[Settlement]) -> set[UUID]:
        self.written.append(("settle", len(ended)))
        return {one.id for one in ended}

    async def settle_delivered(self, ended: Sequence[Settlement]) -> int:
        self.written.append(("settle_delivered", len(ended)))
        return len(ended) - 1  # one of them was not ours any more


def test_failures_do_not_wait_behind_deliveries_that_keep_coming() -> None:
    settling, books = Settling(lambda: 0.0, SIZE), Books()

    async def run() -> None:
        for _ in range(2 * SIZE):
            settling.note(ended())
        settling.note(ended("retry"))
        for _ in range(4):
            await settling.write(books)
            for _ in range(SIZE):
                settling.note(ended())

    asyncio.run(run())
    assert books.written[:2] == [("settle_delivered", SIZE), ("settle", 1)]
    assert len(settling) > SIZE


def test_deliveries_do_not_wait_behind_failures_that_keep_coming() -> None:
    settling, books = Settling(lambda: 0.0, SIZE), Books()

    async def run() -> None:
        settling.note(ended())
        for _ in range(3):
            for _ in range(SIZE):
                settling.note(ended("retry"))
            await settling.write(books)

    asyncio.run(run())
    assert ("settle_delivered", 1) in books.written[:2]


def test_what_brings_something_about_goes_with_the_others() -> None:
    settling, books = Settling(lambda: 0.0, SIZE), Books()

    async def run() -> tuple[list[Settlement], int]:
        for one in (ended(), ended(effects="{}"), ended("dead"), ended()):
            settling.note(one)
        batch, lost = await settling.write(books)
        assert (len(batch), lost) == (2, 1)
        return await settling.write(books)

    batch, lost = asyncio.run(run())
    assert (len(batch), lost, len(settling)) == (2, 0, 0)
    assert books.written == [("settle_delivered", 2), ("settle", 2)]

"""Connections of processes that die in the middle of what they do.

A death comes before or after a statement, or before the commit of a transaction: the step raises
`Died`, and what is open is rolled back, as PostgreSQL does when the connection of a dead process
breaks. Nothing of the process but its connection, which is as good as new, is used afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import psycopg

from outbox.store.connect import HotConnection


class Died(BaseException):
    """The process is dead. Not an Exception, so that nothing on the way out handles it."""


class Dying:
    """Counts down while it is dying."""

    steps: int | None = None

    @contextmanager
    def dying(self, steps: int | None) -> Iterator[None]:
        """Die at the step after so many; None never dies."""
        self.steps = steps
        try:
            yield
        finally:
            self.steps = None

    def step(self) -> None:
        if self.steps is not None:
            self.steps -= 1
            if self.steps < 0:
                raise Died


class Mortal(Dying, psycopg.Connection[tuple[Any, ...]]):
    """The connection of a command."""

    def execute(self, *args: Any, **options: Any) -> Any:
        self.step()
        return super().execute(*args, **options)

    @contextmanager
    def transaction(self, *args: Any, **options: Any) -> Iterator[psycopg.Transaction]:
        with super().transaction(*args, **options) as opened:
            yield opened
            self.step()


class MortalHot(Dying, HotConnection):
    """The same for what a daemon sends: two steps a statement, before and after it."""

    async def run(
        self, name: str, params: dict[str, Any], **options: Any
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        self.step()
        cursor = await HotConnection.run(self, name, params, **options)
        self.step()
        return cursor

    async def send(
        self, name: str, params: Mapping[str, Any] | None = None
    ) -> psycopg.AsyncCursor[tuple[Any, ...]]:
        self.step()
        cursor = await HotConnection.send(self, name, params)
        self.step()
        return cursor

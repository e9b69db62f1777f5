"""How many deliveries one worker process holds: the bound on what is in flight."""

from __future__ import annotations

import threading


class Budget:
    """How many deliveries are in this process, shared between the broker's threads and the loop.

    At most `size` in all, of which at most `waiting_max` not yet taken: what waits here holds
    permits that another worker could use.
    """

    def __init__(self, size: int, waiting_max: int) -> None:
        self._size = size
        self._waiting_max = waiting_max
        self._used = 0
        self._waiting = 0
        self._closed = False
        self._changed = threading.Condition()

    def acquire(self, count: int) -> bool:
        """Wait until `count` more fit (or nothing else is there); false once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._fits(count))
            if not self._closed:
                self._used += count
                self._waiting += count
            return not self._closed

    def _fits(self, count: int) -> bool:
        return (self._used == 0 or self._used + count <= self._size) and (
            self._waiting == 0 or self._waiting + count <= self._waiting_max
        )

    def taken(self, count: int) -> None:
        """So many wait no longer."""
        with self._changed:
            self._waiting -= count
            self._changed.notify_all()

    def free(self, count: int) -> None:
        """So many left."""
        with self._changed:
            self._used -= count
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more and wake who waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def used(self) -> int:
        """How many are inside."""
        return self._used

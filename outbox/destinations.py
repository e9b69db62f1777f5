"""Where taken deliveries go: makes `Work` of what was taken, and loads what that needs.

Owns the books of endpoints and of setups of one worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from outbox.addressbook import AddressBook, SetupBook
from outbox.attempt import work_of
from outbox.errors import OutboxError
from outbox.secrets import KeyRing
from outbox.store.attempts import Attempts, Taken
from outbox.work import Work

log = structlog.get_logger("outbox.worker")


class Destinations:
    """What a worker knows of destinations. `clock` is monotonic, in seconds."""

    def __init__(self, ring: KeyRing | None, clock: Callable[[], float]) -> None:
        self._endpoints = AddressBook(ring, clock)
        self._setups = SetupBook()

    async def load(self, attempts: Attempts, taken: Sequence[Taken]) -> None:
        """Load what is not here yet."""
        endpoints = {
            (t.endpoint_id, t.endpoint_revision)
            for t in taken
            if t.endpoint_id is not None and t.endpoint_revision is not None
        }
        if unknown := self._endpoints.missing(endpoints):
            for stored in await attempts.endpoints(unknown):
                try:
                    self._endpoints.add(stored)
                except OutboxError as error:
                    log.error("worker.secret_unusable", endpoint=stored.id, error=str(error))
        setups = {(t.subscription_id, t.revision) for t in taken if t.endpoint_id is None}
        if missing := self._setups.missing(setups):
            for setup in await attempts.setups(missing):
                self._setups.add(setup)

    def work(self, taken: Taken) -> Work | None:
        """What a processor gets; None where the endpoint's secrets do not open."""
        if taken.endpoint_id is None:
            setup = self._setups.find(taken.subscription_id, taken.revision)
            return None if setup is None else work_of(taken, setup=setup)
        assert taken.endpoint_revision is not None
        endpoint = self._endpoints.find(taken.endpoint_id, taken.endpoint_revision)
        return None if endpoint is None else work_of(taken, endpoint)

"""Endpoints with their secrets opened, and setups of subscriptions without one, kept by revision.

Every change that a worker must see bumps an endpoint's revision, and every taken delivery names
the revision in force, so nothing is polled and a rotated secret is used from its first delivery.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import timedelta

from outbox.errors import KeyMissing
from outbox.secrets import KeyRing, secret_context
from outbox.store.attempts import StoredEndpoint, StoredSetup
from outbox.work import Endpoint, Setup, SigningKey

ENTRIES_MAX = 10_000


def open_endpoint(stored: StoredEndpoint, ring: KeyRing | None) -> Endpoint:
    """Open what is sealed. Raises KeyMissing or ConfigurationError where it does not open."""
    if ring is None:
        raise KeyMissing("OUTBOX_SECRET_KEY is not set; without it no delivery can be signed")
    keys = []
    for key in stored.keys:
        context = secret_context(stored.org_id, str(key.id), "secret")
        keys.append(SigningKey(key.kind, ring.open(key.sealed, context=context)))
    headers: dict[str, str] = {}
    if stored.headers_sealed is not None:
        context = secret_context(stored.org_id, str(stored.id), "headers", table="endpoint")
        headers = json.loads(ring.open(stored.headers_sealed, context=context))
    return Endpoint(
        id=str(stored.id),
        org_id=stored.org_id,
        url=stored.url,
        keys=tuple(keys),
        headers=headers,
        timeout=timedelta(seconds=stored.timeout_s),
        gone_disables=stored.gone_disables,
    )


class SetupBook:
    """A cache of setups; the longest unused goes first. A revision never changes, so what is here
    holds for ever."""

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], Setup] = {}

    def missing(self, wanted: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
        """Pairs of (subscription id, revision) that must be loaded."""
        return {pair for pair in wanted if self.find(*pair) is None}

    def find(self, subscription_id: int, revision: int) -> Setup | None:
        """The setup, if it is here."""
        setup = self._entries.pop((subscription_id, revision), None)
        if setup is not None:
            self._entries[subscription_id, revision] = setup
        return setup

    def add(self, stored: StoredSetup) -> None:
        """Keep one."""
        if len(self._entries) >= ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        timeout = None if stored.timeout_s is None else timedelta(seconds=stored.timeout_s)
        config = json.loads(stored.config or "{}")
        setup = Setup(stored.subscription_id, stored.revision, config, timeout)
        self._entries[stored.subscription_id, stored.revision] = setup


class AddressBook:
    """A cache of opened endpoints; the longest unused goes first. `clock` is monotonic, in seconds.

    What `missing` found here stays for at least `ENTRIES_MAX` further additions.
    """

    def __init__(self, ring: KeyRing | None, clock: Callable[[], float]) -> None:
        self._ring = ring
        self._clock = clock
        self._entries: dict[int, tuple[int, float, Endpoint]] = {}

    def missing(self, wanted: Iterable[tuple[int, int]]) -> set[int]:
        """Ids of (id, revision) pairs that must be loaded."""
        return {i for i, revision in wanted if self.find(i, revision) is None}

    def find(self, endpoint_id: int, revision: int) -> Endpoint | None:
        """The endpoint at this revision or a newer one, if it is here and its keys still hold."""
        entry = self._entries.get(endpoint_id)
        if entry is None or entry[0] < revision or entry[1] <= self._clock():
            return None
        self._entries[endpoint_id] = self._entries.pop(endpoint_id)
        return entry[2]

    def add(self, stored: StoredEndpoint) -> None:
        """Open and keep an endpoint until the first of its keys expires."""
        self._entries.pop(stored.id, None)
        if len(self._entries) >= ENTRIES_MAX:
            del self._entries[next(iter(self._entries))]
        left_s = [k.expires_in_s for k in stored.keys if k.expires_in_s is not None]
        until = self._clock() + min(left_s, default=float("inf"))
        self._entries[stored.id] = (stored.revision, until, open_endpoint(stored, self._ring))

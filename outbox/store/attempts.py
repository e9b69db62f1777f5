"""The statements of a worker: take, settle, extend, and where it delivers to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from outbox.health import OPEN_AFTER_S, OPEN_FAILURES, PROBE_S_MAX, PROBE_S_MIN, LaneHealth
from outbox.store import arrays
from outbox.store.connect import HotConnection
from outbox.store.progress import Progress, watching


# Tuples, since one of each is made for every delivery: a frozen dataclass takes 1.5 us, these 0.2.
class Taken(NamedTuple):
    """A started attempt, as `take.sql` returns it."""

    id: UUID
    token: int
    lease_left_s: float
    attempt: int
    event_id: int
    type: str
    occurred_at: str
    payload: str
    headers: str | None
    org_id: str | None
    subject: str | None
    subscription_id: int
    kind: str
    body_format: int
    retry: str
    age_left_s: float | None
    endpoint_id: int | None
    endpoint_revision: int | None
    revision: int
    generation: int | None = None
    original_id: UUID | None = None


class Settlement(NamedTuple):
    """How one attempt ends: `verdict` is delivered, retry, dead or release; `effects` (JSON text)
    are written with it."""

    id: UUID
    token: int
    verdict: str
    charged: bool
    reason: str
    delay_s: float | None
    detail: str | None
    effects: str | None = None


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A sealed signing key; `expires_in_s` is set while it is being rotated out."""

    id: int
    kind: str
    sealed: bytes
    expires_in_s: float | None


@dataclass(frozen=True, slots=True)
class StoredSetup:
    """What a subscription without an endpoint is configured with (JSON text), at one revision."""

    subscription_id: int
    revision: int
    config: str | None
    timeout_s: float | None


@dataclass(frozen=True, slots=True)
class StoredEndpoint:
    """An endpoint as it lies in the database, secrets sealed, keys newest first."""

    id: int
    org_id: str | None
    url: str
    headers_sealed: bytes | None
    timeout_s: float
    gone_disables: bool
    revision: int
    keys: tuple[StoredKey, ...]


class Attempts:
    """A worker's statements over one hot connection. A `clock` stands in for the server's, in
    tests."""

    def __init__(
        self, connection: HotConnection, clock: Callable[[], datetime] | None = None
    ) -> None:
        self._connection = connection
        self._now: Callable[[], datetime | None] = clock or (lambda: None)

    async def take(self, leases: Sequence[tuple[str, int]]) -> list[Taken]:
        """Start what may be started of (id, token) pairs, ids as 32 hexadecimal digits; the rest
        does not come back."""
        params = {
            "now": self._now(),
            "ids": arrays.keys([delivery_id for delivery_id, _ in leases]),
            "tokens": arrays.numbers([token for _, token in leases]),
        }
        cursor = await self._connection.run("take", params)
        return list(map(Taken._make, await cursor.fetchall()))

    async def settle(self, ended: Sequence[Settlement]) -> set[UUID]:
        """End attempts; returns the ids that were still ours."""
        params = {
            "now": self._now(),
            "ids": arrays.uuids([s.id for s in ended]),
            "tokens": arrays.numbers([s.token for s in ended]),
            "verdicts": arrays.texts([s.verdict for s in ended]),
            "charged": arrays.booleans([s.charged for s in ended]),
            "reasons": arrays.texts([s.reason for s in ended]),
            "delays_s": arrays.numbers([s.delay_s for s in ended]),
            "details": arrays.texts([s.detail for s in ended]),
            "effects": arrays.texts([s.effects for s in ended]),
        }
        cursor = await self._connection.run("settle", params)
        return {row[0] for row in await cursor.fetchall()}

    async def settle_delivered(self, ended: Sequence[Settlement]) -> int:
        """End attempts that were delivered, without effects; returns how many were still ours."""
        params = {
            "now": self._now(),
            "ids": arrays.uuids([s.id for s in ended]),
            "tokens": arrays.numbers([s.token for s in ended]),
            "reasons": arrays.texts([s.reason for s in ended]),
            "details": arrays.texts([s.detail for s in ended]),
        }
        row = await (await self._connection.run("settle_delivered", params)).fetchone()
        assert row is not None
        return int(row[0])

    async def extend(self, leases: Sequence[tuple[UUID, int]], lease_s: float) -> set[UUID]:
        """Lengthen leases to `lease_s` from now; returns the ids that were still ours."""
        params = {
            "now": self._now(),
            "ids": arrays.uuids([delivery_id for delivery_id, _ in leases]),
            "tokens": arrays.numbers([token for _, token in leases]),
            "lease_s": lease_s,
        }
        cursor = await self._connection.run("extend", params)
        return {row[0] for row in await cursor.fetchall()}

    async def watch(self, told: Sequence[Progress], over: Sequence[UUID]) -> set[UUID]:
        """Write down what running attempts tell, forget those of deliveries that are `over`;
        returns the ids that are still ours."""
        params = {"now": self._now(), **watching(told, over)}
        cursor = await self._connection.run("watch", params)
        return {row[0] for row in await cursor.fetchall()}

    async def release(self, token: int, ids: Sequence[str]) -> None:
        """Give back leases that were never started."""
        await self._connection.run("release", {"token": token, "ids": arrays.keys(ids)})

    async def report(self, lanes: Mapping[int, LaneHealth]) -> list[int]:
        """Note how attempts went; returns the lanes whose circuits are open now."""
        told = list(lanes.values())
        params = {
            "now": None,
            "lanes": arrays.numbers(list(lanes)),
            "delivered": arrays.booleans([health.delivered for health in told]),
            "failures": arrays.numbers([health.failures for health in told]),
            "down": arrays.numbers([0 if health.answered else health.down for health in told]),
            "open_failures": OPEN_FAILURES,
            "open_after_s": OPEN_AFTER_S,
            "probe_s_min": PROBE_S_MIN,
            "probe_s_max": PROBE_S_MAX,
        }
        cursor = await self._connection.run("lane_report", params)
        return [row[0] for row in await cursor.fetchall()]

    async def endpoints(self, ids: Iterable[int]) -> list[StoredEndpoint]:
        """Endpoints with the keys that are valid now."""
        cursor = await self._connection.run("load_endpoints", {"ids": list(ids)})
        return [_endpoint(row) for row in await cursor.fetchall()]

    async def setups(self, wanted: Iterable[tuple[int, int]]) -> list[StoredSetup]:
        """What subscriptions are configured with, by (id, revision)."""
        pairs = sorted(wanted)
        params = {
            "ids": arrays.numbers([subscription_id for subscription_id, _ in pairs]),
            "revisions": arrays.numbers([revision for _, revision in pairs]),
        }
        cursor = await self._connection.run("load_setups", params)
        return [StoredSetup(*row) for row in await cursor.fetchall()]

    async def disable_endpoint(self, endpoint_id: int, reason: str) -> None:
        """Disable an endpoint that said it is gone."""
        params = {"id": endpoint_id, "reason": reason}
        await self._connection.run("disable_endpoint", params, lock="config_lock")


def _endpoint(row: tuple[Any, ...]) -> StoredEndpoint:
    keys = tuple(StoredKey(*key) for key in zip(*(c or () for c in row[7:]), strict=True))
    endpoint_id, org_id, url, headers_sealed, timeout_s, gone_disables, revision = row[:7]
    return StoredEndpoint(
        endpoint_id, org_id, url, headers_sealed, timeout_s, gone_disables, revision, keys
    )

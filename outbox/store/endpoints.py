"""Endpoints in the database: create, read, pause, resume, remove, rotate.

Promises: every change runs under the dispatch lock in one flight, bumps the endpoint's revision
(by which daemons notice) and leaves secrets sealed, bound to organization and row. What the
change means for deliveries follows in bounded batches (`deliveries.align`), each of which looks
at the state again; a command that was cut off is finished by running it again.

Connections come from `outbox.store.connect.connect(url, autocommit=True)`, which also translates
the driver's errors.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import psycopg

from outbox.errors import ConfigurationError, KeyMissing, NotFound, UsageError
from outbox.secrets import KeyRing, secret_context
from outbox.signature import (
    format_public_key,
    format_secret,
    generate_ed25519_seed,
    generate_hmac_secret,
    parse_private_key,
    parse_secret,
    public_key,
)
from outbox.store.attempts import StoredEndpoint, StoredKey
from outbox.store.deliveries import Aligned, align
from outbox.store.statements import statement
from outbox.store.subscriptions import (
    LIST_MAX,
    Rule,
    draw_ids,
    give_options,
    lane_of,
    rule_parameters,
)
from outbox.work import SigningKey

Connection = psycopg.Connection[tuple[Any, ...]]

CONCURRENCY_MAX = 100_000
RATE_PER_S_MAX = 1_000_000.0
TIMEOUT_MAX = timedelta(minutes=5)
DISABLE_AFTER_MIN = timedelta(minutes=1)
OVERLAP = timedelta(hours=24)
"""How long a rotated key goes on signing, unless told otherwise."""
OVERLAP_MAX = timedelta(days=365)
KEYS_MAX = 8
"""Keys of one endpoint that sign at the same time: each adds a signature to every request."""
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 24, 64
"""Standard Webhooks 1.0.0: a symmetric secret has 24 to 64 bytes."""


@dataclass(frozen=True, slots=True)
class EndpointSpec:
    """What `add_endpoint` creates: an endpoint and its first subscription.

    `org_id` None means all organizations, which only an operator may ask for. URL and header
    names are checked by the caller, with the egress guard and the webhook processor. `secret`
    is an existing `whsec_...` or `whsk_...` to take over; None draws a new one.
    """

    url: str
    org_id: str | None
    rule: Rule
    concurrency: int = 1000
    rate_per_s: float | None = None
    timeout: timedelta = timedelta(seconds=15)
    headers: Mapping[str, str] = field(default_factory=dict)
    signing: str = "hmac"
    gone_disables: bool = True
    circuit: bool = True
    disable_after: timedelta | None = timedelta(days=5)
    secret: str | None = None

    def __post_init__(self) -> None:
        if self.org_id is not None and not 1 <= len(self.org_id) <= 200:
            raise UsageError("an organization has 1 to 200 characters")
        if not 1 <= self.concurrency <= CONCURRENCY_MAX:
            raise UsageError(f"concurrency must lie between 1 and {CONCURRENCY_MAX}")
        if self.rate_per_s is not None and not 0 < self.rate_per_s <= RATE_PER_S_MAX:
            raise UsageError("the rate must be above zero and at most a million a second")
        if not timedelta() < self.timeout <= TIMEOUT_MAX:
            raise UsageError("the timeout must be above zero and at most 5m")
        if self.disable_after is not None and self.disable_after < DISABLE_AFTER_MIN:
            raise UsageError("disable-after is at least 1m, or never")


@dataclass(frozen=True, slots=True)
class AddedEndpoint:
    """A new endpoint. `secret` (`whsec_...`) is shown this once; `public_key` (`whpk_...`) stands
    in its place for ed25519."""

    id: int
    subscription_id: int
    url: str
    secret: str | None
    public_key: str | None


def add_endpoint(
    connection: Connection,
    spec: EndpointSpec,
    ring: KeyRing,
    *,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> AddedEndpoint:
    """Create endpoint, key and subscription.

    Raises UsageError for a bad filter or key, KeyMissing if the ring does not open what is stored.
    """
    _check_ring(connection, ring)
    key = signing_key(spec.signing, spec.secret, random_bytes)
    endpoint_id, secret_id, subscription_id = draw_ids(connection, 3)
    parameters = {
        "id": endpoint_id,
        "secret_id": secret_id,
        "subscription_id": subscription_id,
        "org_id": spec.org_id,
        "all_orgs": spec.org_id is None,
        "url": spec.url,
        "headers_sealed": seal_headers(ring, spec.org_id, endpoint_id, spec.headers),
        "concurrency": spec.concurrency,
        "rate_per_s": spec.rate_per_s,
        "timeout": spec.timeout,
        "gone_disables": spec.gone_disables,
        "circuit": spec.circuit,
        "disable_after": spec.disable_after,
        "key_kind": key.kind,
        "key_sealed": ring.seal(key.material, context=key_context(spec.org_id, secret_id)),
        **rule_parameters(connection, spec.rule),
    }
    with connection.pipeline():
        connection.execute(statement("config_lock"))
        connection.execute(statement("endpoint_add"), parameters)
        give_options(connection, subscription_id, spec.rule)
        connection.execute(statement("note_revisions"), lane_of(endpoint_id))
    return AddedEndpoint(endpoint_id, subscription_id, spec.url, *shown_key(key))


def list_endpoints(
    connection: Connection, org: str | None = None, *, removed: bool = False, after: int = 0
) -> list[dict[str, Any]]:
    """Endpoints in order of id, at most `LIST_MAX`, from ids above `after` on."""
    parameters = {"id": None, "org_id": org, "removed": removed, "after": after}
    rows = connection.execute(statement("endpoint_list"), parameters | {"rows_max": LIST_MAX})
    return [row[0] for row in rows]


def show_endpoint(connection: Connection, endpoint_id: int, org: str | None) -> dict[str, Any]:
    """One endpoint, removed ones too. Raises NotFound."""
    parameters = {"id": endpoint_id, "org_id": org, "removed": True, "after": -1, "rows_max": 1}
    row = connection.execute(statement("endpoint_list"), parameters).fetchone()
    if row is None:
        raise _unknown(endpoint_id)
    return dict(row[0])


def pause_endpoint(connection: Connection, endpoint_id: int, org: str | None = None) -> Changed:
    """Send nothing more; what is owed and what still comes is held. A disabled one stays so."""
    return _move(connection, endpoint_id, org, "paused", ("active",))


def resume_endpoint(connection: Connection, endpoint_id: int, org: str | None = None) -> Changed:
    """Send again, what was held included. Its maximum age stood still meanwhile."""
    return _move(connection, endpoint_id, org, "active", ("paused", "disabled"))


def remove_endpoint(connection: Connection, endpoint_id: int, org: str | None = None) -> Changed:
    """Remove endpoint and subscriptions, cancel what is owed, forget the secrets."""
    changed = _move(connection, endpoint_id, org, "removed", ("active", "paused", "disabled"))
    with connection.transaction():
        connection.execute(statement("endpoint_forget"), {"id": endpoint_id})
    return changed


@dataclass(frozen=True, slots=True)
class Changed:
    """The state before and after, and what became of deliveries."""

    was: str
    state: str
    deliveries: Aligned


def _move(
    connection: Connection, endpoint_id: int, org: str | None, state: str, sources: tuple[str, ...]
) -> Changed:
    parameters = {"id": endpoint_id, "org_id": org, "state": state, "from_states": list(sources)}
    with connection.pipeline():
        connection.execute(statement("config_lock"))
        cursor = connection.execute(statement("endpoint_state"), parameters | {"reason": None})
        connection.execute(statement("note_revisions"), lane_of(endpoint_id))
    row = cursor.fetchone()
    if row is None or (row[0] == "removed" and state != "removed"):
        raise _unknown(endpoint_id)
    return Changed(row[0], row[1], align(connection, endpoint_id))


def _unknown(endpoint_id: int) -> NotFound:
    return NotFound(f"there is no endpoint {endpoint_id}; see: outbox endpoints list")


@dataclass(frozen=True, slots=True)
class RotatedSecret:
    """A new key, shown this once, and when the old ones stop signing (ISO 8601)."""

    id: int
    secret: str | None
    public_key: str | None
    old_valid_until: str


def rotate_secret(
    connection: Connection,
    endpoint_id: int,
    ring: KeyRing,
    *,
    org: str | None = None,
    overlap: timedelta = OVERLAP,
    given: str | None = None,
    random_bytes: Callable[[int], bytes] = secrets.token_bytes,
) -> RotatedSecret:
    """Sign with a new key of the same kind; the old ones sign beside it for `overlap`."""
    if not timedelta() <= overlap <= OVERLAP_MAX:
        raise UsageError("the overlap must lie between 0s and 365d")
    _check_ring(connection, ring)
    stored = load_endpoint(connection, endpoint_id, org)
    kind = stored.keys[0].kind if stored.keys else "hmac"
    key = signing_key(kind, given, random_bytes)
    [secret_id] = draw_ids(connection, 1)
    sealed = ring.seal(key.material, context=key_context(stored.org_id, secret_id))
    parameters = {
        "id": endpoint_id,
        "org_id": org,
        "secret_id": secret_id,
        "kind": kind,
        "sealed": sealed,
        "overlap": overlap,
        "keys_max": KEYS_MAX,
    }
    with connection.pipeline():
        connection.execute(statement("config_lock"))
        cursor = connection.execute(statement("endpoint_rotate"), parameters)
    row = cursor.fetchone()
    if row is None:
        raise _unknown(endpoint_id)
    if not row[0]:
        raise UsageError(
            f"{KEYS_MAX} keys of endpoint {endpoint_id} still sign; wait until one expires,"
            " or rotate with --overlap 0s, which ends them now"
        )
    return RotatedSecret(endpoint_id, *shown_key(key), row[1].isoformat())


def _check_ring(connection: Connection, ring: KeyRing) -> None:
    """Raise KeyMissing for a ring that is not this installation's: no daemon could open what it
    seals. A value that was altered is not its fault."""
    row = connection.execute(statement("newest_secret")).fetchone()
    if row is None:
        return
    try:
        ring.open(row[2], context=key_context(row[0], row[1]))
    except KeyMissing:
        raise
    except ConfigurationError:
        return


def load_endpoint(connection: Connection, endpoint_id: int, org: str | None) -> StoredEndpoint:
    """The endpoint as a worker would load it, secrets sealed. Raises NotFound."""
    if show_endpoint(connection, endpoint_id, org)["state"] == "removed":
        raise _unknown(endpoint_id)
    with connection.cursor(binary=True) as cursor:
        row = cursor.execute(statement("load_endpoints"), {"ids": [endpoint_id]}).fetchone()
    if row is None:
        raise _unknown(endpoint_id)
    *fields, key_ids, kinds, sealed, expires_in_s = row
    keys = zip(key_ids or (), kinds or (), sealed or (), expires_in_s or (), strict=True)
    fields.append(tuple(StoredKey(*key) for key in keys))
    return StoredEndpoint(*fields)


def key_context(org_id: str | None, secret_id: int) -> str:
    """Where a signing key is sealed to."""
    return secret_context(org_id, str(secret_id), "secret")


def headers_context(org_id: str | None, endpoint_id: int) -> str:
    """Where the custom headers of an endpoint are sealed to."""
    return secret_context(org_id, str(endpoint_id), "headers", table="endpoint")


def seal_headers(
    ring: KeyRing, org_id: str | None, endpoint_id: int, headers: Mapping[str, str]
) -> bytes | None:
    """Custom headers as they are stored: a JSON object, sealed; None where there are none."""
    if not headers:
        return None
    text = json.dumps(dict(headers)).encode()
    return ring.seal(text, context=headers_context(org_id, endpoint_id))


def signing_key(kind: str, given: str | None, random_bytes: Callable[[int], bytes]) -> SigningKey:
    """The key an endpoint is to sign with: the one given, or a new one."""
    if kind == "hmac":
        material = generate_hmac_secret(random_bytes) if given is None else parse_secret(given)
        if not SECRET_BYTES_MIN <= len(material) <= SECRET_BYTES_MAX:
            raise UsageError(
                f"the webhook secret holds {len(material)} bytes;"
                f" it must hold {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX}"
            )
        return SigningKey(kind, material)
    if kind == "ed25519":
        seed = generate_ed25519_seed(random_bytes) if given is None else parse_private_key(given)
        return SigningKey(kind, seed)
    raise UsageError(f"signing is hmac or ed25519, not {kind!r}")


def shown_key(key: SigningKey) -> tuple[str | None, str | None]:
    """What a receiver needs to verify: (secret, None) or (None, public key)."""
    if key.kind == "hmac":
        return format_secret(key.material), None
    return None, format_public_key(public_key(key.material))

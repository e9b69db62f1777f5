"""`outbox endpoints`: where webhooks go, their keys, and a test that sends one now."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click

from outbox.commands.base import (
    Duration,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
    split_header,
    takes_settings,
)
from outbox.commands.rules import read_rule, rule_options
from outbox.commands.subscriptions import (
    ObjectId,
    after_option,
    aligned_fields,
    org_option,
    removed_option,
    say_more,
)
from outbox.durations import parse_duration
from outbox.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from outbox.outcome import Outcome
    from outbox.settings import Settings
    from outbox.store.endpoints import Changed
    from outbox.work import Endpoint, Work

_COLUMNS = ("id", "org", "url", "state", "events", "concurrency", "rate_per_s", "revision")
_RATE = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)/s", re.ASCII)
_egress = takes_settings(
    "secret_key", "egress_allow_cidrs", "egress_allow_http", "egress_ports", "ca_file"
)


@click.group()
def endpoints() -> None:
    """Add and manage webhook endpoints."""


def read_rate(text: str) -> float:
    """Read `50/s`. Raises UsageError."""
    match = _RATE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a rate; write for example 50/s or 0.5/s")
    return float(match[1])


def read_headers(texts: Sequence[str]) -> dict[str, str]:
    """Read `Name: value` or `Name: @file`. Raises UsageError, ConfigurationError."""
    headers: dict[str, str] = {}
    for text in texts:
        if not text.partition(":")[0].strip() or ":" not in text:
            raise UsageError("a --header is not of the form 'Name: value'")  # it may be secret
        name, value = split_header(text)
        if name.lower() in {known.lower() for known in headers}:
            raise UsageError(f"the header {name[:64]!r} is given twice")
        headers[name] = _secret_text(value)
    return headers


def _secret_text(text: str) -> str:
    from outbox.settings import read_secret_file

    return read_secret_file(Path(text[1:])) if text.startswith("@") else text


@endpoints.command()
@click.option("--org", metavar="ORG", help="The organization whose events go there.")
@click.option("--all-orgs", is_flag=True, help="Events of all organizations, and system-wide ones.")
@click.option("--url", required=True, help="Where to send: https, a public address.")
@rule_options
@click.option(
    "--concurrency",
    type=click.IntRange(1, 100_000),
    default=1000,
    show_default=True,
    help="Deliveries under way at the same time, at most.",
)
@click.option("--rate", metavar="N/s", help="Deliveries a second, at most.")
@click.option("--timeout", type=Duration(), default="15s", show_default=True, help="Of one try.")
@click.option(
    "--header", "header", multiple=True, metavar="'K: V'", help="Sent along; 'K: @file' reads it."
)
@click.option(
    "--signing",
    type=click.Choice(["hmac", "ed25519"]),
    default="hmac",
    show_default=True,
    help="Kind of key: a shared secret, or a key pair whose public half the receiver gets.",
)
@click.option(
    "--gone-disables/--no-gone-disables",
    default=True,
    show_default=True,
    help="Whether an answer of 410 disables the endpoint.",
)
@click.option(
    "--circuit/--no-circuit",
    default=True,
    show_default=True,
    help="Probe it when it has been down for 30s, instead of trying every delivery.",
)
@click.option(
    "--disable-after",
    metavar="DURATION|never",
    default="5d",
    show_default=True,
    help="Disable it when it has accepted nothing for so long; what is owed is held.",
)
@click.option("--secret", metavar="@FILE", help="Take over an existing whsec_ or whsk_ key.")
@_egress
@json_option
@pass_wiring
def add(
    wiring: Wiring,
    /,
    org: str | None,
    all_orgs: bool,
    url: str,
    concurrency: int,
    rate: str | None,
    timeout: timedelta,
    header: tuple[str, ...],
    signing: str,
    gone_disables: bool,
    circuit: bool,
    disable_after: str,
    secret: str | None,
    as_json: bool,
    **rule_given: Any,
) -> None:
    """Add an endpoint, its key and its first subscription. The secret is shown this once."""
    from outbox.store.connect import connect
    from outbox.store.endpoints import EndpointSpec, add_endpoint

    if (org is None) is not all_orgs:
        raise UsageError("give either --org or --all-orgs")
    spec = EndpointSpec(
        url=url,
        org_id=org,
        rule=read_rule(**rule_given),
        concurrency=concurrency,
        rate_per_s=None if rate is None else read_rate(rate),
        timeout=timeout,
        headers=read_headers(header),
        signing=signing,
        gone_disables=gone_disables,
        circuit=circuit,
        disable_after=None if disable_after == "never" else parse_duration(disable_after),
        secret=None if secret is None else _secret_text(secret),
    )
    wiring.check_headers(spec.headers)
    wiring.check_url(wiring.settings, url)
    ring = wiring.settings.key_ring()
    with connect(wiring.database, autocommit=True) as connection:
        added = add_endpoint(connection, spec, ring)
    _print_key(asdict(added), as_json)


def _print_key(fields: Mapping[str, object], as_json: bool) -> None:
    shown = {name: value for name, value in fields.items() if value is not None}
    if as_json:
        print_json(shown)
        return
    print_fields(shown)
    say(
        "keep the secret now: it is not shown again"
        if "secret" in shown
        else "the receiver verifies with the public key"
    )


@endpoints.command("list")
@org_option
@removed_option
@after_option
@json_option
@pass_wiring
def list_(wiring: Wiring, org: str | None, removed: bool, after: int, as_json: bool) -> None:
    """List endpoints, at most 1,000."""
    from outbox.store.connect import connect
    from outbox.store.endpoints import list_endpoints
    from outbox.store.subscriptions import LIST_MAX

    with connect(wiring.database, autocommit=True) as connection:
        rows = list_endpoints(connection, org, removed=removed, after=after)
    print_json(rows) if as_json else print_rows([_flat(row) for row in rows], _COLUMNS)
    say_more(rows, LIST_MAX, "--after")


def _flat(row: Mapping[str, Any]) -> dict[str, object]:
    """A row for a table: the types of all subscriptions in one cell."""
    types = (pattern for rule in row["subscriptions"] for pattern in rule["events"])
    return {**row, "org": "(all)" if row["all_orgs"] else row["org"], "events": sorted(set(types))}


@endpoints.command()
@click.argument("endpoint", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def show(wiring: Wiring, endpoint: int, org: str | None, as_json: bool) -> None:
    """Show one endpoint, its keys (not the secrets) and its subscriptions."""
    from outbox.store.connect import connect
    from outbox.store.endpoints import show_endpoint

    with connect(wiring.database, autocommit=True) as connection:
        fields = show_endpoint(connection, endpoint, org)
    if as_json:
        print_json(fields)
        return
    nested = {"keys", "subscriptions"}
    print_fields({name: value for name, value in fields.items() if name not in nested})
    click.echo()
    print_rows(fields["keys"], ("id", "kind", "created_at", "expires_at"))
    click.echo()
    columns = ("id", "events", "filter", "retry", "body", "order", "state")
    print_rows(fields["subscriptions"], columns)


def _change(wiring: Wiring, action: str, endpoint: int, org: str | None, as_json: bool) -> None:
    from outbox.store import endpoints as store
    from outbox.store.connect import connect

    actions: dict[str, Callable[..., Changed]] = {
        "pause": store.pause_endpoint,
        "resume": store.resume_endpoint,
        "remove": store.remove_endpoint,
    }
    with connect(wiring.database, autocommit=True) as connection:
        changed = actions[action](connection, endpoint, org)
    fields = {"id": endpoint, "was": changed.was, "state": changed.state}
    fields |= aligned_fields(changed.deliveries)
    print_json(fields) if as_json else print_fields(fields)


@endpoints.command()
@click.argument("endpoint", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def pause(wiring: Wiring, endpoint: int, org: str | None, as_json: bool) -> None:
    """Send nothing more; what is owed and what still comes is held."""
    _change(wiring, "pause", endpoint, org, as_json)


@endpoints.command()
@click.argument("endpoint", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def resume(wiring: Wiring, endpoint: int, org: str | None, as_json: bool) -> None:
    """Send again, what was held included; also after it was disabled."""
    _change(wiring, "resume", endpoint, org, as_json)


@endpoints.command()
@click.argument("endpoint", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def remove(wiring: Wiring, endpoint: int, org: str | None, as_json: bool) -> None:
    """Remove an endpoint and its subscriptions, cancel what is owed, forget its keys."""
    _change(wiring, "remove", endpoint, org, as_json)


@endpoints.command("rotate-secret")
@click.argument("endpoint", type=ObjectId, metavar="ID")
@click.option(
    "--overlap",
    type=Duration(),
    default="24h",
    show_default=True,
    help="How long the old key signs beside the new one.",
)
@click.option("--secret", metavar="@FILE", help="Take over an existing whsec_ or whsk_ key.")
@org_option
@takes_settings("secret_key")
@json_option
@pass_wiring
def rotate_secret(
    wiring: Wiring,
    endpoint: int,
    overlap: timedelta,
    secret: str | None,
    org: str | None,
    as_json: bool,
) -> None:
    """Sign with a new key. The new secret is shown this once."""
    from outbox.store.connect import connect
    from outbox.store.endpoints import rotate_secret as rotate

    ring = wiring.settings.key_ring()
    given = None if secret is None else _secret_text(secret)
    with connect(wiring.database, autocommit=True) as connection:
        rotated = rotate(connection, endpoint, ring, org=org, overlap=overlap, given=given)
    _print_key(asdict(rotated), as_json)


@endpoints.command("test")
@click.argument("endpoint", type=ObjectId, metavar="ID")
@org_option
@_egress
@takes_settings("instance")
@json_option
@pass_wiring
@click.pass_context
def test_endpoint(
    ctx: click.Context, wiring: Wiring, endpoint: int, org: str | None, as_json: bool
) -> None:
    """Send a signed outbox.test event now and print its outcome. Nothing is written down.

    A copied database sends nothing, this event neither, until it is adopted.
    """
    from outbox.addressbook import open_endpoint
    from outbox.store.connect import connect
    from outbox.store.endpoints import load_endpoint
    from outbox.store.identity import check_identity

    ring = wiring.settings.key_ring()
    with connect(wiring.database, autocommit=True) as connection:
        check_identity(connection, wiring.settings.instance)
        stored = load_endpoint(connection, endpoint, org)
    work = _test_work(open_endpoint(stored, ring))
    outcome = asyncio.run(_send(wiring, wiring.settings, work))
    fields = _outcome_fields(endpoint, outcome)
    print_json(fields) if as_json else print_fields(fields)
    if not fields["delivered"]:
        ctx.exit(1)


def _test_work(endpoint: Endpoint) -> Work:
    from outbox.work import Work

    return Work(
        delivery_id=uuid4(),
        event_id=0,
        type="outbox.test",
        occurred_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        payload=b'{"message":"A test, sent by outbox endpoints test."}',
        attempt=1,
        body_format=1,
        endpoint=endpoint,
        org_id=endpoint.org_id,
    )


async def _send(wiring: Wiring, settings: Settings, work: Work) -> Outcome:
    async with wiring.open_processors(settings) as processors:
        processor = processors.get("webhook")
        if processor is None:
            raise ConfigurationError("this installation has no webhook processor")
        until = asyncio.get_running_loop().time() + work.destination.timeout.total_seconds()
        return await processor(work, until)


def _outcome_fields(endpoint: int, outcome: Outcome) -> dict[str, object]:
    detail = outcome.detail
    return {
        "id": endpoint,
        "delivered": outcome.kind == "delivered",
        "outcome": str(outcome.kind),
        "reason": outcome.reason,
        "status": detail.get("status"),
        "duration_ms": detail.get("duration_ms"),
        "error": detail.get("error"),
        "response": detail.get("response"),
    }

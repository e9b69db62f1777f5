"""`outbox deliveries`: what is owed, the story of one delivery, and calling it off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
)
from outbox.commands.subscriptions import ObjectId, org_option, say_more
from outbox.errors import NotFound, OutboxError

ROWS_MAX = 10_000
_COLUMNS = (
    "id",
    "state",
    "due_at",
    "event",
    "org",
    "endpoint",
    "attempts",
    "budget",
    "held_reason",
)
_STORY = ("at", "fact", "budget", "attempt", "charged", "reason", "due_at", "detail")


@click.group()
def deliveries() -> None:
    """List, show and cancel deliveries."""


@deliveries.command("list")
@org_option
@click.option("--endpoint", type=ObjectId, metavar="ID", help="Only to this endpoint.")
@click.option("--subscription", type=ObjectId, metavar="ID", help="Only of this subscription.")
@click.option("--state", type=click.Choice(["scheduled", "leased", "held"]), help="Only these.")
@click.option("--before", type=click.UUID, metavar="ID", help="Begin below this id.")
@click.option(
    "--limit", type=click.IntRange(1, ROWS_MAX), default=100, show_default=True, help="Rows."
)
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    org: str | None,
    endpoint: int | None,
    subscription: int | None,
    state: str | None,
    before: UUID | None,
    limit: int,
    as_json: bool,
) -> None:
    """List live deliveries, newest first."""
    from outbox.store.connect import connect
    from outbox.store.deliveries import list_deliveries

    with connect(wiring.database, autocommit=True) as connection:
        rows = list_deliveries(
            connection,
            org,
            endpoint_id=endpoint,
            subscription_id=subscription,
            state=state,
            before=before,
            rows_max=limit,
        )
    empty = "no live delivery; finished ones: outbox events list, outbox events show ID"
    print_json(rows) if as_json else print_rows(rows, _COLUMNS, empty=empty)
    say_more(rows, limit, "--before")


@deliveries.command()
@click.argument("delivery", type=click.UUID, metavar="ID")
@org_option
@json_option
@pass_wiring
def show(wiring: Wiring, delivery: UUID, org: str | None, as_json: bool) -> None:
    """Show one delivery, also a dead or finished one, with its story."""
    from outbox.store.connect import connect
    from outbox.store.deliveries import show_delivery

    with connect(wiring.database, autocommit=True) as connection:
        fields = show_delivery(connection, delivery, org)
    print_json(fields) if as_json else print_story(fields)


def print_story(fields: Mapping[str, Any]) -> None:
    """Print a delivery for people: what it is, then what happened."""
    print_fields({name: value for name, value in fields.items() if name != "journal"})
    click.echo()
    facts = [dict(fact) for fact in fields["journal"]]
    for fact in facts:
        if fact.get("detail") is not None:
            fact["detail"] = json.dumps(fact["detail"], ensure_ascii=False)
    print_rows(facts, _STORY)


@deliveries.command()
@click.argument("ids", type=click.UUID, nargs=-1, required=True, metavar="ID...")
@click.option("--reason", default="operator", show_default=True, help="The journal keeps it.")
@org_option
@json_option
@pass_wiring
def cancel(
    wiring: Wiring, ids: tuple[UUID, ...], reason: str, org: str | None, as_json: bool
) -> None:
    """Call off live deliveries. What is being sent at this moment may still arrive."""
    from outbox.store.connect import connect
    from outbox.store.deliveries import cancel_deliveries

    with connect(wiring.database, autocommit=True) as connection:
        done = cancel_deliveries(connection, ids, org, reason=reason)
    fields = {"cancelled": done.cancelled, "ended": done.ended, "unknown": done.unknown}
    print_json(fields) if as_json else print_fields({k: len(v) for k, v in fields.items()})
    if done.cancelled:
        return
    if not done.ended:
        raise NotFound("there is no such delivery, or its history is past retention")
    raise OutboxError("nothing was cancelled: these deliveries have ended already")

"""`outbox deliveries`: what is owed, the story of one delivery, calling it off and moving it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import click

from outbox.commands.base import (
    Duration,
    Moment,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
)
from outbox.commands.story import lines
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
_ASIDE = frozenset(
    "due_at lease_until started_at progress held_reason held_at expires_at reason died_at".split()
)
"""Left out where empty."""


@click.group()
def deliveries() -> None:
    """List, show, cancel and reschedule deliveries."""


@deliveries.command("list")
@org_option
@click.option("--endpoint", type=ObjectId, metavar="ID", help="Only to this endpoint.")
@click.option("--subscription", type=ObjectId, metavar="ID", help="Only of this subscription.")
@click.option("--state", type=click.Choice(["scheduled", "leased", "held"]), help="Only these.")
@click.option("--tag", metavar="TAG", help="Only of subscriptions with this tag.")
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
    tag: str | None,
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
            tag=tag,
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
    apart = {name for name, value in fields.items() if name in _ASIDE and value is None}
    print_fields({k: v for k, v in fields.items() if k not in apart and k != "journal"})
    click.echo()
    for line in lines(fields):
        click.echo(line)


@deliveries.command()
@click.argument("ids", type=click.UUID, nargs=-1, required=True, metavar="ID...")
@click.option("--at", type=Moment(), help="Due then.")
@click.option("--in", "wait", type=Duration(), help="Due that long from now; 0s is now.")
@org_option
@json_option
@pass_wiring
def reschedule(
    wiring: Wiring,
    ids: tuple[UUID, ...],
    at: datetime | None,
    wait: timedelta | None,
    org: str | None,
    as_json: bool,
) -> None:
    """Move the due time of deliveries that wait, sooner or later."""
    from outbox.store.connect import connect
    from outbox.store.deliveries import reschedule_deliveries

    with connect(wiring.database, autocommit=True) as connection:
        done = reschedule_deliveries(connection, ids, org, at=at, wait=wait)
    fields = {
        "rescheduled": done.rescheduled,
        "running": done.running,
        "ended": done.ended,
        "unknown": done.unknown,
    }
    print_json(fields) if as_json else print_fields({k: len(v) for k, v in fields.items()})
    if done.rescheduled:
        return
    if done.running:
        raise OutboxError("nothing was rescheduled: a worker has these deliveries at this moment")
    if done.ended:
        raise OutboxError("nothing was rescheduled: these deliveries have ended already")
    raise NotFound("there is no such delivery, or its history is past retention")


@deliveries.command()
@click.argument("ids", type=click.UUID, nargs=-1, required=True, metavar="ID...")
@click.option("--reason", default="operator", show_default=True, help="The journal keeps it.")
@org_option
@json_option
@pass_wiring
def cancel(
    wiring: Wiring, ids: tuple[UUID, ...], reason: str, org: str | None, as_json: bool
) -> None:
    """Call off live deliveries. An attempt that runs is told to stop within seconds; what it has
    sent by then may still arrive."""
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

"""`outbox events`: what happened, newest first, and what became of one event."""

from __future__ import annotations

from datetime import datetime

import click

from outbox.commands.base import (
    Moment,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
)
from outbox.commands.subscriptions import ObjectId, org_option, say_more

ROWS_MAX = 10_000
_COLUMNS = ("id", "created_at", "type", "org", "subject", "bytes", "pending")
_STORY = ("at", "fact", "delivery", "subscription", "budget", "attempt", "reason", "due_at")


@click.group()
def events() -> None:
    """List and show events."""


@events.command("list")
@click.option("--type", "types", metavar="TYPE,..", help="Only these: exact, orders.* or *.")
@org_option
@click.option("--subject", help="Only events about this, such as orders/42.")
@click.option("--since", type=Moment(), help="Only events since then.")
@click.option("--until", type=Moment(), help="Only events before then.")
@click.option("--before", type=ObjectId, metavar="ID", help="Begin below this id.")
@click.option(
    "--limit", type=click.IntRange(1, ROWS_MAX), default=100, show_default=True, help="Rows."
)
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    types: str | None,
    org: str | None,
    subject: str | None,
    since: datetime | None,
    until: datetime | None,
    before: int | None,
    limit: int,
    as_json: bool,
) -> None:
    """List events, newest first, without their payloads."""
    from outbox.store.connect import connect
    from outbox.store.events import EventFilter, list_events
    from outbox.store.subscriptions import parse_patterns

    patterns = None if types is None else parse_patterns(types)
    wanted = EventFilter(patterns, org, subject, since, until, before)
    with connect(wiring.database, autocommit=True) as connection:
        rows = list_events(connection, wanted, rows_max=limit)
    print_json(rows) if as_json else print_rows(rows, _COLUMNS)
    say_more(rows, limit, "--before")


@events.command()
@click.argument("event", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def show(wiring: Wiring, event: int, org: str | None, as_json: bool) -> None:
    """Show one event, its payload and what became of it."""
    from outbox.store.connect import connect
    from outbox.store.events import show_event

    with connect(wiring.database, autocommit=True) as connection:
        fields = show_event(connection, event, org)
    if as_json:
        print_json(fields)
        return
    print_fields(
        {k: v for k, v in fields.items() if k not in {"journal", "payload", "payload_text"}}
    )
    click.echo()
    click.echo(fields["payload_text"])
    click.echo()
    print_rows(fields["journal"], _STORY)

"""`outbox events`: what happened, newest first or as it comes, and what became of one event."""

from __future__ import annotations

import io
import json
import select
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import click

from outbox.commands.base import (
    Moment,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
)
from outbox.commands.redact import redact
from outbox.commands.subscriptions import ObjectId, org_option, say_more
from outbox.errors import UsageError

ROWS_MAX = 10_000
_COLUMNS = ("id", "created_at", "type", "org", "subject", "bytes", "pending")
_DELIVERIES = ("id", "subscription", "endpoint", "state", "attempts", "reason", "due_at")
_STORY = ("at", "fact", "delivery", "subscription", "budget", "attempt", "reason", "due_at")


@click.group()
def events() -> None:
    """List, show, follow and redact events."""


events.add_command(redact)


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
    apart = {"journal", "deliveries", "payload", "payload_text"}
    print_fields({k: v for k, v in fields.items() if k not in apart})
    click.echo()
    click.echo(fields["payload_text"])
    if fields["deliveries"]:
        click.echo()
        print_rows(fields["deliveries"], _DELIVERIES)
    click.echo()
    print_rows(fields["journal"], _STORY, empty="not routed yet")


@events.command()
@click.option("--type", "types", metavar="TYPE,..", help="Only these: exact, orders.* or *.")
@org_option
@click.option(
    "--last", type=click.IntRange(0, 1000), default=0, help="Show so many of before first."
)
@click.option("--since", type=Moment(), help="Show those since then first.")
@click.option("--payload", is_flag=True, help="Show payloads too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
@pass_wiring
def tail(
    wiring: Wiring,
    types: str | None,
    org: str | None,
    last: int,
    since: datetime | None,
    payload: bool,
    as_json: bool,
) -> None:
    """Follow new events until Ctrl-C: id, time, type, organization, subject.

    Events come in the order in which they are committed, so a lower id may come after a higher one.
    """
    from outbox.store.subscriptions import parse_patterns
    from outbox.store.tail import Wanted, follow

    if last and since is not None:
        raise UsageError("--last and --since exclude each other")
    patterns = None if types is None else parse_patterns(types)
    wanted = Wanted(patterns, org, since, last, payload)
    try:
        for event in follow(wiring.database, wanted, wait=_wait, say=say):
            click.echo(_document(event) if as_json else _line(event))
    except KeyboardInterrupt:
        return  # this is how it ends


def _line(event: Mapping[str, Any]) -> str:
    names = ("id", "created_at", "type", "org", "subject")
    cells = ["-" if event[name] is None else str(event[name]) for name in names]
    if event["payload"] is not None:
        cells.append(event["payload"])
    # One event is one line, whatever stands in it.
    return "".join(c if c.isprintable() else " " for c in "  ".join(cells))


def _document(event: Mapping[str, Any]) -> str:
    """The payload as it is stored, to the last digit; between its tokens a line may break."""
    text = json.dumps({name: value for name, value in event.items() if name != "payload"})
    if event["payload"] is None:
        return text
    payload = event["payload"].replace("\r", " ").replace("\n", " ")
    return f'{text[:-1]}, "payload": {payload}}}'


def _wait(seconds: float) -> None:
    """Sleep; raise BrokenPipeError as soon as whoever reads our output has left."""
    try:
        poller = select.poll()
        poller.register(sys.stdout.fileno(), 0)
    except (AttributeError, OSError, io.UnsupportedOperation):
        time.sleep(seconds)
        return
    for _, happened in poller.poll(seconds * 1000):
        if happened & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        time.sleep(seconds)

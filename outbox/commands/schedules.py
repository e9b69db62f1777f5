"""`outbox schedules`: events that come by the clock."""

from __future__ import annotations

from typing import Any

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
)
from outbox.commands.subscriptions import org_option

_COLUMNS = ("name", "cron", "timezone", "type", "org", "missed", "state", "next_at", "last_at")


@click.group()
def schedules() -> None:
    """Emit events by the clock: add and manage schedules."""


@schedules.command()
@click.argument("name")
@click.option(
    "--cron",
    required=True,
    metavar="EXPR",
    help="Minute, hour, day, month, weekday: '0 9 * * 1-5'.",
)
@click.option(
    "--timezone", default="UTC", show_default=True, metavar="ZONE", help="As in Europe/Berlin."
)
@click.option("--type", "event_type", required=True, metavar="TYPE", help="Of the event.")
@click.option("--org", metavar="ORG", help="The event's organization.  [default: none]")
@click.option("--payload", metavar="JSON", help="Goes along as the payload's data.")
@click.option(
    "--missed",
    type=click.Choice(["skip", "one", "all"]),
    default="skip",
    show_default=True,
    help="Ticks that nobody emitted within a minute: none of them, the last, each.",
)
@json_option
@pass_wiring
def add(
    wiring: Wiring,
    name: str,
    cron: str,
    timezone: str,
    event_type: str,
    org: str | None,
    payload: str | None,
    missed: str,
    as_json: bool,
) -> None:
    """Add a schedule. Each tick is one event, however many daemons run."""
    from outbox.store.connect import connect
    from outbox.store.schedules import ScheduleSpec, add_schedule

    spec = ScheduleSpec(name, cron, timezone, event_type, org, payload, missed)
    with connect(wiring.database, autocommit=True) as connection:
        _print(add_schedule(connection, spec), as_json)


def _print(fields: dict[str, Any], as_json: bool) -> None:
    print_json(fields) if as_json else print_fields(fields)


@schedules.command("list")
@org_option
@json_option
@pass_wiring
def list_(wiring: Wiring, org: str | None, as_json: bool) -> None:
    """List schedules by name."""
    from outbox.store.connect import connect
    from outbox.store.schedules import list_schedules

    with connect(wiring.database, autocommit=True) as connection:
        rows = list_schedules(connection, org)
    print_json(rows) if as_json else print_rows(rows, _COLUMNS)


@schedules.command()
@click.argument("name")
@json_option
@pass_wiring
def show(wiring: Wiring, name: str, as_json: bool) -> None:
    """Show one schedule and its next ticks."""
    from outbox.store.connect import connect
    from outbox.store.schedules import show_schedule

    with connect(wiring.database, autocommit=True) as connection:
        _print(show_schedule(connection, name), as_json)


@schedules.command()
@click.argument("name")
@json_option
@pass_wiring
def pause(wiring: Wiring, name: str, as_json: bool) -> None:
    """Emit nothing until it is resumed."""
    from outbox.store.connect import connect
    from outbox.store.schedules import pause_schedule

    with connect(wiring.database, autocommit=True) as connection:
        _print(pause_schedule(connection, name), as_json)


@schedules.command()
@click.argument("name")
@json_option
@pass_wiring
def resume(wiring: Wiring, name: str, as_json: bool) -> None:
    """Emit again from the next tick on; those of the pause stay out."""
    from outbox.store.connect import connect
    from outbox.store.schedules import resume_schedule

    with connect(wiring.database, autocommit=True) as connection:
        _print(resume_schedule(connection, name), as_json)


@schedules.command()
@click.argument("name")
@json_option
@pass_wiring
def remove(wiring: Wiring, name: str, as_json: bool) -> None:
    """Remove a schedule; the events that it emitted stay."""
    from outbox.store.connect import connect
    from outbox.store.schedules import remove_schedule

    with connect(wiring.database, autocommit=True) as connection:
        remove_schedule(connection, name)
    _print({"name": name, "state": "removed"}, as_json)

"""`outbox emails` and `outbox suppressions`: what was sent to whom, and who is sent nothing."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, BinaryIO
from uuid import UUID

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
from outbox.commands.subscriptions import org_option
from outbox.errors import UsageError
from outbox.recipients import Recipient

if TYPE_CHECKING:
    from collections.abc import Sequence

REPORT_BYTES_MAX = 10 * 1024 * 1024
_COLUMNS = ("frozen_at", "delivery", "event", "org", "recipients", "states", "bytes")
_PEOPLE = ("address", "state", "attempts", "reply")
_SUPPRESSED = ("org", "address", "reason", "created_at")

owner_option = click.option(
    "--org", metavar="ORG", help="The organization; without it, system-wide e-mail."
)


@click.group()
def emails() -> None:
    """Look at e-mail: what was sent to whom, and what became of it."""


@emails.command("list")
@org_option
@click.option(
    "--state",
    type=click.Choice([str(state) for state in Recipient]),
    help="Only those with a recipient in this state.",
)
@click.option("--address", metavar="ADDRESS", help="Only those to this address.")
@click.option("--before", type=Moment(), help="Only those frozen before this time.")
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="At most so many."
)
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    org: str | None,
    state: str | None,
    address: str | None,
    before: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List e-mails, newest first."""
    from outbox.store.connect import connect
    from outbox.store.emails import list_emails

    with connect(wiring.database, autocommit=True) as connection:
        found = list_emails(
            connection, org, state=state, address=address, before=before, rows_max=limit
        )
    print_json(found) if as_json else print_rows([_row(one) for one in found], _COLUMNS)
    if len(found) >= limit:
        say(f"there may be more: add --before {found[-1]['frozen_at']}")


def _row(one: dict[str, Any]) -> dict[str, object]:
    people: Sequence[dict[str, Any]] = one["recipients"] or []
    states = sorted({person["state"] for person in people})
    return {**one, "recipients": [p["address"] for p in people[:3]], "states": states}


@emails.command()
@click.argument("delivery", type=click.UUID, metavar="DELIVERY")
@org_option
@click.option("--mime", is_flag=True, help="Print the message itself, as it is sent.")
@json_option
@pass_wiring
def show(wiring: Wiring, delivery: UUID, org: str | None, mime: bool, as_json: bool) -> None:
    """Show one e-mail with its recipients."""
    from outbox.store.connect import connect
    from outbox.store.emails import email_mime, show_email

    with connect(wiring.database, autocommit=True) as connection:
        if mime:
            click.echo(email_mime(connection, delivery, org), nl=False)
            return
        found = show_email(connection, delivery, org)
    if as_json:
        print_json(found)
        return
    print_fields({name: value for name, value in found.items() if name != "recipients"})
    click.echo()
    print_rows(found["recipients"] or [], _PEOPLE)


@emails.command()
@click.argument("file", type=click.File("rb"), metavar="FILE|-")
@org_option
@json_option
@pass_wiring
def bounce(wiring: Wiring, file: BinaryIO, org: str | None, as_json: bool) -> None:
    """Take in what a mail server or a provider reports.

    FILE is a delivery status notification (RFC 3464) or a feedback report as a mail server pipes
    it, or JSON events of type bounced, complained or delivered.
    """
    from outbox.bounces import read_reports
    from outbox.store.connect import connect
    from outbox.store.emails import note_reports

    data = file.read(REPORT_BYTES_MAX + 1)
    if len(data) > REPORT_BYTES_MAX:
        raise UsageError(f"a report has at most {REPORT_BYTES_MAX} bytes")
    reports = read_reports(data)
    with connect(wiring.database, autocommit=True) as connection:
        noted = note_reports(connection, reports, org)
    fields = {"reports": noted.reports, "known": noted.known, "changed": noted.changed}
    print_json(fields) if as_json else print_fields(fields)


@click.group()
def suppressions() -> None:
    """Addresses that an organization sends no e-mail to."""


@suppressions.command()
@click.argument("address")
@owner_option
@click.option("--reason", default="manual", show_default=True, help="Why, in a few words.")
@json_option
@pass_wiring
def add(wiring: Wiring, address: str, org: str | None, reason: str, as_json: bool) -> None:
    """Send nothing to an address any more."""
    from outbox.store.connect import connect
    from outbox.store.emails import add_suppression

    if not _looks_right(address):
        raise UsageError(f"{address!r} is not an address; write for example someone@example.com")
    if not 1 <= len(reason) <= 200 or not reason.isprintable():
        raise UsageError("say why in 1 to 200 characters")
    with connect(wiring.database, autocommit=True) as connection:
        new = add_suppression(connection, address, org, reason)
    fields = {"address": address.lower(), "org": org, "added": new}
    print_json(fields) if as_json else print_fields(fields)


def _looks_right(address: str) -> bool:
    local, at, domain = address.rpartition("@")
    plain = address.isprintable() and not any(c.isspace() or c in "<>," for c in address)
    return bool(local and at and domain) and plain and len(address) <= 254


@suppressions.command("list")
@org_option
@click.option("--after", metavar="ADDRESS", help="Begin behind this address (with --org).")
@json_option
@pass_wiring
def list_suppressed(wiring: Wiring, org: str | None, after: str | None, as_json: bool) -> None:
    """List suppressed addresses, at most 1,000."""
    from outbox.store.connect import connect
    from outbox.store.emails import LIST_MAX, list_suppressions

    if after is not None and org is None:
        raise UsageError("--after needs --org")
    with connect(wiring.database, autocommit=True) as connection:
        found = list_suppressions(
            connection, org, after=None if after is None else (org, after.lower())
        )
    print_json(found) if as_json else print_rows(found, _SUPPRESSED)
    if len(found) >= LIST_MAX:
        say(f"there may be more: add --org {found[-1]['org']} --after {found[-1]['address']}")


@suppressions.command()
@click.argument("address")
@owner_option
@json_option
@pass_wiring
def remove(wiring: Wiring, address: str, org: str | None, as_json: bool) -> None:
    """Send to an address again."""
    from outbox.store.connect import connect
    from outbox.store.emails import remove_suppression

    with connect(wiring.database, autocommit=True) as connection:
        remove_suppression(connection, address, org)
    fields = {"address": address.lower(), "org": org, "removed": True}
    print_json(fields) if as_json else print_fields(fields)

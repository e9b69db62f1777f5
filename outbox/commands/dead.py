"""`outbox dead`: dead letters, why they died, and what to do with them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from outbox.commands.base import (
    Moment,
    PerSecond,
    Preview,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
)
from outbox.commands.deliveries import print_story
from outbox.commands.subscriptions import ObjectId, org_option
from outbox.errors import NotFound, OutboxError, UsageError

if TYPE_CHECKING:
    from outbox.store.dead import Pace, Selection
    from outbox.store.deliveries import Connection

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ROWS_MAX = 10_000
_ROWS = ("id", "died_at", "reason", "type", "org", "endpoint", "attempts", "budget")
_REASONS = ("reason", "endpoint", "n", "oldest_died_at", "newest_died_at")
_endpoint = click.option("--endpoint", type=ObjectId, metavar="ID", help="Only of this endpoint.")
_DIED_OF = "Only those that died of this, such as http_500."
_died_of = click.option("--died-of", metavar="REASON", help=_DIED_OF)
# Not called --reason: discard asks for one of its own, and the two would be mixed up.
_reason = click.option("--died-of", "reason", metavar="REASON", help=_DIED_OF)
_since = click.option("--since", type=Moment(), help="Only those that died since.")
_until = click.option("--until", type=Moment(), help="Only those that died before then.")
_types = click.option("--type", "types", metavar="TYPE,..", help="Only of these events: orders.*.")
_subject = click.option("--subject", help="Only of events about this, such as orders/42.")


@click.group()
def dead() -> None:
    """List, show, redrive and discard dead letters."""


@dead.command("list")
@org_option
@_endpoint
@_reason
@_types
@_subject
@_since
@_until
@click.option(
    "--limit", type=click.IntRange(1, ROWS_MAX), default=100, show_default=True, help="Rows."
)
@click.option("--by-reason", is_flag=True, help="Only the summary by reason and endpoint.")
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    org: str | None,
    endpoint: int | None,
    reason: str | None,
    types: str | None,
    subject: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int,
    by_reason: bool,
    as_json: bool,
) -> None:
    """List dead letters: by reason, then one by one, newest first.

    With --json an array of dead letters, with --by-reason one of reasons.
    """
    from outbox.store.connect import connect
    from outbox.store.dead import Selection, dead_reasons, list_dead

    patterns = _patterns(types)
    selection = Selection(None, org, endpoint, reason, since, until, patterns, subject)
    with connect(wiring.database, autocommit=True) as connection:
        reasons = dead_reasons(connection, selection) if by_reason or not as_json else []
        rows = [] if by_reason else list_dead(connection, selection, rows_max=limit)
    if as_json:
        print_json(reasons if by_reason else rows)
        return
    print_rows(reasons, _REASONS)
    if rows:
        click.echo()
        print_rows(rows, _ROWS)
    if len(rows) >= limit:
        say("there may be more: raise --limit, or choose with --died-of, --endpoint or --since")


@dead.command()
@click.argument("delivery", type=click.UUID, metavar="ID")
@org_option
@click.option("--body", "body_alone", is_flag=True, help="Write the request's body and no more.")
@json_option
@pass_wiring
def show(wiring: Wiring, delivery: UUID, org: str | None, body_alone: bool, as_json: bool) -> None:
    """Show one dead letter: its whole journal, and the request that a redrive would send.

    The body is the same to the byte; values of custom headers and the signature are masked.
    """
    from outbox.store.connect import connect
    from outbox.store.deliveries import show_delivery

    with connect(wiring.database, autocommit=True) as connection:
        fields = show_delivery(connection, delivery, org)
        if fields["state"] != "dead":
            raise NotFound(f"delivery {delivery} is {fields['state']}, not dead; see: "
                           f"outbox deliveries show {delivery}")  # fmt: skip
        request = _request(wiring, connection, delivery, org)
    if body_alone:
        _write_body(request)
    elif as_json:
        print_json(fields | {"request": None if request is None else _request_fields(request)})
    else:
        print_story(fields)
        _print_request(request)


def _request(
    wiring: Wiring, connection: Connection, delivery: UUID, org: str | None
) -> Preview | None:
    """The request that would be sent; None where none would be: the destination is removed, or is
    no webhook."""
    from outbox.addressbook import open_endpoint
    from outbox.attempt import work_of
    from outbox.secrets import KeyRing
    from outbox.store.dead import letter_as_taken
    from outbox.store.endpoints import load_endpoint

    taken = letter_as_taken(connection, delivery, org)
    if taken.kind != "webhook" or taken.endpoint_id is None:
        return None
    try:
        stored = replace(load_endpoint(connection, taken.endpoint_id, None), keys=())
    except NotFound:
        return None
    settings = wiring.settings
    if not settings.secret_key:
        if stored.headers_sealed is not None:
            say("custom headers are left out: OUTBOX_SECRET_KEY, which opens them, is not set")
        stored = replace(stored, headers_sealed=None)
    ring = settings.key_ring() if settings.secret_key else KeyRing([bytes(32)])
    return wiring.preview(settings, work_of(taken, open_endpoint(stored, ring)))


def _request_fields(request: Preview) -> dict[str, object]:
    return {
        "method": request.method,
        "url": request.url,
        "headers": [list(header) for header in request.headers],
        "body": request.body.decode(),
        "refused": request.refused,
    }


def _print_request(request: Preview | None) -> None:
    click.echo()
    if request is None:
        say("no request would be sent: the destination is removed or is no webhook")
        return
    if request.refused is not None:
        say(f"this request would be refused: {request.refused}")
    click.echo(f"{request.method} {request.url}")
    for name, value in request.headers:
        click.echo(f"{name}: {value}")
    click.echo()
    _write_body(request)
    click.echo()


def _write_body(request: Preview | None) -> None:
    if request is None:
        raise OutboxError("no request would be sent: the destination is removed or is no webhook")
    click.echo(request.body, nl=False)


def _selects(command: Decorated) -> Decorated:
    """The ways to choose dead letters that redrive and discard share."""
    ids = click.argument("ids", type=click.UUID, nargs=-1, metavar="[ID]...")
    everything = click.option("--all", "everything", is_flag=True, help="Every dead letter.")
    dry_run = click.option("--dry-run", is_flag=True, help="Count alone, change nothing.")
    chosen = (_until, _since, _subject, _types, org_option, _endpoint)
    for option in (json_option, dry_run, everything, *chosen, ids):
        command = option(command)
    return command


def _patterns(types: str | None) -> tuple[str, ...] | None:
    from outbox.store.subscriptions import parse_patterns

    return None if types is None else parse_patterns(types)


def _selection(
    ids: Sequence[UUID],
    org: str | None,
    endpoint: int | None,
    reason: str | None,
    since: datetime | None,
    until: datetime | None,
    types: str | None,
    subject: str | None,
    *,
    everything: bool,
) -> Selection:
    """What was chosen; nothing chosen is a mistake, not everything."""
    from outbox.store.dead import Selection

    conditions = [org, endpoint, reason, since, until, types, subject]
    if not ids and not everything and all(value is None for value in conditions):
        raise UsageError(
            "say which: ids, --endpoint, --org, --type, --subject, --died-of, --since, --until or"
            " --all"
        )
    if everything and ids:
        raise UsageError("--all and ids exclude each other")
    patterns = _patterns(types)
    return Selection(list(ids) or None, org, endpoint, reason, since, until, patterns, subject)


@dead.command()
@_selects
@_reason
@click.option(
    "--ignore-expiry", is_flag=True, help="Redrive what is past its expiry too, without one."
)
@click.option("--rate", type=PerSecond(), metavar="N/s", help="At most so many a second.")
@pass_wiring
def redrive(
    wiring: Wiring,
    ids: tuple[UUID, ...],
    endpoint: int | None,
    org: str | None,
    everything: bool,
    reason: str | None,
    types: str | None,
    subject: str | None,
    since: datetime | None,
    until: datetime | None,
    rate: float | None,
    ignore_expiry: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give dead letters a fresh budget of attempts, due now, behind fresh deliveries and retries.

    Letters past their expiry need --ignore-expiry; those of removed destinations stay dead. Cut
    off, run it again: what is redriven is no dead letter any more.
    """
    from outbox.store import dead as store
    from outbox.store.connect import connect

    selection = _selection(
        ids, org, endpoint, reason, since, until, types, subject, everything=everything
    )
    with connect(wiring.database, autocommit=True) as connection:
        done = store.redrive(
            connection,
            selection,
            ignore_expiry=ignore_expiry,
            dry_run=dry_run,
            pace=_pace(rate),
        )
    fields = asdict(done) | {"dry_run": dry_run}
    print_json(fields) if as_json else print_fields(fields)
    if ids and not done.redriven:
        _refused(done.unknown == len(set(ids)), "redriven")


def _pace(rate: float | None) -> Pace:
    """As asked for; a person at a terminal sees how far it is."""
    from outbox.store.dead import Pace

    if not sys.stderr.isatty():
        return Pace(rate)
    return Pace(rate, lambda done: click.echo(f"\rredriven {done}", nl=False, err=True))


@dead.command()
@_selects
@_died_of
@click.option("--reason", "why", metavar="TEXT", help="Why, required; the journal keeps it.")
@pass_wiring
def discard(
    wiring: Wiring,
    ids: tuple[UUID, ...],
    endpoint: int | None,
    org: str | None,
    everything: bool,
    died_of: str | None,
    types: str | None,
    subject: str | None,
    since: datetime | None,
    until: datetime | None,
    why: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give dead letters up for good."""
    from outbox.store import dead as store
    from outbox.store.connect import connect

    selection = _selection(
        ids, org, endpoint, died_of, since, until, types, subject, everything=everything
    )
    if why is None and not dry_run:
        raise UsageError("say why with --reason TEXT; the journal keeps it")
    with connect(wiring.database, autocommit=True) as connection:
        done = store.discard(connection, selection, why or "dry run", dry_run=dry_run)
    fields = asdict(done) | {"dry_run": dry_run}
    print_json(fields) if as_json else print_fields(fields)
    if ids and not done.discarded:
        _refused(True, "discarded")


def _refused(unknown: bool, what: str) -> None:
    if unknown:
        raise NotFound("none of these is a dead letter; see: outbox dead list")
    raise OutboxError(
        f"nothing was {what}: the destination is removed, or the expiry is past"
        " (redrive these with --ignore-expiry)"
    )

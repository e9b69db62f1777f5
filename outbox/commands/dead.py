"""`outbox dead`: dead letters, why they died, and what to do with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
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
from outbox.commands.deliveries import print_story
from outbox.commands.subscriptions import ObjectId, org_option
from outbox.errors import NotFound, OutboxError, UsageError

if TYPE_CHECKING:
    from outbox.store.dead import Selection

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


@click.group()
def dead() -> None:
    """List, show, redrive and discard dead letters."""


@dead.command("list")
@org_option
@_endpoint
@_reason
@_since
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
    since: datetime | None,
    limit: int,
    by_reason: bool,
    as_json: bool,
) -> None:
    """List dead letters: by reason, then one by one, newest first.

    With --json an array of dead letters, with --by-reason one of reasons.
    """
    from outbox.store.connect import connect
    from outbox.store.dead import Selection, dead_reasons, list_dead

    selection = Selection(org=org, endpoint_id=endpoint, reason=reason, since=since)
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
@json_option
@pass_wiring
def show(wiring: Wiring, delivery: UUID, org: str | None, as_json: bool) -> None:
    """Show one dead letter with its whole journal."""
    from outbox.store.connect import connect
    from outbox.store.deliveries import show_delivery

    with connect(wiring.database, autocommit=True) as connection:
        fields = show_delivery(connection, delivery, org)
    if fields["state"] != "dead":
        raise NotFound(f"delivery {delivery} is {fields['state']}, not dead; see: "
                       f"outbox deliveries show {delivery}")  # fmt: skip
    print_json(fields) if as_json else print_story(fields)


def _selects(command: Decorated) -> Decorated:
    """The ways to choose dead letters that redrive and discard share."""
    ids = click.argument("ids", type=click.UUID, nargs=-1, metavar="[ID]...")
    everything = click.option("--all", "everything", is_flag=True, help="Every dead letter.")
    dry_run = click.option("--dry-run", is_flag=True, help="Count alone, change nothing.")
    for option in (json_option, dry_run, _since, everything, org_option, _endpoint, ids):
        command = option(command)
    return command


def _selection(
    ids: Sequence[UUID],
    org: str | None,
    endpoint: int | None,
    reason: str | None,
    since: datetime | None,
    everything: bool,
) -> Selection:
    """What was chosen; nothing chosen is a mistake, not everything."""
    from outbox.store.dead import Selection

    conditions = [org, endpoint, reason, since]
    if not ids and not everything and all(value is None for value in conditions):
        raise UsageError("say which: ids, --endpoint, --org, --died-of, --since or --all")
    if everything and ids:
        raise UsageError("--all and ids exclude each other")
    return Selection(list(ids) or None, org, endpoint, reason, since)


@dead.command()
@_selects
@_reason
@click.option(
    "--ignore-expiry", is_flag=True, help="Redrive what is past its expiry too, without one."
)
@pass_wiring
def redrive(
    wiring: Wiring,
    ids: tuple[UUID, ...],
    endpoint: int | None,
    org: str | None,
    everything: bool,
    reason: str | None,
    since: datetime | None,
    ignore_expiry: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give dead letters a fresh budget of attempts, due now.

    Letters past their expiry need --ignore-expiry; those of removed destinations stay dead.
    """
    from outbox.store import dead as store
    from outbox.store.connect import connect

    selection = _selection(ids, org, endpoint, reason, since, everything)
    with connect(wiring.database, autocommit=True) as connection:
        done = store.redrive(connection, selection, ignore_expiry=ignore_expiry, dry_run=dry_run)
    fields = asdict(done) | {"dry_run": dry_run}
    print_json(fields) if as_json else print_fields(fields)
    if ids and not done.redriven:
        _refused(done.unknown == len(set(ids)), "redriven")


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
    since: datetime | None,
    why: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give dead letters up for good."""
    from outbox.store import dead as store
    from outbox.store.connect import connect

    selection = _selection(ids, org, endpoint, died_of, since, everything)
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

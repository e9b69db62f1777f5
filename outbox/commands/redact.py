"""`outbox redact`: erase a person's data from the log, the journal and the dead letters."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

from outbox.commands.base import (
    Moment,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    say,
)
from outbox.commands.subscriptions import ObjectId, org_option
from outbox.errors import NotFound, OutboxError, UsageError

if TYPE_CHECKING:
    from outbox.store.redaction import Choice, Found

SAMPLE = 10


@click.command()
@click.argument("ids", type=ObjectId, nargs=-1, metavar="[ID]...")
@click.option("--subject", help="Only events about this, such as users/42.")
@org_option
@click.option("--type", "types", metavar="TYPE,..", help="Only these: exact, users.* or *.")
@click.option(
    "--where",
    metavar="JSONPATH",
    help="Only events whose payload fulfils this SQL/JSON path predicate, such as"
    " '$.record.email == \"a@b.c\"'.",
)
@click.option("--since", type=Moment(), help="Only events since then.")
@click.option("--until", type=Moment(), help="Only events before then.")
@click.option("--reason", "why", metavar="TEXT", help="Why, required; the journal keeps it.")
@click.option("--dry-run", is_flag=True, help="Count alone, change nothing.")
@click.option("--yes", is_flag=True, help="Do it without asking.")
@json_option
@pass_wiring
def redact(
    wiring: Wiring,
    ids: tuple[int, ...],
    subject: str | None,
    org: str | None,
    types: str | None,
    where: str | None,
    since: datetime | None,
    until: datetime | None,
    why: str | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase events' contents for good, and what receivers answered.

    Payload, headers, subject, ordering and deduplication keys go, and documents that were rendered
    of them; which event, when and what became of it stays. What is still owed of these events is
    cancelled or discarded. Events that meet every condition are chosen. Backups, replicas and
    receivers are not reached.
    """
    from outbox.store import redaction as store
    from outbox.store.connect import connect
    from outbox.store.subscriptions import parse_patterns

    patterns = None if types is None else parse_patterns(types)
    choice = store.Choice(ids or None, subject, org, patterns, where, since, until)
    _check(choice, why, dry_run)
    with connect(wiring.database, autocommit=True) as connection:
        found = store.find_events(connection, choice)
        if dry_run or not yes:
            fields = asdict(store.count(connection, found.ids)) | _shown(found)
            if dry_run:
                print_json(fields | {"dry_run": True}) if as_json else print_fields(fields)
                return
            _ask(found, fields)
        done = store.redact(connection, found.ids, why or "", subject=subject)
        warnings = store.sweep(connection, done.xid)
    if done.toll.artifacts:
        warnings += remove_stored(wiring)
    fields = asdict(done.toll) | _shown(found, sample=False)
    print_json(fields | {"warnings": warnings}) if as_json else print_fields(fields)
    for warning in warnings:
        say(f"warning: {warning}")
    _complain(ids, found)


def remove_stored(wiring: Wiring) -> list[str]:
    """Remove the stored bytes of artifacts that went; returns what could not be done."""
    if wiring.settings.artifacts_url is None:
        text = "stored documents are removed by a worker within minutes; to do it now, set"
        return [f"{text} OUTBOX_ARTIFACTS_URL and run: outbox artifacts sweep"]
    try:
        wiring.tend_artifacts(wiring.settings)
    except OutboxError as error:
        return [f"stored documents could not be removed ({error}); workers go on trying"]
    return []


def _check(choice: Choice, why: str | None, dry_run: bool) -> None:
    from outbox.store.redaction import check_why

    if choice.empty:
        raise UsageError(
            "say which: ids, --subject, --org, --type, --where, --since or --until; to see what"
            " would be erased add --dry-run"
        )
    if not dry_run:
        if why is None:
            raise UsageError("say why with --reason TEXT; the journal keeps it, so name nobody")
        check_why(why)


def _shown(found: Found, *, sample: bool = True) -> dict[str, object]:
    fields: dict[str, object] = {"already": found.already, "unjudged": found.unjudged}
    return fields | ({"sample": found.ids[:SAMPLE]} if sample else {})


def _ask(found: Found, fields: dict[str, object]) -> None:
    if not found.ids:
        return
    if not sys.stdin.isatty():
        raise UsageError(
            f"{len(found.ids)} events would be redacted for good; to do it add --yes, to see more"
            " --dry-run"
        )
    for name, value in fields.items():
        say(f"{name}  {value}")
    click.confirm(f"Redact {len(found.ids)} events for good?", abort=True, err=True)


def _complain(ids: Sequence[int], found: Found) -> None:
    if found.unjudged:
        say(
            f"{found.unjudged} events hold text that --where cannot judge (\\u0000) and were left:"
            " choose them by id, --subject or --type"
        )
    if ids and not found.ids and not found.already:
        raise NotFound("there is no such event, or it is past retention")

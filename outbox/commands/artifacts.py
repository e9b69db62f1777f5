"""`outbox artifacts`: documents that were rendered: list them, read one, let some go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
)
from outbox.commands.redact import remove_stored
from outbox.commands.subscriptions import ObjectId, org_option, say_more
from outbox.errors import NotFound, OutboxError, UsageError

if TYPE_CHECKING:
    from outbox.store.artifacts import Connection

_COLUMNS = ("id", "sha256", "size", "pages", "filename", "org", "subject", "event", "created_at")


@click.group()
def artifacts() -> None:
    """List, read and remove documents that were rendered."""


@artifacts.command("list")
@org_option
@click.option("--subject", help="Only of events about this, such as orders/42.")
@click.option("--event", type=ObjectId, metavar="ID", help="Only of this event.")
@click.option("--before", type=click.UUID, metavar="ID", help="Begin below this id.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="Rows.")
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    org: str | None,
    subject: str | None,
    event: int | None,
    before: UUID | None,
    limit: int,
    as_json: bool,
) -> None:
    """List documents, newest first.

    `url` is a link that holds for seven days, where documents lie in a bucket; `place` is where a
    document lies. Both are null without OUTBOX_ARTIFACTS_URL.
    """
    from outbox.store.artifacts import list_artifacts
    from outbox.store.connect import connect

    with connect(wiring.database, autocommit=True) as connection:
        rows = list_artifacts(
            connection, org, subject=subject, event=event, before=before, rows_max=limit
        )
    if as_json:
        print_json(_placed(wiring, rows))
    else:
        print_rows(rows, _COLUMNS, empty="no document")
    say_more(rows, limit, "--before")


@artifacts.command()
@click.argument("name", metavar="SHA256|ID")
@click.option("-o", "--output", metavar="FILE", help="Where the document goes, instead of stdout.")
@org_option
@json_option
@pass_wiring
def get(wiring: Wiring, name: str, output: str | None, org: str | None, as_json: bool) -> None:
    """Write one document to stdout or a file.

    With --json stdout is for what is known of it; the document goes to --output, if it is given.
    """
    from outbox.store.connect import connect

    if not (output or as_json) and sys.stdout.isatty():
        raise UsageError("a PDF is nothing for a terminal: add -o FILE, or --json to see about it")
    with connect(wiring.database, autocommit=True) as connection:
        row = _find(connection, name, org)
    if output or not as_json:
        content = wiring.fetch_artifact(wiring.settings, row["org"], row["sha256"])
        _write(content, output)
    if as_json:
        print_json(_placed(wiring, [row])[0])


@artifacts.command()
@click.argument("ids", type=click.UUID, nargs=-1, metavar="[ID]...")
@click.option("--subject", help="All of events about this, such as orders/42.")
@org_option
@click.option("--dry-run", is_flag=True, help="Count alone, change nothing.")
@json_option
@pass_wiring
def remove(
    wiring: Wiring,
    ids: tuple[UUID, ...],
    subject: str | None,
    org: str | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Let documents go for good, by id or by subject, also those whose event is past retention."""
    from outbox.store.artifacts import ids_of, remove_artifacts
    from outbox.store.connect import connect

    if bool(ids) is bool(subject):
        raise UsageError("say which: ids, or --subject")
    with connect(wiring.database, autocommit=True) as connection:
        found = ids_of(connection, org, subject, list(ids) or None)
        if not found:
            raise NotFound("there is no such document")
        removed = len(found) if dry_run else remove_artifacts(connection, found)
    warnings = [] if dry_run else remove_stored(wiring)
    fields: dict[str, Any] = {"artifacts": removed}
    if as_json:
        print_json(fields | {"dry_run": dry_run, "warnings": warnings})
    else:
        print_fields(fields)
    for warning in warnings:
        say(f"warning: {warning}")


@artifacts.command()
@json_option
@pass_wiring
def sweep(wiring: Wiring, as_json: bool) -> None:
    """Remove stored documents that nothing names any more, as workers do every minute."""
    fields = {"removed": wiring.tend_artifacts(wiring.settings)}
    print_json(fields) if as_json else print_fields(fields)


def _find(connection: Connection, name: str, org: str | None) -> dict[str, Any]:
    from outbox.store.artifacts import ids_of, list_artifacts

    try:
        ids = ids_of(connection, org, None, [UUID(name)]) if len(name) == 36 else None
    except ValueError:
        ids = []
    sha256 = name.lower() if ids is None else None
    rows = list_artifacts(connection, org, sha256=sha256, ids=ids, rows_max=2)
    if not rows:
        raise NotFound("there is no such document; outbox artifacts list shows which there are")
    if len({row["org"] for row in rows}) > 1:
        raise UsageError("several organizations have this document: add --org")
    return rows[0]


def _placed(wiring: Wiring, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the links to them."""
    nowhere: dict[str, Any] = {"url": None, "place": None}
    places = [nowhere for _ in rows]
    if wiring.settings.artifacts_url is not None:
        pairs = [(row["org"], row["sha256"]) for row in rows]
        places = wiring.place_artifacts(wiring.settings, pairs)
    return [row | place for row, place in zip(rows, places, strict=True)]


def _write(content: bytes, output: str | None) -> None:
    if output is None:
        sys.stdout.buffer.write(content)
        return
    try:
        Path(output).write_bytes(content)
    except OSError as error:
        raise OutboxError(f"cannot write {output}: {error.strerror}") from error

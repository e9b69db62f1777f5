"""`outbox emit`: one event, payload from an argument, a file or stdin."""

from __future__ import annotations

import sys
from datetime import datetime, timedelta
from pathlib import Path

import click

from outbox.commands.base import (
    Duration,
    Moment,
    Wiring,
    json_option,
    pass_wiring,
    print_json,
    split_header,
)
from outbox.errors import UsageError

_READ_MAX = 64 * 1024 * 1024  # so that an endless stdin ends; the real limit is emit's own


@click.command()
@click.argument("event_type", metavar="TYPE")
@click.argument("payload", required=False)
@click.option("--org", help="Organization the event belongs to; none: system-wide.")
@click.option("--subject", help="What the event is about, such as orders/42.")
@click.option("--ordering-key", help="Events of one key are numbered in commit order.")
@click.option("--header", "headers", multiple=True, metavar="'K: V'", help="Header, repeatable.")
@click.option("--deliver-at", type=Moment(), help="Not before this time (ISO 8601 with offset).")
@click.option("--in", "delay", type=Duration(), help="Not before this much time has passed.")
@click.option("--expires-at", type=Moment(), help="Not after this time.")
@click.option("--dedupe-key", help="Emit once per key: a second time gives the first event's id.")
@click.option("--file", "path", metavar="PATH", help="Read the payload from a file, - is stdin.")
@json_option
@pass_wiring
def emit(
    wiring: Wiring,
    event_type: str,
    payload: str | None,
    org: str | None,
    subject: str | None,
    ordering_key: str | None,
    headers: tuple[str, ...],
    deliver_at: datetime | None,
    delay: timedelta | None,
    expires_at: datetime | None,
    dedupe_key: str | None,
    path: str | None,
    as_json: bool,
) -> None:
    """Emit one event and print its id. PAYLOAD is JSON, `{}` if it is left out, - for stdin."""
    from outbox.store.connect import connect
    from outbox.store.emit import emit as store_emit

    if payload is not None and path is not None:
        raise UsageError("give the payload as an argument or with --file, not both")
    if deliver_at is not None and delay is not None:
        raise UsageError("--deliver-at and --in exclude each other")
    source = path if path is not None else payload if payload == "-" else None
    content = _read(source) if source is not None else payload if payload is not None else "{}"
    with connect(wiring.database) as connection:
        if delay is not None:
            # The server's clock decides when an event is due, so it also counts from there.
            row = connection.execute("SELECT clock_timestamp() + %s", [delay]).fetchone()
            assert row is not None
            deliver_at = row[0]
        event_id = store_emit(
            connection,
            event_type,
            content,
            org=org,
            subject=subject,
            ordering_key=ordering_key,
            headers=dict(map(split_header, headers)) or None,
            deliver_at=deliver_at,
            expires_at=expires_at,
            dedupe_key=dedupe_key,
        )
    print_json({"id": event_id}) if as_json else click.echo(event_id)


def _read(source: str) -> bytes:
    try:
        if source == "-":
            return sys.stdin.buffer.read(_READ_MAX)
        with Path(source).open("rb") as file:
            return file.read(_READ_MAX)
    except OSError as error:
        raise UsageError(f"cannot read {source}: {error.strerror}") from error

"""`outbox status` and `outbox doctor`: how it goes, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    say,
    takes_settings,
)
from outbox.errors import BrokerUnavailable

if TYPE_CHECKING:
    from outbox.store.doctor import Finding


@click.command()
@json_option
@pass_wiring
def status(wiring: Wiring, as_json: bool) -> None:
    """Show what is pending, scheduled, in flight, held and dead. Cheap at any size.

    Counts beyond 100,000 are estimates; ages are in seconds.
    """
    from outbox.store.connect import connect
    from outbox.store.status import read_status

    with connect(wiring.database) as connection:
        found = read_status(connection)
    print_json(asdict(found)) if as_json else print_fields(asdict(found))


@click.command()
@json_option
@takes_settings("instance", "retention", "broker_url")
@pass_wiring
@click.pass_context
def doctor(ctx: click.Context, wiring: Wiring, as_json: bool) -> None:
    """Find everything that could be wrong, with the fix. Exit code 1 if there is anything."""
    from outbox.store.doctor import examine

    settings = wiring.settings
    ring = settings.key_ring() if settings.secret_key else None
    findings = list(examine(settings.database, settings.instance, ring, settings.retention))
    findings += _broker(wiring)
    if as_json:
        print_json({"ok": not findings, "findings": [asdict(finding) for finding in findings]})
    for finding in findings if not as_json else ():
        click.echo(f"{finding.check}: {finding.problem}\n    fix: {finding.fix}")
    if not findings and not as_json:
        say("nothing is wrong")
    ctx.exit(1 if findings else 0)


def _broker(wiring: Wiring) -> Iterator[Finding]:
    from outbox.store.doctor import Finding

    courier = wiring.open_courier(wiring.settings, "outbox")
    try:
        courier.depth()
    except BrokerUnavailable as error:
        yield Finding("broker", str(error), "start the broker, or correct OUTBOX_BROKER_URL")
    finally:
        courier.close()

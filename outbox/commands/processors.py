"""`outbox processors`: what can perform deliveries: the built-in kinds and the user's own."""

from __future__ import annotations

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_json,
    print_rows,
    takes_settings,
)

_COLUMNS = ("name", "module", "runs", "concurrency", "timeout_s", "retry", "about")


@click.command()
@takes_settings("imports")
@json_option
@pass_wiring
def processors(wiring: Wiring, as_json: bool) -> None:
    """List the kinds of destinations, and the processors of yours that can be found."""
    rows = wiring.list_processors(wiring.settings)
    print_json(rows) if as_json else print_rows(rows, _COLUMNS)

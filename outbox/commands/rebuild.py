"""`outbox rebuild`: are the rows what the facts say, and making them so."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from outbox.commands.base import Wiring, json_option, pass_wiring, print_json, print_rows, say
from outbox.errors import ProjectionsDiffer, UsageError

if TYPE_CHECKING:
    from outbox.store.rebuild import Report, Slice
    from outbox.store.rebuild_mend import Mended

_COLUMNS = ("kind", "count", "meaning")
_SAMPLE = ("kind", "event", "delivery", "what")
_TOLD_EVERY_S = 0.5


@click.command()
@click.option("--verify", is_flag=True, help="Compare and change nothing.")
@click.option("--apply", is_flag=True, help="Mend what differs, one by one, while all else runs.")
@json_option
@pass_wiring
def rebuild(wiring: Wiring, verify: bool, apply: bool, as_json: bool) -> None:
    """Compare the rows of deliveries, dead letters and pending events with the facts.

    The facts (log and journal) are never changed. --verify reads one snapshot, changes nothing and
    ends with exit code 14 if anything differs; --apply mends it, and ends so if something is left.
    The daemon may run or not.
    """
    from outbox.store.connect import connect
    from outbox.store.rebuild import verify as compare
    from outbox.store.rebuild_mend import apply as mend

    if verify == apply:
        raise UsageError("say which: --verify (changes nothing) or --apply")
    progress = _Progress()
    with connect(wiring.database, autocommit=True) as connection:
        if verify:
            report = compare(connection, tell=progress)
            progress.end(report)
            _show(report, None, as_json)
            if not report.equal:
                raise ProjectionsDiffer(
                    f"{report.found.total()} differences; to mend them: outbox rebuild --apply"
                )
            return
        with connect(wiring.database, autocommit=True) as writer:
            mended = mend(connection, writer, tell=progress)
    progress.end(mended.report)
    _show(mended.report, mended, as_json)
    if mended.left:
        raise ProjectionsDiffer(_left(mended))


def _left(mended: Mended) -> str:
    from outbox.store.rebuild import UNMENDABLE

    found = mended.report.found
    parts = [f"{found[kind]} {kind}" for kind in sorted(UNMENDABLE) if found[kind]]
    if mended.leased:
        parts.append(f"{mended.leased} in use: run it again when they have ended")
    return f"{mended.left} differences are left: {', '.join(parts)}"


# -- output ---------------------------------------------------------------------------------------


def _show(report: Report, mended: Mended | None, as_json: bool) -> None:
    from outbox.store.rebuild import KINDS

    if as_json:
        print_json(_document(report, mended))
        return
    if report.found:
        rows = [
            {"kind": kind, "count": report.found[kind], "meaning": meaning}
            for kind, meaning in KINDS.items()
            if report.found[kind]
        ]
        print_rows(rows, _COLUMNS)
        click.echo()
        print_rows(
            [
                {"kind": kind, "event": d.event_id, "delivery": d.delivery_id, "what": _what(d)}
                for kind, sample in report.samples.items()
                for d in sample
            ],
            _SAMPLE,
        )
    if mended is not None and mended.done.total():
        counts = ", ".join(f"{count} {name}" for name, count in mended.done.items() if count)
        say(f"rows: {counts}")


def _what(difference: Any) -> str:
    changed = (f"{name} {row} -> {facts}" for name, (row, facts) in difference.columns.items())
    return ", ".join(changed) or difference.why or ""


def _document(report: Report, mended: Mended | None) -> dict[str, Any]:
    document: dict[str, Any] = {
        "equal": report.equal,
        "events": report.events,
        "facts": report.facts,
        "deliveries": report.deliveries,
        "differences": {
            kind: {
                "count": count,
                "sample": [difference.told() for difference in report.samples[kind]],
            }
            for kind, count in report.found.items()
        },
        "columns": dict(report.columns),
    }
    if mended is not None:
        document["mended"] = {name: n for name, n in mended.done.items() if n}
        document["left"] = mended.left
        document["leased"] = mended.leased
    return document


class _Progress:
    """A line on a terminal that counts along, and a last one that says what was read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = self._told = clock()
        self._facts = self._found = 0
        self._shown = sys.stderr is not None and sys.stderr.isatty()

    def __call__(self, part: Slice) -> None:
        self._facts += part.facts
        self._found += len(part.differences)
        now = self._clock()
        if self._shown and now - self._told >= _TOLD_EVERY_S:
            self._told = now
            done = min(100, 100 * part.upto // max(1, part.ceiling))
            text = f"{done} %, {self._facts} facts, {self._found} differences"
            click.echo(f"\r{text.ljust(60)}", err=True, nl=False)

    def end(self, report: Report) -> None:
        """Say what was read and how long that took."""
        if self._shown:
            click.echo("\r", err=True, nl=False)
        took_s = self._clock() - self._began
        say(
            f"{report.events} events, {report.facts} facts, {report.deliveries} deliveries"
            f" in {took_s:.1f} s: {'all as it should be' if report.equal else 'differences found'}"
        )

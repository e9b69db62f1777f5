"""`outbox demo`: the whole pipeline with everything embedded, counted honestly.

Owns the signals while it runs, what is printed where, and the exit code: 0 only if nothing was
lost. Reads no setting of the environment: a demo must not touch anybody's database.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from typing import TYPE_CHECKING

import click

from outbox.commands.base import Wiring, json_option, pass_wiring, print_json
from outbox.errors import UsageError
from outbox.settings import wants_traceback

if TYPE_CHECKING:
    from rich.console import Console

    from outbox.demo.ledger import Report
    from outbox.demo.run import Demo
    from outbox.demo.view import View
    from outbox.settings import Settings

LOG_LINES_KEPT = 20
EXIT_TERMINATED = 143
SEED_MAX = 2**32


@click.command()
@click.option(
    "--orders",
    type=click.IntRange(1, 1_000_000),
    default=1000,
    show_default=True,
    help="Orders to write.",
)
@click.option("--seed", type=int, help="Seed of what the shop writes; drawn anew without.")
@click.option(
    "--broker",
    type=click.Choice(["memory", "redis"]),
    default="memory",
    show_default=True,
    help="The courier: in this process, or an embedded Redis.",
)
@click.option("--keep", is_flag=True, help="Leave it running until Ctrl-C, to look inside.")
@json_option
@pass_wiring
def demo(
    wiring: Wiring, orders: int, seed: int | None, broker: str, keep: bool, as_json: bool
) -> None:
    """Rows change, signed webhooks arrive: the whole pipeline, everything embedded.

    A real PostgreSQL, a shop whose sessions write orders, capture, daemon, worker, and receivers
    that verify each signature with the package standardwebhooks; some misbehave for a while. Some
    paid orders get an invoice, which becomes a PDF, which is mailed. Every change of an order, and
    every document, is broadcast to the screens of its organization through the stand-in for
    Supabase Realtime; a page shows two organizations side by side.

    Counted are: `events` of the shop in the log; `deliveries`, the pairs of event and webhook
    subscription that matched; `delivered`, those that a receiver answered 2xx and the journal calls
    delivered; `lost`, those that are neither delivered nor live nor dead, documents, e-mails and
    broadcasts that are not where they should be, and changes without an event; `duplicates`, ids
    answered 2xx more than once; `signatures_verified`, ids answered 2xx whose every request
    verified; `documents`, invoices rendered as PDF and stored; `emails`, those that came with one
    attached; `broadcasts`, the `settled` ones (each is exactly one message of realtime.messages, or
    lost), those `received` by a screen of their organization over its own socket (from there on
    Realtime delivers at most once), and those heard by a screen `of_another_organization`;
    `latency_ms`, from commit to first receipt, of the receivers that were healthy all along;
    `seconds`, from the first write until all was settled.

    Exit code 13 if anything was lost, 1 if anything crossed, was forged, or was not heard though no
    connection was cut.
    """
    from outbox.demo.run import Demo, Options

    if wiring.flags:
        raise UsageError("the demo brings its own PostgreSQL and settings; give it no others")
    seed = secrets.randbelow(SEED_MAX) if seed is None else seed
    console, view = _view(as_json)
    options = Options(orders=orders, seed=seed, broker=broker, keep=keep)
    one = Demo(options, wiring.open_courier, wiring.open_processors, wiring.specify, view)
    logs = _quiet_logs(debug=wants_traceback(wiring.environ))
    try:
        report = _run(one, lambda report, found: _show(report, found, console, one, as_json))
    except Exception:
        for line in logs.lines:
            click.echo(line, err=True, nl=False)
        raise
    report.check()


def _view(as_json: bool) -> tuple[Console, View]:
    """Where a person looks: stdout, or stderr if stdout is for data."""
    from rich.console import Console

    from outbox.demo.view import LiveView, PlainLines, Silent

    console = Console(stderr=as_json)
    if console.is_terminal:
        return console, LiveView(console)
    return console, Silent() if as_json else PlainLines(console)


def _show(report: Report, settings: Settings, console: Console, one: Demo, as_json: bool) -> None:
    """Print the result, and with --keep what is needed to look inside."""
    from outbox.demo.view import print_summary

    keep = one.options.keep
    if as_json:
        print_json(report.document())
    else:
        print_summary(console, report, seed=one.options.seed, keeps=keep)
    if keep:
        for line in _surroundings(settings):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    sys.stdout.flush()


def _surroundings(settings: Settings) -> list[str]:
    """What another shell must export to work with the demo."""
    ports = ",".join(map(str, settings.egress_ports))
    ranges = ",".join(map(str, settings.egress_allow_cidrs))
    return [
        "",
        "Everything goes on until Ctrl-C, and a few orders still come in. In another terminal:",
        "",
        f"export OUTBOX_DATABASE_URL='{settings.database}'",
        f"export OUTBOX_SECRET_KEY='{settings.secret_key}'",
        f"export OUTBOX_INSTANCE='{settings.instance}'",
        f"export OUTBOX_BROKER_URL='{settings.broker_url}'",
        f"export OUTBOX_EGRESS_ALLOW_HTTP=true OUTBOX_EGRESS_ALLOW_CIDRS='{ranges}'",
        f"export OUTBOX_EGRESS_PORTS='{ports}'",
        "",
        "outbox status",
        "outbox endpoints list",
        'psql "$OUTBOX_DATABASE_URL" -c "UPDATE shop.orders SET status = \'sent\'"',
    ]


# -- running --------------------------------------------------------------------------------------


class _LastLines(StringIO):
    """Keeps the last log lines, to show them if the demo fails."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=LOG_LINES_KEPT)

    def write(self, text: str) -> int:
        """Keep one line."""
        self.lines.append(text)
        return len(text)


def _quiet_logs(*, debug: bool) -> _LastLines:
    from outbox.logs import configure_logs

    kept = _LastLines()
    configure_logs(None, debug=debug, stream=sys.stderr if debug else kept)
    return kept


def _run(one: Demo, show: Callable[[Report, Settings], None]) -> Report:
    """Run until the end or the first signal, which ends everything in order."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        report, number = runner.run(_until_signal(one, show))
    if report is not None:
        return report
    if number == signal.SIGTERM:
        raise SystemExit(EXIT_TERMINATED)
    raise KeyboardInterrupt


async def _until_signal(
    one: Demo, show: Callable[[Report, Settings], None]
) -> tuple[Report | None, int | None]:
    """The report, or the signal that came first. With --keep a signal is the regular end."""
    numbers: list[int] = []
    signalled, shown = asyncio.Event(), asyncio.Event()

    def on_signal(number: int) -> None:
        if numbers:  # a second one: children and servers end when they find us gone
            os._exit(128 + number)
        numbers.append(number)
        signalled.set()

    async def done(report: Report, settings: Settings) -> None:
        show(report, settings)
        shown.set()
        if one.options.keep:
            await signalled.wait()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    running = asyncio.create_task(one.run(done))
    waiting = asyncio.create_task(signalled.wait())
    await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if not running.done() and not shown.is_set():
        running.cancel()
    with suppress(asyncio.CancelledError):
        return await running, None
    return None, numbers[0]

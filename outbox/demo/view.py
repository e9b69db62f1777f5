"""What a person sees of the demo: a live view on a terminal, plain lines elsewhere, a summary.

Owns no truth: it is shown a `Scoreboard` that others keep.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from outbox.demo.hearing import Hearing
from outbox.demo.ledger import Latency, Report
from outbox.demo.scene import DESTINATIONS, SESSIONS, WATCHED, Destination, pace

SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_KEPT = 48
LINE_S = 0.5

_WORDS = {
    "steady": "answers at once",
    "fails": "fails with 500",
    "throttles": "says 429, Retry-After",
    "hangs": "does not answer",
}


@dataclass(slots=True)
class Scoreboard:
    """The state of the demo as far as it is known now."""

    orders_wanted: int
    clock: Callable[[], float] = time.monotonic
    stage: str = "starting"
    orders: int = 0
    changes: int = 0
    rolled_back: int = 0
    retrying: int = 0
    dead: int = 0
    heard: int = 0
    receivers: dict[str, dict[str, Any]] = field(default_factory=dict)
    latencies_ms: deque[float] = field(default_factory=lambda: deque(maxlen=SPARKS_KEPT))
    began_at: float | None = None

    @property
    def delivered(self) -> int:
        """Deliveries that a receiver answered 2xx."""
        return sum(int(one["accepted"]) for one in self.receivers.values())

    @property
    def seconds(self) -> float:
        """Since the first write."""
        return 0.0 if self.began_at is None else self.clock() - self.began_at

    def take_counts(self, counts: Mapping[str, dict[str, Any]]) -> None:
        """The receivers told how they stand."""
        self.receivers = dict(counts)
        fresh = [ms for one in counts.values() for ms in one["latencies_ms"]]
        if fresh:
            self.latencies_ms.append(statistics.median(fresh))


class View(Protocol):
    """Shows a scoreboard while the demo runs."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None: ...

    def show(self, board: Scoreboard) -> None:
        """Show the present state; called a few times a second."""

    def tell_page(self, url: str) -> None:
        """Say once where orders are seen live."""


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        return None

    def show(self, board: Scoreboard) -> None:  # noqa: ARG002 (there is nothing to show)
        return None

    def tell_page(self, url: str) -> None:  # noqa: ARG002 (the same)
        return None


class PlainLines(Silent):
    """One line now and then, when something changed."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._at = -LINE_S
        self._last = ""

    def show(self, board: Scoreboard) -> None:
        line = (
            f"{board.stage}: {board.orders} of {board.orders_wanted} orders,"
            f" {board.changes} events, {board.delivered} delivered,"
            f" {board.retrying} retrying, {board.dead} dead"
        )
        if board.began_at is None:
            line = board.stage
        if line == self._last or self._clock() - self._at < LINE_S:
            return
        self._last, self._at = line, self._clock()
        self._console.print(line, highlight=False, soft_wrap=True)

    def tell_page(self, url: str) -> None:
        self._console.print(where_live(url), highlight=False, soft_wrap=True)


class LiveView(Silent):
    """A panel that is drawn anew, gone when the demo ends."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, tb)

    def show(self, board: Scoreboard) -> None:
        self._live.update(draw(board), refresh=True)

    def tell_page(self, url: str) -> None:
        self._live.console.print(where_live(url), highlight=False, soft_wrap=True)


def where_live(url: str) -> Text:
    """The line that says where the page is."""
    watched = " and ".join(WATCHED)
    return Text.assemble(f"orders of {watched} live, side by side: ", (url, f"bold link {url}"))


def draw(board: Scoreboard) -> Panel:
    """The live view of one moment."""
    bar = Table.grid(padding=(0, 2))
    bar.add_row(
        Text(f"{board.stage:<24}", style="bold"),
        ProgressBar(total=board.orders_wanted, completed=board.orders, width=32),
        Text(f"{board.orders:,} of {board.orders_wanted:,} orders"),
    )
    counts = Table.grid(padding=(0, 3))
    counts.add_row(
        _figure("events", board.changes, "cyan"),
        _figure("delivered", board.delivered, "green"),
        _figure("on screens", board.heard, "green"),
        _figure("retrying", board.retrying, "yellow"),
        _figure("dead", board.dead, "red" if board.dead else "dim"),
        _figure("rolled back, not sent", board.rolled_back, "dim"),
    )
    spark = Text.assemble(
        ("latency ", "dim"), (sparkline(board.latencies_ms), "cyan"), (_newest(board), "dim")
    )
    parts = Group(bar, Text(), counts, Text(), _receivers(board), Text(), spark)
    title = f"[bold]Outbox demo[/bold]  {board.seconds:5.1f} s"
    return Panel(parts, title=title, title_align="left", border_style="blue", padding=(1, 2))


def _figure(name: str, value: int, style: str) -> Text:
    return Text.assemble((f"{value:,}", f"bold {style}"), (f" {name}", "dim"))


def _newest(board: Scoreboard) -> str:
    return f"  {board.latencies_ms[-1]:,.0f} ms (healthy receivers)" if board.latencies_ms else ""


def _receivers(board: Scoreboard) -> Table:
    table = Table.grid(padding=(0, 3))
    for one in DESTINATIONS:
        counts = board.receivers.get(one.path, {})
        table.add_row(
            Text(one.label),
            _mood(one, moody=bool(counts.get("moody"))),
            Text(f"{counts.get('accepted', 0):>8,} ok", style="green"),
            Text(f"{counts.get('troubled', 0):>6,} refused", style="dim"),
        )
    return table


def _mood(one: Destination, *, moody: bool) -> Text:
    if one.mood == "steady":
        return Text("● answers at once", style="green")
    if moody:
        return Text(f"● {_WORDS[one.mood]}", style="red" if one.mood == "fails" else "yellow")
    return Text("● recovered", style="green")


def sparkline(values: deque[float]) -> str:
    """One character a value, scaled to the highest."""
    top = max(values, default=0.0)
    if top <= 0:
        return ""
    steps = len(SPARKS) - 1
    return "".join(SPARKS[min(steps, max(0, round(value / top * steps)))] for value in values)


# -- the summary ----------------------------------------------------------------------------------


def print_summary(console: Console, report: Report, *, seed: int, keeps: bool) -> None:
    """What happened, in a few lines, and what to try next."""
    console.print()
    console.print(_headline(report), highlight=False, soft_wrap=True)
    console.print()
    console.print(_figures(report), highlight=False)
    console.print()
    latency = _latency(report.account.latency_ms, report.screens_ms, report.orders)
    console.print(latency, highlight=False, soft_wrap=True)
    console.print()
    console.print(_stories(report), highlight=False)
    if not keeps:
        console.print()
        console.print(_next_steps(seed), highlight=False, soft_wrap=True)


def _headline(report: Report) -> Text:
    good = report.lost == 0 and report.complaint is None
    mark = ("✔ ", "bold green") if good else ("✘ ", "bold red")
    return Text.assemble(
        mark,
        (f"{report.orders:,} orders", "bold"),
        f", written by {SESSIONS} sessions, became {report.events:,} events and ",
        (f"{report.account.deliveries:,} signed webhooks", "bold"),
        f" in {report.seconds:.1f} s.",
    )


def _figures(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column(style="dim")
    account = report.account
    for value, name, good in (
        (account.delivered, "delivered: in the journal and at the receiver", True),
        (report.lost, "lost", report.lost == 0),
        (account.dead, "dead letters", account.dead == 0),
        (account.duplicates, "duplicates", account.duplicates == 0),
        (
            account.signatures_verified,
            "verified by standardwebhooks",
            not report.forged,
        ),
        (
            report.documents,
            f"invoices rendered as PDF, {report.emails:,} e-mails that came with one",
            not report.followers_lost,
        ),
        *_heard(report.hearing),
        (report.rolled_back, "orders rolled back: no receiver saw them", report.phantoms == 0),
    ):
        table.add_row(Text(f"{value:,}", style="bold" if good else "bold red"), name)
    return table


def _heard(hearing: Hearing) -> Iterator[tuple[int, str, bool]]:
    settled = f"broadcasts settled, {hearing.received:,} heard on screens of their organization"
    if hearing.cuts:
        settled += f" ({hearing.cuts:,} connections were cut, and Realtime sends nothing twice)"
    yield hearing.settled, settled, hearing.received == hearing.settled
    crossed = hearing.crossed + hearing.admitted
    tried = hearing.refused + hearing.admitted
    refused = f"heard on another's; {hearing.refused} of {tried} tries to join its channel refused"
    yield hearing.crossed, refused, crossed == 0


def _latency(latency: Latency, screens: Latency, orders: int) -> Text:
    if latency.p50 is None or latency.p99 is None:
        return Text("no latency was measured")
    text = Text.assemble(
        f"Commit to healthy receiver, at {pace(orders):,.0f} orders a second: ",
        (f"p50 {latency.p50:,.0f} ms, p99 {latency.p99:,.0f} ms", "bold"),
    )
    if screens.p50 is not None and screens.p99 is not None:
        text.append("; to a screen: ")
        text.append(f"p50 {screens.p50:,.0f} ms, p99 {screens.p99:,.0f} ms", "bold")
    return text


def _stories(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    for one in report.receivers:
        troubled = int(one["troubled"])
        told = f"{one['does']} {troubled:,} times, then recovered" if troubled else one["does"]
        table.add_row(f"  {one['label']}", Text(f"{one['accepted']:>7,}"), Text(told, style="dim"))
    return table


def told(one: Destination, counts: Mapping[str, Any]) -> dict[str, Any]:
    """A receiver's line of the summary."""
    troubled = int(counts.get("troubled", 0))
    does = _WORDS[one.mood] if one.mood == "steady" or troubled else _WORDS["steady"]
    return {
        "label": one.label,
        "does": does,
        "accepted": int(counts.get("accepted", 0)),
        "troubled": troubled,
    }


def _next_steps(seed: int) -> Text:
    return Text.assemble(
        ("Try next\n", "bold"),
        "  outbox demo --orders 10000     more of it\n",
        "  outbox demo --broker redis     through a real Redis\n",
        "  outbox demo --keep             leaves it running: the page, psql, your own rows\n",
        (f"This run's seed was {seed}; the README shows the same on your own database.", "dim"),
    )

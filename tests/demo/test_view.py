"""What a person sees of the demo on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from outbox.demo.hearing import Hearing
from outbox.demo.ledger import Latency
from outbox.demo.scene import DESTINATIONS
from outbox.demo.view import LiveView, PlainLines, Scoreboard, _heard, _latency

MOODY = next(one for one in DESTINATIONS if one.mood == "fails")


def board(**told: object) -> Scoreboard:
    made = Scoreboard(1000, clock=lambda: 3.5, stage="selling", orders=250, changes=300, dead=2)
    made.began_at = 1.0
    steady = {"accepted": 7, "troubled": 0, "latencies_ms": [], "moody": False}
    made.take_counts({one.path: steady for one in DESTINATIONS})
    made.take_counts({**made.receivers, MOODY.path: {**steady, "latencies_ms": [8.0], **told}})
    return made


def seen(made: Scoreboard) -> str:
    """The live view of this moment."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with LiveView(console) as view:
        view.show(made)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_live_view_counts_and_names_every_receiver() -> None:
    text = seen(board(troubled=5, moody=True))
    for told in ("selling", "250 of 1,000 orders", "300 events", "2 dead", "2.5 s", "8 ms"):
        assert told in text
    assert f"{7 * len(DESTINATIONS)} delivered" in text
    assert all(one.label in text for one in DESTINATIONS)
    assert "fails with 500" in text
    assert "5 refused" in text


def test_a_receiver_that_behaves_again_has_recovered() -> None:
    assert "fails with 500" not in seen(board(troubled=5, moody=False))


@pytest.mark.parametrize(("clock", "lines"), [([0.0, 0.1, 0.2], 1), ([0.0, 0.6, 1.2], 3)])
def test_off_a_terminal_a_line_is_written_now_and_then(clock: list[float], lines: int) -> None:
    written = io.StringIO()
    times = iter([moment for moment in clock for _ in range(2)])
    view = PlainLines(Console(file=written), clock=lambda: next(times))
    made = board()
    for number, _ in enumerate(clock):
        made.orders = number
        view.show(made)
    assert written.getvalue().count("orders") == lines


def test_without_a_delivery_there_is_no_latency_to_tell() -> None:
    none = Latency(None, None)
    assert "no latency" in str(_latency(none, none, 10))
    assert "screen" not in str(_latency(Latency(1.0, 2.0), none, 10))


def test_the_page_is_told_once_on_a_line_of_its_own() -> None:
    written = io.StringIO()
    PlainLines(Console(file=written, width=20)).tell_page("http://127.0.0.1:1/live/x")
    assert written.getvalue().endswith("side by side: http://127.0.0.1:1/live/x\n")
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    with LiveView(console) as view:
        view.tell_page("http://127.0.0.1:1/live/x")
    assert isinstance(console.file, io.StringIO)
    assert "http://127.0.0.1:1/live/x" in console.file.getvalue()


def test_a_screen_that_was_cut_off_is_told_of() -> None:
    (_, cut, heard_all), _ = _heard(Hearing(settled=3, received=2, cuts=1))
    assert "1 connections were cut" in cut
    assert not heard_all
    (_, whole, heard_all), (_, _, apart) = _heard(Hearing(settled=3, received=3, refused=12))
    assert "cut" not in whole
    assert heard_all
    assert apart
    assert not list(_heard(Hearing(admitted=1)))[1][2]

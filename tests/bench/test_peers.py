"""The figures of `make bench-peers`: ratios, page and plot, without running any peer."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.peers import install
from bench.peers.adapters import job
from bench.peers.measure import balanced
from bench.peers.page import BEGIN, END, PAGE, lines, section, write
from bench.peers.plot import draw
from bench.peers.results import KINDS, Entry, Kind, Run, document, ratios
from bench.peers.systems import ALONE, OUTBOX, PEERS, Peer
from outbox.errors import LossDetected
from outbox.signature import format_secret, verify

CONDITIONS = {
    "measured": "2026-11-01",
    "form": "full",
    "runs": 3,
    "load": {"min": 0.1, "max": 4.0},
    "machine": {"cpu": "X", "cores": 4, "memory_gb": 23.0, "system": "Linux"},
    "servers": {"postgresql": "18.4, embedded", "redis": "7.0.15, embedded"},
    "postgresql": {"synchronous_commit": "on"},
    "receiver": "nginx 1.22, one worker",
    "payload_bytes": 1000,
    "python": "3.11.7",
    "node": "22.0.0",
}
WEBHOOKS, NOOP = KINDS[0], KINDS[2]


def measured(system: str, kind: Kind, *rates: float, cpu_us: float = 100.0) -> Entry:
    """An entry whose runs have these rates."""
    runs = tuple(Run(rate, {"worker": cpu_us, "postgresql": 50.0}) for rate in rates)
    return Entry(system, "1.0", "fast", kind, 1000, runs)


def failed(system: str, kind: Kind) -> Entry:
    return Entry(system, "1.0", "fast", kind, 1000, error="not installed: no <network>")


ENTRIES = [
    measured(OUTBOX, WEBHOOKS, 1000, 800, 3000, cpu_us=150.0),
    measured("quick", WEBHOOKS, 500, cpu_us=350.0),
    measured("lean", WEBHOOKS, 250, cpu_us=50.0),
    failed("absent", WEBHOOKS),
    measured(OUTBOX, NOOP, 100),
    measured("quick", NOOP, 400),
]


def test_ratios_are_of_medians_and_of_the_best_of_each_measure() -> None:
    found = ratios(ENTRIES, OUTBOX)
    assert found["webhooks-1"] == {
        "per_s": {"best_peer": "quick", "to_best_peer": 2.0, "to": {"quick": 2.0, "lean": 4.0}},
        "cpu_us": {"best_peer": "lean", "to_best_peer": 2.0, "to": {"quick": 0.5, "lean": 2.0}},
    }
    assert found["noop-1"]["per_s"]["to_best_peer"] == 0.25


def test_what_needs_no_worker_beside_it_is_no_peer_and_has_ratios_of_its_own() -> None:
    ours = measured(ALONE, WEBHOOKS, 2000, cpu_us=25.0)
    found = ratios([*ENTRIES, ours], OUTBOX, ALONE)
    told = {"per_s_to_best_peer": 4.0, "cpu_us_to_best_peer": 0.75}
    assert found["webhooks-1"].pop("alone") == told
    assert found == ratios(ENTRIES, OUTBOX)


def test_there_is_no_ratio_without_both_sides() -> None:
    assert ratios([measured("quick", WEBHOOKS, 1)], OUTBOX) == {}
    assert ratios([measured(OUTBOX, WEBHOOKS, 1), failed("quick", WEBHOOKS)], OUTBOX) == {}


def test_an_entry_tells_its_runs_or_why_there_are_none() -> None:
    shown = ENTRIES[0].document()
    assert shown["per_s"] == {"median": 1000, "min": 800, "max": 3000, "all": [1000, 800, 3000]}
    assert shown["cpu_us"] == {"worker": 150.0, "postgresql": 50.0, "all": 200.0}
    assert failed("absent", NOOP).document()["error"] == "not installed: no <network>"


@pytest.mark.parametrize(("done", "received"), [(9, 10), (10, 9), (9, None)])
def test_a_job_that_is_missing_anywhere_is_a_loss(done: int, received: int | None) -> None:
    with pytest.raises(LossDetected):
        balanced(10, done, received)


def test_requests_too_many_are_counted() -> None:
    assert balanced(10, 10, 12) == 2
    assert balanced(10, 10, None) == 0


def test_the_table_has_the_fastest_first_and_the_reason_of_who_is_missing_last() -> None:
    shown = "\n".join(lines(document(ENTRIES, OUTBOX, CONDITIONS)))
    places = [shown.index(name) for name in (f"{OUTBOX} 1.0", "quick 1.0", "lean 1.0", "absent")]
    assert places == sorted(places)
    assert "not installed: no <network>" in shown
    assert "0.25 x" in shown


def test_the_page_is_written_between_its_marks_alone(tmp_path: Path) -> None:
    page, plot = tmp_path / "bench.md", tmp_path / "bench.svg"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    found = document(ENTRIES, OUTBOX, CONDITIONS)
    for _ in range(2):
        write(found, page, plot)
    text = page.read_text(encoding="utf-8")
    assert text == "\n".join(["before", BEGIN, *section(found), END, "after", ""])
    assert plot.read_text(encoding="utf-8") == draw(found)


def test_the_page_has_the_marks_and_holds_what_the_results_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    results = PAGE.parents[1] / "bench" / "results" / "peers.json"
    told = "\n".join(section(json.loads(results.read_text(encoding="utf-8"))))
    assert f"{BEGIN}\n{told}\n{END}\n" in text


def test_the_plot_is_xml_with_a_bar_for_each_figure() -> None:
    root = ET.fromstring(draw(document(ENTRIES, OUTBOX, CONDITIONS)))  # noqa: S314 (our own text)
    bars = [one for one in root.iter() if one.tag.endswith("rect")]
    assert len(bars) == 2 * (3 + 2)
    width = float(root.attrib["width"])
    assert all(float(one.attrib["x"]) + float(one.attrib["width"]) < width for one in bars)
    assert "prefers-color-scheme: dark" in draw(document(ENTRIES, OUTBOX, CONDITIONS))


def test_peers_sign_what_our_verification_takes() -> None:
    data = job.body(7).encode()
    headers = job.signed(7, data)
    verified = verify(data, headers, format_secret(job.KEY), now=lambda: datetime.now(UTC))
    assert verified.id == "msg_7"
    assert len(data) == job.BODY_BYTES == len(job.body(12_345))


def test_stamps_are_counted_by_process(tmp_path: Path) -> None:
    from bench.peers.measure import _stamped

    assert _stamped(tmp_path) == (0, 0.0)
    stamps = job.Stamps(str(tmp_path))
    for _ in range(3):
        stamps.done()
    done, last = _stamped(tmp_path)
    assert done == 3
    assert last > 0


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: str(peer.name))
def test_every_peer_has_a_version_in_its_lock(peer: Peer) -> None:
    assert install.version_of(peer)[0].isdecimal()

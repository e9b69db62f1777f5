"""The short form: a seeded sample of the kinds and of the fault points, with a small load.

The full form is `make test-chaos`; its results stand in docs/faults.md.
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random

import pytest

from outbox.errors import ConfigurationError
from outbox.faults import STEPS as OUTSIDE
from outbox.faults import Fault, parse_fault
from tests.chaos import points as matrix
from tests.chaos.jobs import FOR_EVER, JOBS
from tests.chaos.kinds import KINDS
from tests.chaos.points import POINTS, STEPS, die_at
from tests.chaos.report import BEGIN, END, table, write_table
from tests.chaos.scene import Count, scene

STORE = Path(__file__).resolve().parents[2] / "outbox" / "store"
SLOW = {
    *("peek_filters", "try_filter", "disable_slow"),
    FOR_EVER,
}
"""What takes half a minute: in the full form alone."""
QUICK_KINDS = sorted(KINDS.keys() - SLOW)
QUICK_POINTS = [point for point in POINTS if point[2] not in SLOW]


@pytest.mark.parametrize("part", range(2))
def test_faults_lose_nothing_and_repeat_no_more_than_was_in_flight(seed: int, part: int) -> None:
    """I1, I8, I11: two kinds and three deaths at a step, drawn by the run's seed."""
    kinds = Random(seed).sample(QUICK_KINDS, 4)[part::2]
    points = Random(seed).sample(QUICK_POINTS, 6)[part::2]
    with scene(f"{seed}/{part}", lease_s=2.0, rate=40) as running:
        for name in kinds:
            running.count.add(1, KINDS[name](running), kills="SIGKILL" in name)
            running.recovered()
        for role, when, step in points:
            running.count.add(1, die_at(running, role, when, step), kills=True)
            running.recovered()
        count = running.finish()
        assert count.events > 100
        assert count.holds()


SENDING = {
    "run": ("dispatch.py", "upkeep.py", "retention.py", "replaying.py", "broadcasts.py"),
    "worker": ("attempts.py", "emails.py", "artifacts.py"),
}


@pytest.mark.parametrize("role", STEPS)
def test_every_statement_of_daemon_and_worker_is_a_step(role: str) -> None:
    """A statement that is added to them must get a fault point in the matrix."""
    code = "".join((STORE / module).read_text() for module in SENDING[role])
    sent = re.findall(r"(?:\.run|\.send|\._run|_one|_drain)\(\s*\"(\w+)\"", code)
    assert len(set(sent)) > 5
    elsewhere = matrix.CUT_OFF | matrix.BROADCAST | matrix.ASIDE
    assert set(sent) <= STEPS[role].keys() | elsewhere
    assert "raw.execute(statement(" not in code, "sent past the fault points"


def test_every_step_outside_the_database_is_in_the_matrix() -> None:
    assert set(OUTSIDE) <= STEPS["run"].keys() | STEPS["worker"].keys()


def test_a_fault_names_a_step_and_a_pass() -> None:
    assert parse_fault("after:settle:3") == Fault("after:settle", 3)
    assert parse_fault("before:request") == Fault("before:request", 1)


@pytest.mark.parametrize("text", ["settle", "after:settle:0", "during:settle", "after:settle:x"])
def test_what_is_not_a_fault_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"OUTBOX_TEST_FAULT.*after:settle:3"):
        parse_fault(text)


def test_an_unknown_step_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match="no step 'setle'"):
        parse_fault("after:setle")


def test_a_broken_promise_is_seen() -> None:
    kept = Count(duplicates=3, bound=3, mails_again=1, mails_bound=1, hints_again=9, faults=1)
    assert kept.holds()
    names = "lost duplicates wrong strangers out_of_order mails_again documents_again"
    for name in [*names.split(), "messages_again", "hints_again"]:
        assert not Count(**{name: 1}).holds(), name  # type: ignore[arg-type]


def test_the_table_replaces_what_stood_between_its_markers(tmp_path: Path) -> None:
    counts = {name: Count(faults=2, events=1000, recoveries_s=[1.0, 2.0]) for name in JOBS}
    document = tmp_path / "faults.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(counts, "7", 2, 80, document)
    text = document.read_text()
    assert table(counts) in text
    assert "SEED=7" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")

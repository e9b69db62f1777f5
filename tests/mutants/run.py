"""Breaks the engine in every stated way and shows that a test fails for each.

`python -m tests.mutants.run` runs all of them, several at once, in copies of the tree, and exits 1
unless every mutant is caught; with `--write` the rows of docs/mutants.md of those that ran are then
written anew.
First an unbroken copy proves that the tests pass where nothing is broken.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.copies import Copy
from tests.mutants.mutant import Mutant, Rotten
from tests.mutants.report import write
from tests.mutants.table import MUTANTS
from tests.mutants.verdict import PASSED, Verdict, judge, order

SEED = 1
LIMIT_S = 300.0
"""What one mutant may take, servers and all: on a busy machine too, ten times what most take."""
PROOF_LIMIT_S = 1800.0
JOBS_MAX = 4


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one mutant."""

    mutant: Mutant
    verdict: Verdict


class Workshop:
    """Copies of the tree, one for each mutant that runs at the same time."""

    def __init__(self, folder: Path, jobs: int, seed: int) -> None:
        self._seed = seed
        self._jobs = jobs
        self._free: SimpleQueue[Copy] = SimpleQueue()
        for number in range(jobs):
            self._free.put(Copy(folder / str(number)))

    def prove(self, mutants: Sequence[Mutant]) -> str | None:
        """Run every named test in an unbroken copy; None, or what pytest said where one failed."""
        tests = list(dict.fromkeys(test for mutant in mutants for test in order(mutant)))
        copy = self._free.get()
        try:
            jobs = min(self._jobs, len(tests))
            spread = ("-n", str(jobs), "--dist", "worksteal") if jobs > 1 else ()
            run = copy.pytest(tests, self._seed, PROOF_LIMIT_S, *spread)
        finally:
            self._free.put(copy)
        if run.code == PASSED:
            return None
        return "ran out of time" if run.code is None else run.output.strip()[-4000:]

    def run(self, mutant: Mutant, limit_s: float) -> Result:
        """Break one copy and run the mutant's tests there until one fails."""
        copy = self._free.get()
        began = time.monotonic()
        try:
            with copy.broken(mutant):
                verdict = judge(mutant, copy.pytest(order(mutant), self._seed, limit_s, "-x"))
        except Rotten as error:
            verdict = Verdict("broken", str(error))
        finally:
            self._free.put(copy)
        return Result(mutant, replace(verdict, seconds=time.monotonic() - began))

    def run_all(self, mutants: Sequence[Mutant], limit_s: float) -> list[Result]:
        """Run them all, as many at once as there are copies; in the order of the table."""
        with ThreadPoolExecutor(self._jobs) as pool:
            futures: dict[Future[Result], int] = {
                pool.submit(self.run, mutant, limit_s): n for n, mutant in enumerate(mutants)
            }
            found: dict[int, Result] = {}
            for future in as_completed(futures):
                found[futures[future]] = result = future.result()
                say(_line(result))
        return [found[n] for n in sorted(found)]


def say(text: str) -> None:
    """Talk goes to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _line(result: Result) -> str:
    verdict = result.verdict
    how = f" | {verdict.how}" if verdict.how else ""
    return f"{verdict.name:9}{verdict.seconds:6.1f} s  {result.mutant.name}: {verdict.by}{how}"


def cores() -> int:
    """How many cores this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def chosen(names: Sequence[str], tests: Sequence[str]) -> list[Mutant]:
    """The mutants named, all without a name; with other tests where some are given."""
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        raise SystemExit(f"no such mutant: {', '.join(sorted(unknown))}")
    found = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    return [replace(mutant, tests=tuple(tests)) for mutant in found] if tests else found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants.run", description=__doc__)
    parser.add_argument("names", nargs="*", help="mutants to run; all by default")
    parser.add_argument("--jobs", type=int, default=min(JOBS_MAX, cores()))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for one mutant")
    parser.add_argument(
        "--tests", nargs="+", default=(), help="run these instead of the named ones"
    )
    parser.add_argument("--unproved", action="store_true", help="for work on the table: no proof")
    parser.add_argument("--write", action="store_true", help="write their rows of docs/mutants.md")
    given = parser.parse_args(arguments)
    mutants = chosen(given.names, given.tests)
    folder = Path(tempfile.mkdtemp(prefix="outbox-mutants-"))
    try:
        return _run(
            Workshop(folder, max(1, min(given.jobs, len(mutants))), given.seed), given, mutants
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(workshop: Workshop, given: argparse.Namespace, mutants: Sequence[Mutant]) -> int:
    began = time.monotonic()
    if not given.unproved:
        failure = workshop.prove(mutants)
        if failure is not None:
            say(f"the tests do not pass where nothing is broken:\n{failure}")
            return 1
        say(f"unbroken, all tests pass; {len(mutants)} mutants, seed {given.seed}")
    results = workshop.run_all(mutants, given.limit)
    bad = [result for result in results if not result.verdict.good]
    took_s = time.monotonic() - began
    say(f"{len(results) - len(bad)} of {len(results)} mutants caught in {took_s:.0f} s")
    for result in bad:
        say(_line(result))
    if bad or given.unproved:
        return 1
    if given.write:
        found = [(result.mutant, result.verdict) for result in results]
        write(found, [mutant.name for mutant in MUTANTS])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m bench.peers`: Outbox and its peers beside each other; writes figures, page and plot.

Installs the peers first. The order of systems turns from run to run, so that what else the machine
does meets all alike. A system that fails has its reason in the place of its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from bench.peers.adapters.job import BODY_BYTES
from bench.peers.install import install, runtime_of, version_of
from bench.peers.measure import Ground, run_outbox, run_peer
from bench.peers.page import lines, write
from bench.peers.results import KINDS, Entry, Kind, document
from bench.peers.systems import ALONE, OURS, OUTBOX, PEERS, ROOT, Peer
from outbox import __version__
from outbox.bench import deliveries
from outbox.bench.report import machine, number
from outbox.bench.rig import Asked, open_rig
from outbox.errors import OutboxError
from outbox.rhythm import RelayConfig
from outbox.worker import WorkerConfig
from processors.kinds import specify

RESULTS = ROOT / "bench" / "results" / "peers.json"
FULL, QUICK = (10_000, 3), (4_000, 1)
LIMIT_S = 3 * 3600.0
CORES_FOR_FOUR = 4
EXIT_INTERRUPTED = 130


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options. Ends the program where they are wrong."""
    names = [*OURS, *(peer.name for peer in PEERS)]
    parser = argparse.ArgumentParser(prog="make bench-peers PEERS_ARGS=...", allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="4,000 jobs, one run; rough")
    parser.add_argument("--jobs", type=int, help="jobs of one run; slow peers do a share of them")
    parser.add_argument("--runs", type=int, help="how often; the median counts")
    parser.add_argument("--only", choices=names, action="append", help="and write no file")
    parser.add_argument("--kind", choices=[kind.name for kind in KINDS], action="append")
    options = parser.parse_args(arguments)
    for name in ("jobs", "runs"):
        if (given := getattr(options, name)) is not None and given < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def main(arguments: Sequence[str]) -> int:
    """Measure and write; returns the exit code."""
    options = parse(arguments)
    jobs, runs = QUICK if options.quick else FULL
    jobs, runs = options.jobs or jobs, options.runs or runs
    told = machine()
    peers = [peer for peer in PEERS if options.only is None or peer.name in options.only]
    kinds = [kind for kind in KINDS if _wanted(kind, options.kind, told["cores"])]
    say("the peers are installed where they are not")
    ours = [name for name in OURS if options.only is None or name in options.only]
    entries = _entries(peers, kinds, jobs, ours)
    conditions: dict[str, Any] = {
        "form": _form(options),
        "measured": f"{datetime.now(UTC):%Y-%m-%d}",
        "runs": runs,
        "machine": {name: value for name, value in told.items() if name != "load_before"},
    }
    began_at = monotonic()
    try:
        with open_rig(Asked(), specify, broker=True, limit_s=LIMIT_S) as rig:
            port, receiver, tally = deliveries.receive(rig)
            conditions |= rig.conditions() | _common(receiver)
            loads = _run_all(Ground(rig, port, tally, specify), entries, runs)
    except KeyboardInterrupt:
        say("interrupted; nothing was written")
        return EXIT_INTERRUPTED
    except OutboxError as error:
        say(str(error))
        return error.exit_code
    conditions["load"] = {"min": min(loads, default=0.0), "max": max(loads, default=0.0)}
    conditions["duration_s"] = round(monotonic() - began_at)
    found = document(entries, OUTBOX, conditions, ALONE)
    sys.stdout.write("\n".join(lines(found)) + "\n")
    if options.only is None and options.kind is None:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        write(found)
    return 0


def say(text: str) -> None:
    """To whoever waits."""
    sys.stderr.write(text + "\n")


def _form(options: argparse.Namespace) -> str:
    if (options.jobs, options.runs) != (None, None):
        return "as asked"
    return "quick" if options.quick else "full"


def _wanted(kind: Kind, asked: Sequence[str] | None, cores: int) -> bool:
    """Four processes are measured where there are cores for them, or where it is asked for."""
    if asked:
        return kind.name in asked
    return kind.processes == 1 or cores >= CORES_FOR_FOUR


def _entries(
    peers: Sequence[Peer], kinds: Sequence[Kind], jobs: int, ours: Sequence[str]
) -> list[Entry]:
    missing = install(peers)
    found = []
    for kind in kinds:
        found += [
            Entry(name, __version__, OURS[name], kind, jobs * kind.times)
            for name in ours
            if name != ALONE or kind.processes == 1
        ]
        for peer in peers:
            entry = Entry(
                peer.name, version_of(peer), peer.settings, kind, peer.jobs(jobs, kind),
                error=missing.get(peer.name),
            )  # fmt: skip
            found.append(entry)
    return found


def _run_all(ground: Ground, entries: list[Entry], runs: int) -> list[float]:
    """Measure every entry so many times, in place; the load average before each of them."""
    loads = []
    for turn in range(runs):
        for step in range(len(entries)):
            # Each run begins with another system.
            index = (step + turn) % len(entries)
            if entries[index].error is None:
                loads.append(round(os.getloadavg()[0], 1))
                entries[index] = _run_once(ground, entries[index])
    return loads


def _run_once(ground: Ground, entry: Entry) -> Entry:
    try:
        if entry.system in OURS:
            run = run_outbox(ground, entry.kind, entry.jobs, broker=entry.system != ALONE)
        else:
            peer = next(one for one in PEERS if one.name == entry.system)
            run = run_peer(ground, peer, entry.kind, entry.jobs)
    except OutboxError as error:
        say(f"{entry.kind.name} {entry.system}: {error}")
        return replace(entry, error=str(error))
    say(
        f"{entry.kind.name} {entry.system}: {number(run.per_s)}/s,"
        f" {number(sum(run.cpu_us.values()))} us of processor time each"
    )
    return replace(entry, runs=(*entry.runs, run))


def _common(receiver: str) -> dict[str, Any]:
    """What holds for all entries."""
    return {
        "payload_bytes": BODY_BYTES,
        "receiver": receiver,
        "batch": {
            "outbox_claimed_at_most": RelayConfig().batch,
            "outbox_settled_at_most": WorkerConfig().settle_max,
            "peers": "see settings",
        },
        "python": platform.python_version(),
        "node": runtime_of("node"),
        "clock": "from a tenth of the jobs done to four fifths; jobs lie ready before",
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

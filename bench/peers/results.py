"""What was found: runs, entries, ratios, and the one document of them all. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from outbox.bench.report import spread


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured: the `job`, done by so many worker processes."""

    name: str
    job: str
    processes: int
    about: str
    times: int = 1
    """So many times the jobs, where they are over so soon that batches would show."""

    @property
    def posts(self) -> bool:
        """Whether a receiver is asked what came."""
        return self.job == "webhook"


KINDS = (
    Kind("webhooks-1", "webhook", 1, "POST of a signed JSON of 1 kB, one worker process"),
    Kind("webhooks-4", "webhook", 4, "the same, four worker processes"),
    Kind("noop-1", "noop", 1, "a job that does nothing, one worker process", times=3),
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run: jobs a second; microseconds of processor time a job, by part; and how many
    requests (or jobs) there were beyond one each."""

    per_s: float
    cpu_us: Mapping[str, float]
    extra: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """A system and a kind of job: its runs, or why there are none."""

    system: str
    version: str
    settings: str
    kind: Kind
    jobs: int
    runs: tuple[Run, ...] = ()
    error: str | None = None

    @property
    def per_s(self) -> float:
        """The median rate, of at least one run."""
        return median(run.per_s for run in self.runs)

    @property
    def cpu_us(self) -> dict[str, float]:
        """By part the median, and the median of all parts together."""
        parts = {
            name: round(median(run.cpu_us[name] for run in self.runs), 1)
            for name in self.runs[0].cpu_us
        }
        return parts | {"all": round(median(sum(run.cpu_us.values()) for run in self.runs), 1)}

    def document(self) -> dict[str, Any]:
        """One entry of the file."""
        shown: dict[str, Any] = {
            "system": self.system,
            "job": self.kind.name,
            "version": self.version,
            "settings": self.settings,
        }
        if self.error is not None or not self.runs:
            return shown | {"error": self.error or "not measured"}
        return shown | {
            "processes": self.kind.processes,
            "jobs": self.jobs,
            "runs": len(self.runs),
            "per_s": spread([run.per_s for run in self.runs]),
            "cpu_us": self.cpu_us,
            "duplicates": max(run.extra for run in self.runs),
        }


def ratios(entries: Sequence[Entry], ours: str, alone: str = "") -> dict[str, Any]:
    """By kind: our rate and our processor time over each peer's, and over the best of them; those
    over the best also for what we are `alone`, which is no peer."""
    found: dict[str, Any] = {}
    for kind in {entry.kind.name: None for entry in entries}:
        good = [one for one in entries if one.kind.name == kind and one.error is None and one.runs]
        mine = next((one for one in good if one.system == ours), None)
        peers = [one for one in good if one.system not in (ours, alone)]
        if mine is None or not peers:
            continue
        fastest = max(peers, key=lambda one: one.per_s)
        leanest = min(peers, key=lambda one: one.cpu_us["all"])
        found[kind] = {
            "per_s": {
                "best_peer": fastest.system,
                "to_best_peer": _ratio(mine.per_s, fastest.per_s),
                "to": {one.system: _ratio(mine.per_s, one.per_s) for one in peers},
            },
            "cpu_us": {
                "best_peer": leanest.system,
                "to_best_peer": _ratio(mine.cpu_us["all"], leanest.cpu_us["all"]),
                "to": {one.system: _ratio(mine.cpu_us["all"], one.cpu_us["all"]) for one in peers},
            },
        }
        if (one := next((one for one in good if one.system == alone), None)) is not None:
            found[kind]["alone"] = {
                "per_s_to_best_peer": _ratio(one.per_s, fastest.per_s),
                "cpu_us_to_best_peer": _ratio(one.cpu_us["all"], leanest.cpu_us["all"]),
            }
    return found


def _ratio(above: float, below: float) -> float:
    return round(above / below, 2) if below else 0.0


def document(
    entries: Sequence[Entry], ours: str, conditions: Mapping[str, Any], alone: str = ""
) -> dict[str, Any]:
    """The whole file."""
    return {
        "conditions": dict(conditions),
        "entries": [entry.document() for entry in entries],
        "ratios": ratios(entries, ours, alone),
    }

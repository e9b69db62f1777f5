"""What a scenario found, as one document and as a few lines for people.

Pure but for reading what the machine is made of.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """A number to reach: `at_least` or, without it, at most so much of `unit`."""

    number: float
    unit: str
    at_least: bool = True

    def met(self, value: float) -> bool:
        """Whether a value is good enough."""
        return value >= self.number if self.at_least else value <= self.number

    @property
    def text(self) -> str:
        """For people: `>= 1,000 messages/s`."""
        return f"{'>=' if self.at_least else '<='} {number(self.number)} {self.unit}"


@dataclass(frozen=True, slots=True)
class Found:
    """What a family returns: the value of the scenario's goal, whether everything else that it
    asks for holds, the conditions of its own, and the rest."""

    value: float
    holds: bool
    conditions: Mapping[str, Any]
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Result:
    """One scenario, measured."""

    scenario: str
    goal: Goal
    found: Found
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the goal is reached and what belongs to it holds."""
        return self.goal.met(self.found.value) and self.found.holds

    def document(self) -> dict[str, Any]:
        """The one object of `--json`."""
        return {
            "scenario": self.scenario,
            "value": self.found.value,
            "unit": self.goal.unit,
            "goal": self.goal.number,
            "met": self.met,
            "conditions": {**self.conditions, **self.found.conditions},
            "detail": dict(self.found.detail),
        }

    def lines(self) -> list[str]:
        """The same for people."""
        verdict = "met" if self.met else "not met"
        head = f"{self.scenario}: {number(self.found.value)} {self.goal.unit}"
        shown = self.document()
        return [
            f"{head} (goal {self.goal.text}: {verdict})",
            *_section("detail", shown["detail"]),
            *_section("conditions", shown["conditions"]),
        ]


def _section(title: str, values: Mapping[str, Any]) -> list[str]:
    flat = dict(_flat("", values))
    width = max(map(len, flat), default=0)
    return ["", title, *(f"  {name.ljust(width)}  {text}" for name, text in flat.items())]


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(f"{prefix}{name}.", value)
        else:
            rows.append((f"{prefix}{name}", _cell(value)))
    return rows


def _cell(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return number(value)
        case list() | tuple():
            return " ".join(_cell(item) for item in value)
        case _:
            return str(value)


def number(value: float) -> str:
    """As people read it: three significant digits below a thousand, thousands by comma."""
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


# -- arithmetic -----------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 1) -> dict[str, Any]:
    """Median, extremes and all values, of at least one."""
    return {
        "median": round(median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
        "all": [round(value, digits) for value in values],
    }


def percentile(values: Sequence[float], share: float) -> float:
    """By nearest rank, of at least one value."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The rise of y for each x, by least squares; 0 of fewer than two different x."""
    if not points:
        return 0.0
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    below = sum((x - x_mean) ** 2 for x, _ in points)
    above = sum((x - x_mean) * (y - y_mean) for x, y in points)
    return above / below if below else 0.0


# -- the machine ----------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What this runs on, and how busy it was with other things just now (the load average)."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 1),
    }


def _cores() -> int:
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None

"""The figures for people: a table for the terminal, and the section and the plot of the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.peers.plot import draw
from bench.peers.results import KINDS
from bench.peers.systems import ROOT
from outbox.bench.report import number

PAGE = ROOT / "docs" / "bench.md"
PLOT = ROOT / "docs" / "bench.svg"
BEGIN, END = "<!-- peers -->", "<!-- end of peers -->"
HEAD = (
    "system",
    "jobs/s",
    "runs: from to",
    "CPU us a job",
    "of these",
    "Outbox's rate to it",
    "Outbox's CPU to it",
)


def lines(document: Mapping[str, Any]) -> list[str]:
    """For a terminal."""
    shown: list[str] = []
    for name, rows in _tables(document).items():
        table = [HEAD, *rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
        shown += ["", f"{name}: {_about(name)}"]
        for row in table:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            shown.append("  ".join(padded).rstrip())
    return shown


def write(document: Mapping[str, Any], page: Path = PAGE, plot: Path = PLOT) -> None:
    """Put the section between its marks in the page, and the plot beside it."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    text = "\n".join([before + BEGIN, *section(document), END]) + rest.partition(END)[2]
    page.write_text(text, encoding="utf-8")
    plot.write_text(draw(document), encoding="utf-8")


def section(document: Mapping[str, Any]) -> list[str]:
    """The same in Markdown."""
    shown = [heading(document["conditions"]), "", "![Outbox and its peers](bench.svg)"]
    for name, rows in _tables(document).items():
        shown += ["", f"`{name}`: {_about(name)}.", ""]
        shown += [_row(HEAD), "|---|" + "---:|---|---:|---|---:|---:|"]
        shown += [_row(row) for row in rows]
    return [*shown, "", *_settings(document["entries"])]


def heading(conditions: Mapping[str, Any]) -> str:
    """What holds for all of it, in one paragraph."""
    machine, servers = conditions["machine"], conditions["servers"]
    load = conditions["load"]
    settings = ", ".join(f"`{k}` {v}" for k, v in conditions["postgresql"].items())
    return (
        f"{conditions['measured']}, form `{conditions['form']}`, median of {conditions['runs']},"
        f" the systems in turn: {machine['cores']} cores of {machine['cpu']},"
        f" {number(machine['memory_gb'])} GB, {machine['system']};"
        f" load average before a run, what the bench itself does included,"
        f" {number(load['min'])} to {number(load['max'])}.\n"
        f"PostgreSQL {servers['postgresql']} ({settings}), Redis {servers['redis']},"
        f" receiver {conditions['receiver']}, body {number(conditions['payload_bytes'])} bytes;"
        f" Python {conditions['python']}, Node.js {conditions['node']}."
    )


def _about(name: str) -> str:
    return next((kind.about for kind in KINDS if kind.name == name), name)


def _tables(document: Mapping[str, Any]) -> dict[str, list[tuple[str, ...]]]:
    """By kind, its rows: the fastest first, at the end those that could not be measured."""
    tables: dict[str, list[tuple[str, ...]]] = {}
    for name in {entry["job"]: None for entry in document["entries"]}:
        entries = [entry for entry in document["entries"] if entry["job"] == name]
        entries.sort(key=lambda entry: -entry["per_s"]["median"] if "per_s" in entry else 0.0)
        ratios = document["ratios"].get(name, {})
        tables[name] = [_cells(entry, ratios) for entry in entries]
    return tables


def _cells(entry: Mapping[str, Any], ratios: Mapping[str, Any]) -> tuple[str, ...]:
    system = f"{entry['system']} {entry['version']}"
    if "error" in entry:
        return (system, "-", entry["error"], "-", "", "", "")
    rates, cpu = entry["per_s"], dict(entry["cpu_us"])
    everything = cpu.pop("all")
    parts = ", ".join(f"{name} {number(value)}" for name, value in cpu.items() if value)
    return (
        system,
        number(rates["median"]),
        f"{entry['runs']}: {number(rates['min'])} to {number(rates['max'])}",
        number(everything),
        parts,
        _times(ratios, "per_s", entry["system"]),
        _times(ratios, "cpu_us", entry["system"]),
    )


def _times(ratios: Mapping[str, Any], of: str, system: str) -> str:
    ratio = ratios.get(of, {}).get("to", {}).get(system)
    return "" if ratio is None else f"{ratio:.2f} x"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _settings(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What was chosen for each, once."""
    chosen = {entry["system"]: entry["settings"] for entry in entries}
    return [f"* {system}: {text}." for system, text in chosen.items()]

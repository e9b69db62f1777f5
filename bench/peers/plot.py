"""The plot of the docs: bars as SVG, drawn by plain text. Follows the reader's light or dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bench.peers.systems import OURS
from outbox.bench.report import number

WIDTH = 860
MARGIN, GAP = 20, 40
TITLE, ROW, BAR = 44, 26, 16
NAMES, VALUES = 112, 64
PANEL = (WIDTH - 2 * MARGIN - GAP) // 2
LINE = 12
TITLES = {
    "webhooks-1": "Signed webhooks, one worker process",
    "webhooks-4": "Signed webhooks, four worker processes",
    "noop-1": "A job that does nothing, one worker process",
}
STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-weight: 600 } .unit, .note { fill: #59636e; font-size: 12px }
.bar { fill: #b6bfc9 } .ours { fill: #0969da } .own { font-weight: 600 }
.axis { stroke: #d1d9e0 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .unit, .note { fill: #9198a1 }
  .bar { fill: #545d68 } .ours { fill: #4493f8 } .axis { stroke: #3d444d }
}
""".strip()


def draw(document: Mapping[str, Any]) -> str:
    """The whole picture: a line of two panels for each kind of job."""
    parts, y = [], MARGIN
    for name in {entry["job"]: None for entry in document["entries"]}:
        good = [one for one in document["entries"] if one["job"] == name and "per_s" in one]
        if not good:
            continue
        rates = [(one["system"], float(one["per_s"]["median"])) for one in good]
        costs = [(one["system"], float(one["cpu_us"]["all"])) for one in good]
        title = TITLES.get(name, name)
        rates.sort(key=lambda one: -one[1])
        costs.sort(key=lambda one: one[1])
        parts.append(panel(MARGIN, y, title, "jobs a second, more is better", rates))
        unit = "us of processor time a job, less is better"
        parts.append(panel(MARGIN + PANEL + GAP, y, "", unit, costs))
        y += TITLE + ROW * len(good) + MARGIN
    conditions = document["conditions"]
    parts.append(f'<text class="note" x="{MARGIN}" y="{y}">{escape(_note(conditions))}</text>')
    height = y + MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}"'
        f' viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Outbox and its peers">\n'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def panel(x: int, y: int, title: str, unit: str, values: Sequence[tuple[str, float]]) -> str:
    """Bars of one measure, in the order given, with their values."""
    longest = max(value for _, value in values)
    left, room = x + NAMES, PANEL - NAMES - VALUES
    bottom = y + TITLE + ROW * len(values)
    parts = [
        _text(x, y + LINE, "title", title),
        _text(left, y + LINE + 18, "unit", unit),
        f'<line class="axis" x1="{left}" y1="{y + TITLE - 4}" x2="{left}" y2="{bottom}"/>',
    ]
    for place, (system, value) in enumerate(values):
        top, ours = y + TITLE + ROW * place, system in OURS
        length = max(1.0, room * value / longest) if longest else 1.0
        base, weight = top + LINE, "own" if ours else "name"
        parts += [
            _text(left - 8, base, weight, system, anchor="end"),
            _bar(left, top, length, "bar ours" if ours else "bar"),
            _text(round(left + length + 6), base, weight, number(round(value))),
        ]
    return "\n".join(part for part in parts if part)


def _bar(x: int, y: int, length: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>'


def _text(x: int, y: int, kind: str, text: str, *, anchor: str = "start") -> str:
    if not text:
        return ""
    return f'<text class="{kind}" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _note(conditions: Mapping[str, Any]) -> str:
    machine = conditions["machine"]
    return (
        f"{conditions['measured']}, form {conditions['form']}, median of {conditions['runs']};"
        f" {machine['cores']} cores, load"
        f" {number(conditions['load']['min'])} to {number(conditions['load']['max'])};"
        f" PostgreSQL {conditions['servers']['postgresql']}"
    )

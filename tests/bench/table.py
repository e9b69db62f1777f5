"""Measures every scenario and writes the table of docs/bench.md: `make bench-table`.

`python -m tests.bench.table [--at-most SECONDS] [OPTION OF THE BENCH...]`: what takes longer is
measured in the quick form, and its row says so. A scenario that fails stands in the table with what
it said.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from outbox.bench.report import number
from outbox.bench.scenarios import SCENARIOS, Scenario

PAGE = Path(__file__).parents[2] / "docs" / "bench.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"
HEAD = "| scenario | value | goal | met | runs, and their extremes | beside it |"
RULE = "|---|---|---|---|---|---|"


def measure(scenario: Scenario, options: list[str]) -> dict[str, Any]:
    """The document of one scenario, or `error`."""
    command = [sys.executable, "-P", "-m", "cli", "bench", scenario.name, "--json", *options]
    done = subprocess.run(command, check=False, capture_output=True)
    if done.returncode:
        return {"error": done.stderr.decode().strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(scenario: Scenario, found: dict[str, Any]) -> str:
    """One line of the table."""
    if "error" in found:
        return f"| `{scenario.name}` | {found['error']} | {scenario.goal.text} | no | | |"
    value = f"{number(found['value'])} {found['unit']}"
    met = "yes" if found["met"] else "no"
    quick = ", quick" if found["conditions"]["form"] == "quick" else ""
    return (
        f"| `{scenario.name}`{quick} | {value} | {scenario.goal.text} | {met} |"
        f" {spread_of(found)} | {beside(found['detail'])} |"
    )


def spread_of(found: dict[str, Any]) -> str:
    """How many runs there were, and their extremes."""
    detail = found["detail"]
    for key in ("drain_per_s", "p99_ms", "ratio"):
        if key in detail:
            runs = found["conditions"]["runs"]
            return f"{runs}: {number(detail[key]['min'])} to {number(detail[key]['max'])}"
    return str(found["conditions"]["runs"])


def beside(detail: dict[str, Any]) -> str:
    """What else was seen."""
    told = []
    if steady := detail.get("sustained"):
        grows = (
            "holds" if steady["holds"] else f"grows by {number(steady['backlog_growth_per_s'])}/s"
        )
        told.append(f"at {number(steady['offered_per_s'])}/s the backlog {grows}")
    if cpu := detail.get("cpu_us_each"):
        told.append("CPU us each: " + ", ".join(f"{k} {number(v)}" for k, v in cpu.items()))
    if memory := detail.get("rss_mb_max"):
        told.append("MB: " + ", ".join(f"{k} {number(v)}" for k, v in memory.items() if v))
    if alone := detail.get("pool_alone"):
        told.append(
            f"children alone {number(alone['one_page_per_s'])}/s,"
            f" 50 lines p50 {number(alone['rows_50_ms']['p50'])} ms"
        )
    if half := detail.get("p50_ms"):
        goal = f" (goal {number(half['goal'])})" if "goal" in half else ""
        told.append(f"p50 {number(half['median'])} ms{goal}")
    if counted := detail.get("statements_per_s"):
        told.append(f"{number(counted['daemon'])} statements/s (goal < {number(counted['goal'])})")
    if "asleep_per_s" in detail:
        told.append(
            f"{number(detail['with_capture_per_s']['median'])}/s against"
            f" {number(detail['without_per_s']['median'])}/s;"
            f" {number(detail['asleep_per_s'])}/s with nobody awake"
        )
    return "; ".join(told + under_load(detail))


def under_load(detail: dict[str, Any]) -> list[str]:
    """What was seen of backlogs, of what is held open, of what lasts, of many processes."""
    told = []
    if drained := detail.get("backlog_per_s"):
        told.append(f"{detail['samples']} fresh beside {number(drained['median'])}/s")
    if ratios := detail.get("ratios"):
        by_name = (f"{k} {number(v['median'])}" for k, v in ratios.items())
        plan = "the same" if detail["same_plan"]["met"] else "not the same"
        told.append(f"{', '.join(by_name)}; plans {plan}")
    if throughput := detail.get("throughput_ratio"):
        with_it, without = detail["held"], detail["without"]
        told.append(
            f"p99 {number(with_it['p99_ms'])} ms against {number(without['p99_ms'])} ms;"
            f" throughput {number(throughput['median'])} of that without; the rest was gone"
            f" {number(detail['backlog_gone_s']['max'])} s after the release"
        )
        if cpu := with_it["cpu_us_each"]:
            before = without["cpu_us_each"]["all"]
            told.append(f"CPU us each {number(cpu['all'])} against {number(before)}")
        told += disk_of("held", with_it) + disk_of("without", without)
    if tables := detail.get("tables"):
        grown = (f"{k} {number(v['grown'])}" for k, v in detail["memory_mb"].items())
        most = (f"{k} {number(v['bytes_max'] / 1e6)} of {number(v['bound'] / 1e6)}"
                for k, v in tables.items())  # fmt: skip
        told.append(f"MB grown: {', '.join(grown)}; MB of tables at most: {', '.join(most)}")
        told.append(f"{number(detail['log_bytes_each'])} bytes of log each")
        told += disk_of("meanwhile", detail)
    if rates := detail.get("rate_per_s"):
        told.append(", ".join(f"{k[3:]}: {number(v['median'])}/s" for k, v in rates.items()))
    return told


def disk_of(when: str, detail: dict[str, Any]) -> list[str]:
    """How long the disk took by itself, where that is known."""
    if (disk := detail["disk_ms"]) is None:
        return []
    p99, longest = number(disk["p99"]), number(disk["max"])
    return [f"{when}, a write to the disk p99 {p99} ms, at most {longest}"]


def main(options: list[str]) -> None:
    """Measure all, one after the other, and write the table."""
    longest_s = float("inf")
    if options[:1] == ["--at-most"]:
        longest_s, options = float(options[1]), options[2:]
    found = {}
    for scenario in SCENARIOS:
        form = ["--quick"] if scenario.about_s > longest_s else []
        found[scenario] = measure(scenario, [*options, *form])
        print(row(scenario, found[scenario]), flush=True)  # noqa: T201 (whoever waits wants to see)
    good = [one["conditions"] for one in found.values() if "error" not in one]
    table = [heading(good), "", HEAD, RULE, *(row(*one) for one in found.items())]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    text = "\n".join([before + BEGIN, *table, END]) + rest.partition(END)[2]
    PAGE.write_text(text, encoding="utf-8")


def heading(conditions: list[dict[str, Any]]) -> str:
    """What holds for the whole table."""
    if not conditions:
        return "Nothing could be measured."
    first = conditions[0]
    machine, servers = first["machine"], first["servers"]
    loads = [one["machine"]["load_before"] for one in conditions]
    return (
        f"{datetime.now().astimezone():%B %Y}, form `{first['form']}`: {machine['cores']} cores of"
        f" {machine['cpu']}, {number(machine['memory_gb'])} GB, {platform.system()},"
        f" Python {platform.python_version()}, outbox {first['outbox']},"
        f" PostgreSQL {servers['postgresql']}; load of the machine before each:"
        f" {min(loads)} to {max(loads)}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])

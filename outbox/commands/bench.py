"""`outbox bench`: lists what can be measured, measures one thing, and says what came of it.

Owns the signals while it runs. Reads no setting of the environment: a bench must not load
anybody's database by accident.
"""

from __future__ import annotations

import platform
import signal
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_json,
    print_rows,
    say,
)
from outbox.errors import ConfigurationError, UsageError

if TYPE_CHECKING:
    from outbox.bench.scenarios import Scenario

EXIT_TERMINATED = 143


@click.command()
@click.argument("name", required=False)
@click.option("--quick", is_flag=True, help="A shorter form, whose figures are rough.")
@click.option("--events", type=click.IntRange(1, 10_000_000), help="Events of one run.")
@click.option("--runs", type=click.IntRange(1, 100), help="How often to repeat; 3 by default.")
@click.option(
    "--seconds", type=click.FloatRange(0.5, 3600), help="How long what is offered steadily lasts."
)
@click.option("--broker-url", metavar="URL", help="A Redis to use in place of an embedded one.")
@json_option
@pass_wiring
def bench(
    wiring: Wiring,
    name: str | None,
    quick: bool,
    events: int | None,
    runs: int | None,
    seconds: float | None,
    broker_url: str | None,
    as_json: bool,
) -> None:
    """Measure how fast this machine is; without NAME, list what can be measured.

    Everything is embedded and ends with the bench. --database-url names a server to use instead:
    a database is made there and dropped; no other one is touched. Settings of the environment are
    not read. Figures are told only if every event is accounted for; otherwise the exit code is 13.
    """
    from outbox.bench.rig import Asked
    from outbox.bench.scenarios import SCENARIOS, find_scenario, run_scenario

    if "config" in wiring.flags:
        raise UsageError("the bench brings its own settings; it takes no --config")
    if name is None:
        rows = [_row(one) for one in SCENARIOS]
        print_json(rows) if as_json else print_rows(
            rows, ("scenario", "goal", "about_s", "measures")
        )
        return
    scenario = find_scenario(name)
    if broker_url is not None and not broker_url.startswith(("redis://", "rediss://")):
        raise UsageError("--broker-url must be a redis:// URL")
    database_url = wiring.flags.get("database_url")
    if database_url is not None and "\n" in database_url:
        raise UsageError("--database-url names one server")
    asked = Asked(quick, events, runs, seconds, database_url, broker_url)
    _require_linux_or_mac()
    about_s = scenario.about_s_quick if quick else scenario.about_s
    say(f"{name}: takes about {about_s} s, at most {scenario.limit_s(asked):.0f} s")
    signal.signal(signal.SIGTERM, _terminated)
    from outbox import __version__

    result = run_scenario(scenario, asked, wiring.specify, __version__)
    print_json(result.document()) if as_json else click.echo("\n".join(result.lines()))


def _row(scenario: Scenario) -> dict[str, Any]:
    return {
        "scenario": scenario.name,
        "goal": scenario.goal.text,
        "about_s": scenario.about_s,
        "measures": scenario.about,
    }


def _require_linux_or_mac() -> None:
    if platform.system() == "Windows":
        raise ConfigurationError("the bench needs Linux or macOS")


def _terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)

"""The command line over processors, options and due times."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import structlog

from cli import main
from tests.engine.engine import Engine

MINE = """
import outbox
@outbox.processor("sync.mine", retry="1s,2s", concurrency=3, timeout="40s", config=dict)
def mine(event, ctx):
    "Mine."
"""

Call = Callable[..., tuple[int, Any, str]]


@pytest.fixture
def call(
    database: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Call]:
    """Run a command in a folder that holds `mine_here.py`: its code, what it printed, what it
    said."""
    (tmp_path / "mine_here.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def call(*args: str) -> tuple[int, Any, str]:
        code = main(list(args))
        out, err = capsys.readouterr()
        return code, json.loads(out) if "--json" in args and out else out, err

    yield call
    sys.modules.pop("mine_here", None)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


ADD = ("subscriptions", "add", "--kind", "sync.mine", "--events", "orders.*", "--org", "acme")


def test_a_subscription_has_the_defaults_of_its_processor_and_its_own_options(call: Call) -> None:
    code, shown, _ = call(*ADD, "--import", "mine_here", "--tag", "a", "--tag", "b", "--json")
    assert code == 0
    assert (shown["kind"], shown["retry"], shown["concurrency"], shown["timeout_s"]) == (
        "sync.mine", "1s,2s", 3, 40.0,
    )  # fmt: skip
    assert shown["tags"] == ["a", "b"]
    given = (
        "--retry",
        "5s",
        "--concurrency",
        "9",
        "--delay",
        "1m",
        "--ttl",
        "1h",
        "--priority",
        "5",
    )
    keys = ("--concurrency-key", "$.k", "--key-concurrency", "2", "--once-key", "subject")
    code, shown, _ = call(
        *ADD, *given, *keys, "--once-for", "1d", "--import", "mine_here", "--json"
    )
    assert code == 0
    assert (shown["retry"], shown["concurrency"], shown["delay_s"]) == ("5s", 9, 60.0)
    assert (shown["ttl_s"], shown["priority"], shown["key_concurrency"]) == (3600.0, "5", 2)
    assert (shown["once_key"], shown["once_for_s"]) == ("subject", 86400.0)
    _, listed, _ = call("subscriptions", "list", "--tag", "b", "--json")
    assert [row["tags"] for row in listed] == [["a", "b"]]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (ADD, "there is no kind 'sync.mine'"),
        ((*ADD, "--import", "mine_here.py"), "without .py"),
        ((*ADD, "--import", "nowhere"), "--import nowhere cannot be imported"),
        ((*ADD, "--import", "mine_here", "--debounce", "5s"), "--debounce-key"),
        ((*ADD, "--import", "mine_here", "--concurrency-key", "a b"), "is not org, type"),
        (("processors", "--import", "nowhere"), "--import nowhere cannot be imported"),
        (("run", "--once", "--import", "nowhere"), "--import nowhere cannot be imported"),
    ],
)
def test_a_mistake_is_one_line(call: Call, args: tuple[str, ...], said: str) -> None:
    code, _, err = call(*args)
    assert code in {2, 3}
    assert said in err
    assert len(err.splitlines()) == 1


def test_processors_are_listed(call: Call) -> None:
    _, rows, _ = call("processors", "--import", "mine_here", "--json")
    assert [row["about"] for row in rows if row["name"] == "sync.mine"] == ["Mine."]


def test_deliveries_are_listed_by_tag_and_rescheduled(call: Call, engine: Engine) -> None:
    call(*ADD, "--import", "mine_here", "--tag", "slow")
    engine.emit(2)
    engine.route()
    _, listed, _ = call("deliveries", "list", "--tag", "slow", "--json")
    assert len(listed) == 2
    assert call("deliveries", "list", "--tag", "fast", "--json")[1] == []
    first, second = (row["id"] for row in listed)
    code, done, _ = call("deliveries", "reschedule", first, "--in", "1h", "--json")
    assert (code, done["rescheduled"]) == (0, [first])
    assert [str(lease[0]) for lease in engine.due()] == [second]
    assert "rescheduled: due at" in call("deliveries", "show", first)[1]
    for args, code, said in (
        ((second, "--in", "1h"), 1, "a worker has these deliveries"),
        ((str(UUID(int=1)), "--in", "1h"), 9, "no such delivery"),
        ((first,), 2, "either --at or --in"),
    ):
        ended, _, err = call("deliveries", "reschedule", *args)
        assert (ended, said in err) == (code, True)
    assert call("deliveries", "cancel", first)[0] == 0
    code, _, err = call("deliveries", "reschedule", first, "--at", "2040-01-01T00:00:00Z")
    assert (code, "have ended already" in err) == (1, True)


def test_an_endpoint_takes_the_options_too(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_SECRET_KEY", "A" * 43 + "=")
    url = "https://hooks.example.com/x"
    rule = ("--org", "acme", "--url", url, "--events", "orders.*", "--delay", "5m")
    code, added, err = call("endpoints", "add", *rule, "--tag", "x", "--json")
    assert code == 0, err
    _, [shown], _ = call("subscriptions", "list", "--tag", "x", "--json")
    assert (shown["endpoint"], shown["delay_s"]) == (added["id"], 300.0)

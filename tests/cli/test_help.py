"""Help, completion, and what a command loads before it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from cli import COMMANDS, build
from tests.cli.helpers import Outbox

HEAVY = {"dramatiq", "redis", "pika", "httptools", "pycares", "sqlalchemy", "rich", "uvloop"}


def every_command() -> Iterator[tuple[str, click.Command]]:
    group = build()
    assert isinstance(group, click.Group)
    context = click.Context(group)

    def walk(path: str, command: click.Command) -> Iterator[tuple[str, click.Command]]:
        yield path, command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from walk(f"{path} {name}", inner)

    yield from walk("outbox", group)


ALL = dict(every_command())


@pytest.mark.parametrize("path", ALL)
def test_every_command_and_every_option_has_help(path: str) -> None:
    command = ALL[path]
    assert command.help
    for param in command.params:
        if isinstance(param, click.Option) and not param.hidden:
            assert param.help, f"{path} {param.opts[0]}"


@pytest.mark.parametrize("path", ALL)
def test_every_command_prints_its_help(path: str, outbox: Outbox) -> None:
    ran = outbox(*path.split()[1:], "--help")
    assert ran.code == 0
    assert ran.out.startswith(f"Usage: {path}")
    assert ran.err == ""


def test_the_list_of_commands_names_each_with_a_line(outbox: Outbox) -> None:
    out = outbox("--help").out
    for name, entry in COMMANDS.items():
        assert any(name in line and entry.help in line for line in out.splitlines())


def test_help_shows_the_environment_variable_of_a_setting(outbox: Outbox) -> None:
    out = outbox("run", "--help").out
    for name in ("DATABASE_URL", "BROKER_URL", "LISTEN_URL", "LEASE", "GRACE", "CONFIG"):
        assert f"OUTBOX_{name}" in out


def test_the_database_may_be_named_before_or_after_the_command(
    outbox: Outbox, database: str
) -> None:
    assert outbox("--database-url", database, "status").code == 0
    assert outbox("status", "--database-url", database).code == 0


@pytest.mark.parametrize("path", ["outbox", "outbox endpoints"])
def test_without_a_command_the_help_is_shown(path: str, outbox: Outbox) -> None:
    ran = outbox(*path.split()[1:])
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"Usage: {path} ")
    assert "\nCommands:" in ran.err


def test_the_version_is_printed(outbox: Outbox) -> None:
    ran = outbox("--version")
    assert (ran.code, ran.out.split()[0]) == (0, "outbox")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, outbox: Outbox) -> None:
    ran = outbox("completion", shell)
    assert ran.code == 0
    assert "_OUTBOX_COMPLETE" in ran.out


def test_completion_completes() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", "import cli; cli.main()"],
        check=False,
        capture_output=True,
        text=True,
        env={
            "_OUTBOX_COMPLETE": "bash_complete",
            "COMP_WORDS": "outbox unw",
            "COMP_CWORD": "1",
        },
    )
    assert done.stdout.split() == ["plain,unwatch"]


def modules_after(*args: str) -> set[str]:
    code = f"import cli, sys; cli.main({list(args)!r}); print('--', *sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in done.stdout.split("--\n", 1)[1].split()}


def test_the_help_loads_no_library_but_click() -> None:
    assert not modules_after("--help") & {*HEAVY, "psycopg", "structlog", "orjson", "cryptography"}


def test_emit_loads_neither_broker_nor_http_client(database: str) -> None:
    loaded = modules_after("--database-url", database, "emit", "orders.paid")
    assert "psycopg" in loaded
    assert not loaded & {*HEAVY, "processors", "structlog"}


def test_a_cli_py_in_the_users_folder_is_not_taken_for_ours(tmp_path: Path) -> None:
    (tmp_path / "cli.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "processors").mkdir()
    (tmp_path / "processors" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "cli", "--version"],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")

"""Calling the command line: in this process where that suffices, as a process otherwise."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import structlog

from cli import main
from outbox.secrets import KeyRing
from tests.cli.helpers import Outbox, Process, Ran, Receiver, Shop


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Settings of the machine must not reach a test."""
    for name in [name for name in os.environ if name.startswith("OUTBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(autouse=True)
def _logs_restored() -> Iterator[None]:
    """A command sets up logging for its process, which here goes on afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def database(database: str) -> str:
    """A database that knows itself: the template's copy would be refused as the copy it is."""
    with psycopg.connect(database) as connection:
        connection.execute(
            "UPDATE outbox.installation SET database_oid ="
            " (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    return database


@pytest.fixture
def outbox(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Outbox:
    """Run one command in this process: `outbox("status", OUTBOX_DATABASE_URL=url)`."""

    def call(*args: str, **environ: str) -> Ran:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            capfd.readouterr()
            code = main(list(args))
            out, err = capfd.readouterr()
            return Ran(code, out, err)

    return call


@pytest.fixture
def spawn() -> Iterator[Callable[..., Process]]:
    """Start `outbox` as a process; whatever still runs at the end is killed."""
    started: list[Process] = []

    def start(*args: str, **environ: str) -> Process:
        started.append(Process(args, environ))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.fixture
def run_outbox() -> Callable[..., Ran]:
    """Run `outbox` as a process to its end."""

    def call(*args: str, stdin: str = "", **environ: str) -> Ran:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "cli", *args],
            check=False,
            capture_output=True,
            text=True,
            input=stdin,
            env={**os.environ, **environ},
            timeout=60,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def key() -> str:
    """A value for OUTBOX_SECRET_KEY."""
    return KeyRing.generate_text()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook receiver on loopback."""
    with Receiver() as opened:
        yield opened


@pytest.fixture
def shop(database: str, key: str, receiver: Receiver) -> Shop:
    """A database with one endpoint that gets all events of `orders.*` in organization acme."""
    return Shop(database, key, receiver)

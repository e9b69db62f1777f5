"""The fixtures of the operator's tests."""

from __future__ import annotations

import http.server
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cli import main
from tests.admin.calling import KEY, Outbox, Ran, Receiver
from tests.admin.helpers import Shop, shop_at


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
def shop(database: str) -> Iterator[Shop]:
    """A fresh database with an operator's connection; what the journal tells is checked at the
    end of every test."""
    with shop_at(database) as shop:
        yield shop
        shop.check()


@pytest.fixture
def outbox(
    database: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Outbox:
    """Run one command in this process, on this test's database."""
    for name in [name for name in os.environ if name.startswith("OUTBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database)
    monkeypatch.setenv("OUTBOX_SECRET_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def call(*args: object, **environ: str) -> Ran:
        with monkeypatch.context() as patch:
            for name, value in environ.items():
                patch.setenv(name, value)
            capfd.readouterr()
            code = main([str(arg) for arg in args])
            return Ran(code, *capfd.readouterr())

    return call


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    state = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            state.requests.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(state.status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            """Nothing on stderr."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield state
        server.shutdown()
        thread.join()

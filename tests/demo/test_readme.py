"""README and docs: shell lines, SQL and Python run as written, figures are those of the code."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import httpx
import orjson
import psycopg
import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from standardwebhooks.webhooks import Webhook

import outbox
from outbox.secrets import KeyRing
from outbox.store.connect import connect
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.subscriptions import Rule

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
LINES_MAX = 150
SECRET = "whsec_" + b64encode(b"x" * 32).decode()

Request = tuple[dict[str, str], bytes]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_it_stays_short_and_its_links_lead_somewhere() -> None:
    assert len(README.splitlines()) <= LINES_MAX
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).exists(), link


@contextmanager
def listening() -> Iterator[tuple[int, Queue[Request]]]:
    requests: Queue[Request] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            requests.put(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1], requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def programs(folder: Path) -> None:
    """The installed `outbox`, and a `pip` that has already done its part."""
    for name, line in (("outbox", f'exec "{sys.executable}" -P -m cli "$@"'), ("pip", "exit 0")):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


def test_the_lines_for_ones_own_database_work_as_they_stand(
    empty_database: str, tmp_path: Path
) -> None:
    programs(tmp_path)
    with listening() as (port, requests), psycopg.connect(empty_database, autocommit=True) as c:
        c.execute("CREATE TABLE public.orders (id int PRIMARY KEY, org_id text, status text)")
        [script] = blocks("bash")
        for written, here in (
            ("postgresql://postgres:password@localhost:5432/postgres", empty_database),
            ("https://hooks.example.com", f"http://127.0.0.1:{port}"),
        ):
            assert script.count(written) == 1
            script = script.replace(written, here)
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")},
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "OUTBOX_EGRESS_ALLOW_HTTP": "true",
            "OUTBOX_EGRESS_ALLOW_CIDRS": "127.0.0.1/32",
            "OUTBOX_EGRESS_PORTS": str(port),
        }
        # The last line runs until it is told to stop: the shell becomes it.
        *before, last = script.strip().splitlines()
        assert last.startswith("outbox run")
        bash = shutil.which("bash")
        assert bash is not None
        daemon = subprocess.Popen(
            [bash, "-e", "-c", "\n".join([*before, f"exec {last}"])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environ,
        )
        try:
            until = time.monotonic() + 60
            while not _subscribed(c):
                assert daemon.poll() is None, daemon.communicate()
                assert time.monotonic() < until
                time.sleep(0.02)
            c.execute("INSERT INTO public.orders VALUES (1, 'acme', 'new')")
            headers, body = requests.get(timeout=60)
        finally:
            daemon.terminate()
            talk, _ = daemon.communicate(timeout=60)
        assert daemon.returncode == 0
        [secret] = re.findall(r"whsec_[A-Za-z0-9+/=]+", talk)
        event = Webhook(secret).verify(body, headers)
        assert event["type"] == "orders.inserted"
        assert event["data"]["record"] == {"id": 1, "org_id": "acme", "status": "new"}


def test_the_lines_for_when_something_went_wrong_work_as_they_stand(
    database: str, tmp_path: Path
) -> None:
    programs(tmp_path)
    with connect(database, autocommit=True) as connection:
        spec = EndpointSpec("https://hooks.example.com/", "acme", Rule(("*",)))
        assert add_endpoint(connection, spec, KeyRing([b"k" * 32])).id == 1
    [script] = blocks("sh")
    for line in script.splitlines():
        environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")},
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "OUTBOX_DATABASE_URL": database,
        }
        bash = shutil.which("bash")
        assert bash is not None
        ran = subprocess.run(
            [bash, "-c", line], env=environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert ran.returncode == 0, (line, ran.stderr)
        assert "(see:" not in ran.stderr, line


def _subscribed(connection: psycopg.Connection[Any]) -> bool:
    known = connection.execute("SELECT to_regclass('outbox.subscription')").fetchone()
    if known == (None,):
        return False
    return connection.execute("SELECT FROM outbox.subscription").fetchone() is not None


def test_events_of_ones_own_are_emitted_as_it_says(database: str) -> None:
    [in_sql] = blocks("sql")
    [in_python] = [block for block in blocks("python") if "emit" in block]
    with psycopg.connect(database) as connection:
        connection.execute(in_sql.encode())
    engine = create_engine(database.replace("postgresql://", "postgresql+psycopg://", 1))
    with Session(engine) as session:
        exec(in_python, {"outbox": outbox, "session": session})  # noqa: S102 (the README's words)
        session.commit()
    engine.dispose()
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT type, org_id, payload::text FROM outbox.event").fetchall()
    assert [(kind, org, orjson.loads(text)) for kind, org, text in rows] == [
        ("invoice.paid", "acme", {"invoice": 7})
    ] * 2


def test_the_receiver_verifies_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    [receiver] = [block for block in blocks("python") if "FastAPI" in block]
    names: dict[str, Any] = {}
    exec(receiver.replace("whsec_...", SECRET), names)  # noqa: S102 (the README's words)
    body = b'{"type":"orders.updated","timestamp":"2030-01-01T00:00:00Z","data":{"record":{}}}'
    now = datetime.now(UTC)
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(SECRET).sign("msg_1", now, body.decode()),
    }

    async def post(content: bytes) -> int:
        transport = httpx.ASGITransport(app=names["app"])
        async with httpx.AsyncClient(transport=transport, base_url="http://receiver") as client:
            return (await client.post("/orders", content=content, headers=headers)).status_code

    assert asyncio.run(post(body)) == 200
    assert capsys.readouterr().out == "msg_1 orders.updated\n"
    assert asyncio.run(post(body + b" ")) == 401
    assert "outbox.verify(body, headers, " in README
    assert outbox.verify(body, headers, SECRET).id == "msg_1"


def figures() -> list[tuple[str, str]]:
    """Sentences of the docs, with the numbers that the code holds."""
    from outbox.horizon import MARGIN_S, QUEUE_S, SWEEP_S, Window
    from outbox.retry import JITTER_DEFAULT, RETRY_AFTER_CAP, default_policy
    from outbox.rhythm import RelayConfig
    from outbox.settings import Settings
    from outbox.store.retention import SLOTS, RetentionConfig
    from outbox.worker import WorkerConfig

    relay, retention = RelayConfig(), RetentionConfig()
    assert (SLOTS, relay.expiries_max, JITTER_DEFAULT) == (8, 5, 0.1)
    assert default_policy().schedule.attempts_max == 10
    return [
        ("architecture", f"still looks after {relay.asleep_s:g} s"),
        ("architecture", f"polls every {relay.poll_only_s * 1000:g} ms"),
        ("architecture", f"trails the newest id by {MARGIN_S:g} s"),
        ("architecture", f"every {SWEEP_S:g} s"),
        ("architecture", f"in {QUEUE_S * 1000:g} ms at the measured rate"),
        ("architecture", f"least {Window(30).size()})"),
        ("architecture", f"min(Retry-After, {RETRY_AFTER_CAP.total_seconds() / 3600:g} h)"),
        ("architecture", f"timeout of {retention.lock_timeout.total_seconds() * 1000:g} ms"),
        ("guarantees", f"{WorkerConfig().concurrency:,} deliveries a worker process"),
        ("guarantees", f"kept for {retention.dead_keep.days} days"),
        ("guarantees", f"{Settings().retention.days} days unless set otherwise"),
    ]


@pytest.mark.parametrize(("page", "text"), figures())
def test_the_figures_in_the_docs_are_those_of_the_code(page: str, text: str) -> None:
    words = " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    assert text in words

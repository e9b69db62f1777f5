"""docs/processors.md as a newcomer follows it: the files are copied, the commands typed."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import psycopg

PAGE = (Path(__file__).parents[2] / "docs" / "processors.md").read_text()
OUTBOX = str(Path(sys.executable).parent / "outbox")


def block(name: str) -> str:
    """A code block of the page, by the comment above it."""
    match = re.search(rf"<!-- {re.escape(name)} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)
    assert match is not None, name
    return match[1]


def until(condition: Callable[[], bool], daemon: subprocess.Popen[bytes]) -> None:
    end = monotonic() + 60
    while not condition():
        assert daemon.poll() is None, "the daemon ended"
        assert monotonic() < end, "the condition did not come true"
        sleep(0.02)


def test_the_page_works_as_it_stands(database: str, tmp_path: Path) -> None:
    for name in ("myapp.py", "ledger.toml"):
        (tmp_path / name).write_text(block(name))
    environ = {k: v for k, v in os.environ.items() if not k.startswith("OUTBOX_")}
    environ["OUTBOX_DATABASE_URL"] = database
    *commands, last = [shlex.split(line) for line in block("commands").splitlines()]
    said = []
    for command in commands:
        done = subprocess.run(
            [OUTBOX, *command[1:]],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert re.search(r"sync\.ledger +myapp +thread .*Write each order into a ledger", said[0])
    ledger = tmp_path / "ledger.jsonl"
    with psycopg.connect(database, autocommit=True) as connection:

        def emitted() -> list[tuple[Any, ...]]:
            return connection.execute(
                "SELECT subject, org_id, payload FROM outbox.event WHERE type = 'ledger.written'"
            ).fetchall()

        daemon = subprocess.Popen([OUTBOX, *last[1:]], cwd=tmp_path, env=environ)
        try:
            until(lambda: bool(emitted()), daemon)
            daemon.send_signal(signal.SIGTERM)
            assert daemon.wait(30) == 0
        finally:
            daemon.kill()
            daemon.wait()
        assert emitted() == [("orders/7", "acme", {"order": 7})]
    [line] = ledger.read_text().splitlines()
    told = json.loads(line)
    assert (told["order"], told["book"]) == (7, "sales")

"""A daemon that dies at a named step of sending: at most one extra e-mail, and the same message."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import psycopg
import pytest

from tests.mail.post import Post, parsed
from tests.mail.sink import Sink
from tests.system.town import Process

MAILS = 4


def wait_until(condition: Callable[[], bool], within_s: float = 40.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("point", "policy"),
    [("after:data:2", "retry"), ("before:settle", "retry"), ("after:data:2", "hold")],
)
def test_a_kill_while_sending(database: str, sink: Sink, point: str, policy: str) -> None:
    """One connection sends one message after another, so that one alone is between its contents
    and its settle; what was sent before is repeated only if its settle died too."""
    post = Post(database, sink)
    post.environ["OUTBOX_SMTP_URL"] += "&connections=1"
    post.engine.run(
        "UPDATE outbox.installation SET database_oid ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    post.subscribe(on_unknown=policy, retry="100ms,100ms,100ms")
    post.emit(n=MAILS)
    environ = {**post.environ, "OUTBOX_LEASE": "1s", "OUTBOX_LOG_FORMAT": "json"}
    first = Process(("run", "--workers", "1"), {**environ, "OUTBOX_TEST_FAULT": point})
    try:
        wait_until(lambda: first.popen.poll() is not None)
        assert first.popen.returncode == -9, first.said
    finally:
        first.close()
    second = Process(("run", "--workers", "1"), environ)
    try:
        wait_until(lambda: _ended(database) == MAILS)
        second.terminate()
        assert second.ended() == 0
    finally:
        second.close()
    times = Counter(parsed(taken.data)["Message-ID"] for taken in sink.taken)
    assert len({taken.data for taken in sink.taken}) == len(times), "one message, one form"
    assert max(times.values()) <= 2, "at most one extra e-mail"
    dead = post.engine.rows("SELECT reason FROM outbox.dead_letter")
    if policy == "hold":
        assert set(dead) == {("unknown_held",)}
        assert max(times.values()) == 1, "nobody is sent to twice unless a person says so"
    else:
        assert dead == []
        assert len(times) == MAILS
        assert max(times.values()) == 2
    post.engine.check()
    post.engine.close()


def _ended(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM outbox.journal WHERE fact IN ('delivered', 'dead'))"
        ).fetchone()
    assert row is not None
    return int(row[0])

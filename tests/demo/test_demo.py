"""`outbox demo` as people run it: one process, counted honestly, nothing left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from urllib.parse import parse_qs, urlsplit

import httpx
import psutil
import psycopg
import pytest
from websockets.sync.client import connect

import cli
from outbox.demo.ledger import Report
from outbox.demo.run import Demo, Options
from outbox.demo.scene import DESTINATIONS, ORGS, WATCHED, topic_of
from outbox.errors import LossDetected

COMMAND = [sys.executable, "-P", "-m", "cli", "demo"]
KEYS = (
    "orders events deliveries delivered dead lost duplicates signatures_verified documents emails"
    " broadcasts latency_ms seconds"
)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
    )


def in_process(options: Options) -> Report:
    reports: list[Report] = []

    async def done(report: Report, _settings: object) -> None:
        reports.append(report)

    asyncio.run(Demo(options, cli.open_courier, cli.open_processors, cli._specify).run(done))
    return reports[0]


@pytest.mark.parametrize("broker", ["memory", "redis"])
def test_every_order_arrives_signed_and_once(broker: str) -> None:
    done = run("--orders", "200", "--json", "--broker", broker)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert list(found) == KEYS.split()
    assert found["orders"] == 200
    assert found["events"] > 400
    assert found["delivered"] == found["deliveries"] == found["signatures_verified"] > 200
    assert found["documents"] == found["emails"] > 0
    heard = found["broadcasts"]
    assert heard["settled"] == heard["received"] > 200
    assert heard["of_another_organization"] == 0
    assert (found["lost"], found["dead"], found["duplicates"]) == (0, 0, 0)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] < 1000 * found["seconds"]


def test_the_misbehaving_receivers_misbehave_and_recover() -> None:
    """Else the demo would show nothing of retries."""
    report = in_process(Options(orders=100, seed=7))
    report.check()
    moody = [one for one in DESTINATIONS if one.mood != "steady"]
    stories = {one["label"]: one for one in report.receivers}
    assert {one.mood for one in moody} == {"fails", "throttles", "hangs"}
    for one in moody:
        assert stories[one.label]["troubled"] > 0
        assert stories[one.label]["accepted"] > 0
    assert report.rolled_back > 0
    assert report.phantoms == report.missing_events == report.forged == 0
    others = len(ORGS) - 1
    assert (report.hearing.refused, report.hearing.admitted) == (len(ORGS) * others, 0)


def test_a_delivery_that_vanishes_is_found_lost() -> None:
    def steal(url: str) -> None:
        """Take one delivery out of the database as soon as one waits for a retry."""
        with psycopg.connect(url, autocommit=True) as connection:
            while not connection.execute(
                "DELETE FROM outbox.delivery WHERE id = (SELECT id FROM outbox.delivery"
                " WHERE state = 'scheduled' AND attempts > 0 LIMIT 1) AND state = 'scheduled'"
            ).rowcount:
                time.sleep(0.002)

    report = in_process(Options(orders=100, seed=7, behind_its_back=steal))
    assert report.lost == 1
    assert report.document()["delivered"] == report.document()["deliveries"] - 1
    with pytest.raises(LossDetected, match=r"^1 of \d+ deliveries were lost") as caught:
        report.check()
    assert caught.value.exit_code == 13


def test_events_and_messages_that_vanish_are_found_lost() -> None:
    def steal(url: str) -> None:
        """Make capture forget one kind of change, and the table of messages another."""
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "CREATE FUNCTION shop.forget() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN RETURN NULL; END'"
            )
            connection.execute(
                "CREATE TRIGGER forget BEFORE INSERT ON outbox.event FOR EACH ROW"
                " WHEN (NEW.type = 'orders.deleted') EXECUTE FUNCTION shop.forget()"
            )

            connection.execute(
                "CREATE TRIGGER forget BEFORE INSERT ON realtime.messages FOR EACH ROW"
                " WHEN (NEW.event = 'orders.updated') EXECUTE FUNCTION shop.forget()"
            )

    report = in_process(Options(orders=100, seed=7, behind_its_back=steal))
    assert report.missing_events > 0
    assert report.hearing.lost > 0
    assert report.lost == report.missing_events + report.hearing.lost
    with pytest.raises(LossDetected):
        report.check()


def test_off_a_terminal_it_talks_in_plain_lines() -> None:
    done = run("--orders", "50")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "50 orders, written by 4 sessions" in done.stdout
    assert done.stdout.startswith("starting PostgreSQL\n")


def test_settings_of_other_installations_are_refused_and_the_environment_is_not_read() -> None:
    done = run("--orders", "5", "--database-url", "postgresql://someone@127.0.0.1:1/theirs")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: the demo brings its own PostgreSQL")
    done = run("--orders", "5", "--json", OUTBOX_DATABASE_URL="nonsense", OUTBOX_LEASE="nonsense")
    assert done.returncode == 0


def test_without_the_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.demo.opening.find_spec", lambda _name: None)
    monkeypatch.setattr(sys, "argv", ["outbox"])
    assert cli.main(["demo", "--orders", "5"]) == 3


# -- nothing is left ------------------------------------------------------------------------------


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        running.append(
            subprocess.Popen(
                [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(text):
            return
    raise AssertionError(f"it ended before it said {text!r}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) > 5, "PostgreSQL with its processes, guardian, shop, receivers"
    return children


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    found = []
    for process in processes:
        # An orphan that nobody reaps (a container without init) is dead all the same.
        with suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def wait_until_gone(processes: list[psutil.Process]) -> None:
    until = time.monotonic() + 30
    while alive(processes):
        assert time.monotonic() < until, f"left running: {alive(processes)}"
        time.sleep(0.01)


def hears_live(page: str) -> None:
    """Follow the link as a browser does: two organizations' topics, and orders still come in."""
    way = urlsplit(page)
    wrong = httpx.get(page + "x")
    found = urlsplit(httpx.get(page).headers["location"])
    assert (wrong.status_code, found.path) == (404, "/")
    assert "side by side" in httpx.get(f"http://{way.netloc}/").text
    watched = dict(one.rsplit("|", 1) for one in parse_qs(found.fragment)["watch"])
    assert list(watched) == [topic_of(org) for org in WATCHED]
    for topic, token in watched.items():
        address = f"ws://{way.netloc}/realtime/v1/websocket?apikey={token}&vsn=2.0.0"
        with connect(address, compression=None, proxy=None) as socket:
            config = {"private": True, "broadcast": {"replay": {"since": 0, "limit": 1}}}
            join = {"config": config, "access_token": token}
            socket.send(json.dumps(["1", "1", f"realtime:{topic}", "phx_join", join]))
            known: list[bytes | str] = []
            # One comes again, the other is new.
            while sum(isinstance(frame, bytes) for frame in known) < 2:
                known.append(socket.recv(timeout=30))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_whatever_ends_it_nothing_stays(
    started: Callable[..., subprocess.Popen[str]], number: signal.Signals, code: int
) -> None:
    process = started("--orders", "100000")
    read_until(process, "orders come in")
    children = family(process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == code
    assert "Traceback" not in errors
    wait_until_gone(children)


def test_kept_it_runs_until_ctrl_c_and_others_can_use_it(
    started: Callable[..., subprocess.Popen[str]],
) -> None:
    process = started("--orders", "20", "--keep")
    assert process.stdout is not None
    exported: dict[str, str] = {}
    page = ""
    for line in process.stdout:
        if "/live/" in line:
            page = line.split()[-1]
        if line.startswith("export "):
            exported |= dict(
                part.split("=", 1) for part in line.removeprefix("export ").replace("'", "").split()
            )
        if line.startswith("psql "):
            break
    children = family(process)
    status = subprocess.run(
        [*COMMAND[:-1], "migrate", "--check"],
        check=False,
        capture_output=True,
        env={**os.environ, **exported},
    )
    assert status.returncode == 0
    with psycopg.connect(exported["OUTBOX_DATABASE_URL"], autocommit=True) as connection:
        changed = connection.execute("UPDATE shop.orders SET status = 'sent'").rowcount
        assert changed > 0
        while connection.execute(
            "SELECT FROM outbox.pending UNION ALL SELECT FROM outbox.delivery LIMIT 1"
        ).fetchone():
            time.sleep(0.01)
    hears_live(page)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    wait_until_gone(children)

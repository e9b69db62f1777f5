"""`run` and `worker` as processes: what they deliver, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

import cli
from outbox.embedded import free_port
from outbox.runtime import Until, run_daemon
from outbox.settings import load_settings
from tests.cli.helpers import Outbox, Process, Ran, Receiver, Shop, is_running, wait_until

Spawn = Callable[..., Process]


def delivered(shop: Shop) -> int:
    return int(shop.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'"))


NO_BROKER = "redis://127.0.0.1:1/0"


def test_once_delivers_what_it_leases_and_ends(
    run_outbox: Callable[..., Ran], shop: Shop, receiver: Receiver
) -> None:
    shop.emit(3)
    ran = run_outbox("run", "--once", **shop.environ)
    assert ran.code == 0
    assert ran.out == ""
    assert len(receiver.bodies) == delivered(shop) == 3
    assert shop.states() == []


def test_once_without_a_broker_is_a_failure_that_loses_nothing(
    run_outbox: Callable[..., Ran], shop: Shop
) -> None:
    shop.emit(3)
    ran = run_outbox("run", "--once", **{**shop.environ, "OUTBOX_BROKER_URL": NO_BROKER})
    assert ran.code == 5
    assert "given back" in ran.err
    assert shop.states() == ["scheduled"] * 3


def test_a_daemon_that_ended_at_once_is_remembered(
    run_outbox: Callable[..., Ran], shop: Shop, receiver: Receiver
) -> None:
    shop.emit(1)
    assert run_outbox("run", "--drain", **shop.environ).code == 0
    assert len(receiver.bodies) == 1
    assert shop.one("SELECT count(*) FROM outbox.node WHERE kind = 'relay' AND pid = 0") == 1


def test_drain_ends_when_nothing_is_pending_or_due(
    run_outbox: Callable[..., Ran], shop: Shop, receiver: Receiver
) -> None:
    shop.emit(700)
    shop.emit(1, deliver_in="1 h")
    assert run_outbox("run", "--drain", **shop.environ).code == 0
    assert len(receiver.bodies) == delivered(shop) == 700
    assert shop.states() == ["scheduled"]


def test_drain_waits_for_workers_elsewhere(
    spawn: Spawn, shop: Shop, receiver: Receiver, redis_url: str
) -> None:
    shop.emit(20)
    environ = {**shop.environ, "OUTBOX_BROKER_URL": redis_url}
    daemon = spawn("run", "--drain", "--workers", "1", **environ)
    assert daemon.ended() == 0
    assert delivered(shop) == 20


def test_the_daemon_delivers_until_it_is_told_to_stop(
    spawn: Spawn, shop: Shop, receiver: Receiver, outbox: Outbox
) -> None:
    daemon = spawn("run", **shop.environ)
    shop.emit(2)
    receiver.wait_for(2)
    wait_until(lambda: outbox("status", "--json", **shop.environ).json["relays"] == 1)
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert shop.states() == []
    shown = outbox("status", "--json", **shop.environ).json
    assert (shown["relays"], shown["workers"]) == (0, 0)
    assert shown["last_poll_s"] is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_lets_what_runs_finish(
    number: signal.Signals, spawn: Spawn, shop: Shop, receiver: Receiver
) -> None:
    receiver.gate.clear()
    daemon = spawn("run", **shop.environ)
    shop.emit()
    receiver.wait_for_entered(1)
    daemon.signal(number)
    # It has stopped relaying when its relay's connection is gone; the attempt still runs.
    relays = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay'"
    wait_until(lambda: shop.one(relays + " AND datname = current_database()") == 0)
    assert daemon.popen.poll() is None
    receiver.gate.set()
    assert daemon.ended() == 0
    assert delivered(shop) == 1


def test_what_outlives_the_grace_period_is_given_back_uncharged(
    spawn: Spawn, shop: Shop, receiver: Receiver
) -> None:
    receiver.gate.clear()
    daemon = spawn("run", "--grace", "1s", **shop.environ)
    shop.emit()
    receiver.wait_for_entered(1)
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert daemon.events("worker.grace_over")[0]["unfinished"] == 1
    assert shop.states() == ["scheduled"]
    assert shop.one("SELECT attempts FROM outbox.delivery") == 0


def test_the_second_signal_ends_now_and_leaves_the_lease(
    spawn: Spawn, shop: Shop, receiver: Receiver
) -> None:
    receiver.gate.clear()
    daemon = spawn("run", "--grace", "1h", **shop.environ)
    shop.emit()
    receiver.wait_for_entered(1)
    daemon.signal(signal.SIGTERM)
    relays = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox relay'"
    wait_until(lambda: shop.one(relays + " AND datname = current_database()") == 0)
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert shop.states() == ["leased"]


def test_a_worker_that_dies_is_replaced_and_all_end_together(
    spawn: Spawn, shop: Shop, receiver: Receiver, redis_url: str
) -> None:
    environ = {**shop.environ, "OUTBOX_BROKER_URL": redis_url}
    daemon = spawn("run", "--workers", "2", **environ)
    daemon.wait_for("worker.started", 2)
    victim = daemon.events("worker.spawned")[0]["worker_pid"]
    os.kill(victim, signal.SIGKILL)
    assert daemon.wait_for("worker.died")[0]["exit_code"] == -signal.SIGKILL
    daemon.wait_for("worker.started", 3)
    shop.emit(5)
    receiver.wait_for(5)
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    workers = [event["worker_pid"] for event in daemon.events("worker.spawned")]
    assert len(workers) == 3
    assert not any(map(is_running, workers))
    assert shop.states() == []


def test_workers_end_with_a_parent_that_is_killed(spawn: Spawn, shop: Shop, redis_url: str) -> None:
    environ = {**shop.environ, "OUTBOX_BROKER_URL": redis_url}
    parent = spawn("worker", "--processes", "2", **environ)
    parent.wait_for("worker.started", 2)
    workers = [event["worker_pid"] for event in parent.events("worker.spawned")]
    assert all(map(is_running, workers))
    parent.signal(signal.SIGKILL)
    parent.ended()
    wait_until(lambda: not any(map(is_running, workers)))


def test_workers_run_apart_from_the_daemon(
    spawn: Spawn, shop: Shop, receiver: Receiver, redis_url: str
) -> None:
    environ = {**shop.environ, "OUTBOX_BROKER_URL": redis_url}
    running = [spawn("run", **environ), spawn("worker", **environ)]
    running.append(spawn("worker", "--processes", "2", **environ))
    running[2].wait_for("worker.started", 2)
    shop.emit(200)
    receiver.wait_for(200)
    for process in running:
        process.signal(signal.SIGTERM)
    assert [process.ended() for process in running] == [0, 0, 0]
    assert delivered(shop) == 200
    assert shop.states() == []


def test_flags_reach_the_workers_and_no_secret_stands_in_a_command_line(
    spawn: Spawn, shop: Shop, receiver: Receiver, redis_url: str
) -> None:
    environ = {k: v for k, v in shop.environ.items() if k != "OUTBOX_DATABASE_URL"}
    daemon = spawn(
        *("--database-url", shop.url, "run", "--broker-url", redis_url, "--workers", "1"), **environ
    )
    daemon.wait_for("worker.started")
    worker = daemon.events("worker.spawned")[0]["worker_pid"]
    command = Path(f"/proc/{worker}/cmdline").read_bytes().decode()
    assert "worker" in command
    assert "redis://" not in command
    assert "postgresql://" not in command
    shop.emit()
    receiver.wait_for(1)


def test_no_broker_at_the_start_is_waited_for(spawn: Spawn, shop: Shop) -> None:
    broker = f"redis://:hush@127.0.0.1:{free_port()}"
    daemon = spawn("run", **{**shop.environ, "OUTBOX_BROKER_URL": broker})
    daemon.wait_for("run.broker_unreachable")
    shop.emit()
    daemon.wait_for("relay.broker_lost")
    assert daemon.popen.poll() is None
    daemon.signal(signal.SIGTERM)
    assert daemon.ended() == 0
    assert shop.states() == ["scheduled"]
    assert shop.one("SELECT attempts FROM outbox.delivery") == 0
    assert "hush" not in daemon.said


def test_all_that_is_said_is_one_json_object_a_line(
    spawn: Spawn, shop: Shop, receiver: Receiver
) -> None:
    daemon = spawn("run", **shop.environ)
    shop.emit()
    receiver.wait_for(1)
    daemon.signal(signal.SIGTERM)
    daemon.ended()
    assert daemon.events("run.started")
    assert daemon.events("run.stopped")
    assert all(line.startswith("{") for line in daemon.said.splitlines())


def test_a_daemon_runs_inside_another_program(shop: Shop, receiver: Receiver) -> None:
    settings = load_settings({}, shop.environ)
    shop.emit(5)

    async def host() -> None:
        await run_daemon(
            settings,
            cli.open_courier(settings),
            stop=asyncio.Event(),
            open_processors=cli.open_processors,
            ring=settings.key_ring(),
            until=Until.DRAINED,
        )

    asyncio.run(host())
    assert len(receiver.bodies) == delivered(shop) == 5

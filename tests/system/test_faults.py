"""What dies in between: nothing is lost, duplicates are at most what was in flight, and work ends
by itself once the faults stop (I1, I11)."""

from __future__ import annotations

import signal

import psycopg
import pytest
import redis

from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.errors import WrongInstance
from outbox.store.migrate import migrate
from tests.system.town import Process, Town, town_over, wait_until

IN_FLIGHT_MAX = 2 * (4000 + 250)
"""What two workers may have started and not settled."""


def started(town: Town) -> int:
    query = "SELECT count(*) FROM outbox.delivery WHERE state = 'leased' AND started_at IS NOT NULL"
    return int(town.one(query))


@pytest.mark.parametrize("victim", ["run", "worker"])
def test_a_kill_in_mid_flight_loses_nothing(installed: str, redis_url: str, victim: str) -> None:
    """kill -9 of a daemon, or of a worker, while it works. The lease is one that a busy machine
    does not outlast: an attempt whose lease ran out is repeated, and rightly."""
    with town_over(installed, redis_url, lease="6s") as town:
        receiver = town.endpoint("/a")
        processes: dict[str, list[Process]] = {"run": [], "worker": []}
        for _ in range(2):
            for name, running in processes.items():
                running.append(town.start(name))
        town.write(sessions=4, transactions=10, each=50, orgs=("acme",))
        wait_until(lambda: len(receiver.answered) > 100)
        processes[victim][0].kill()
        town.write(sessions=2, transactions=5, each=50, orgs=("acme",))
        wait_until(lambda: len(receiver.answered) == 2500)
        town.wait_until_settled()
        # A daemon starts nothing, so that its death repeats nothing.
        town.check(duplicates_max=IN_FLIGHT_MAX if victim == "worker" else 0)
        assert town.one("SELECT count(*) FROM outbox.dead_letter") == 0


def test_what_a_killed_worker_had_started_is_repeated_and_nothing_else(
    installed: str, redis_url: str
) -> None:
    """Twenty attempts hang in one worker; its death costs these twenty, once."""
    with town_over(installed, redis_url, lease="2s") as town:
        alive = [False]
        receiver = town.endpoint("/a", answer=lambda _n: 200 if alive[0] else None)
        town.start("run")
        worker = town.start("worker")
        town.emit(20)
        wait_until(lambda: receiver.requests == 20)
        worker.kill()
        alive[0] = True
        town.start("worker")
        wait_until(lambda: len(receiver.answered) == 20)
        town.wait_until_settled()
        town.check()
        assert receiver.requests == 40
        expiries = "SELECT count(*) FROM outbox.journal WHERE fact = 'lease_expired' AND charged"
        assert town.one(expiries) == 20
        assert town.one("SELECT count(*) FROM outbox.journal WHERE attempt > 1") == 0


def test_an_emptied_broker_costs_time_and_nothing_else(
    installed: str, redis_server: EmbeddedRedis
) -> None:
    """FLUSHALL while everything leased lies in Redis: no attempt, no delivery, no duplicate."""
    with town_over(installed, redis_server.url, lease="6s") as town:
        receiver = town.endpoint("/a")
        town.start("run")
        town.emit(1000)
        with redis.Redis.from_url(redis_server.url) as client:
            wait_until(lambda: bool(client.dbsize()))
            client.flushall()
        town.start("worker")
        town.emit(500)
        wait_until(lambda: len(receiver.answered) == 1500)
        town.wait_until_settled()
        town.check()
        unstarted = (
            "SELECT count(*) FROM outbox.journal WHERE reason = 'lease_unstarted' AND NOT charged"
        )
        assert town.one(unstarted) > 0


def test_without_the_broker_nothing_dies_and_all_goes_on_when_it_is_back(
    installed: str, redis_server: EmbeddedRedis
) -> None:
    with town_over(installed, redis_server.url) as town:
        receiver = town.endpoint("/a", retry="200ms")
        daemon = town.start("run")
        town.start("worker")
        town.emit(100)
        wait_until(lambda: len(receiver.answered) == 100)
        redis_server.stop()
        town.emit(100)
        daemon.wait_for("relay.broker_lost")
        town.emit(100)
        redis_server.start()
        daemon.wait_for("relay.broker_back")
        wait_until(lambda: len(receiver.answered) == 300)
        town.wait_until_settled()
        town.check()


def test_a_crash_of_postgresql_is_survived_without_a_restart(
    own_postgres: EmbeddedPostgres, redis_url: str
) -> None:
    """Committed events arrive; what the crash undid (the routing of a moment) is done again."""
    url = own_postgres.create_database("shop")
    migrate(url)
    with town_over(url, redis_url, lease="2s") as town:
        receiver = town.endpoint("/a")
        processes = [town.start("run"), town.start("worker"), town.start("run")]
        town.write(sessions=2, transactions=10, each=50, orgs=("acme",))
        wait_until(lambda: len(receiver.answered) > 50)
        own_postgres.crash()
        own_postgres.start()
        town.emit(500)
        wait_until(lambda: len(receiver.answered) == 1500)
        town.wait_until_settled()
        town.check(duplicates_max=IN_FLIGHT_MAX)
        assert [process.popen.poll() for process in processes] == [None] * 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(installed: str, redis_url: str, number: signal.Signals) -> None:
    """What runs is finished, what did not begin is given back free of charge, the code is 0."""
    with town_over(installed, redis_url) as town:
        open_ = [False]
        receiver = town.endpoint("/a", answer=lambda n: 200 if open_[0] or n > 10 else None)
        town.start("run")
        worker = town.start("worker")
        town.emit(10)
        wait_until(lambda: receiver.requests == 10)
        daemon = town.processes[0]
        for process in (daemon, worker):
            process.popen.send_signal(number)
        assert daemon.ended() == 0
        worker.kill()
        assert town.lost() == 0


def test_a_worker_finishes_what_runs_before_it_ends(installed: str, redis_url: str) -> None:
    with town_over(installed, redis_url) as town:
        receiver = town.endpoint("/a")
        town.start("run")
        worker = town.start("worker")
        town.emit(3000)
        wait_until(lambda: len(receiver.answered) > 50)
        worker.terminate()
        assert worker.ended() == 0
        assert started(town) == 0, "nothing is left started"
        assert town.one("SELECT count(*) FROM outbox.journal WHERE fact = 'lease_expired'") == 0
        town.start("worker")
        wait_until(lambda: len(receiver.answered) == 3000)
        town.wait_until_settled()
        town.check()


def test_what_outlasts_the_grace_period_is_given_back_uncharged(
    installed: str, redis_url: str
) -> None:
    with town_over(installed, redis_url) as town:
        receiver = town.endpoint("/a", answer=lambda _n: None)
        town.start("run")
        worker = town.start("worker", OUTBOX_GRACE="1s")
        town.emit(5)
        wait_until(lambda: receiver.requests == 5)
        worker.terminate()
        assert worker.ended() == 0
        told = "SELECT count(*) FROM outbox.journal WHERE fact = 'released' AND NOT charged"
        assert town.one(told) == 5
        assert town.one("SELECT count(*) FROM outbox.delivery WHERE attempts > 0") == 0


def test_the_second_signal_ends_now(installed: str, redis_url: str) -> None:
    """A hanging receiver would keep the first one waiting for its whole grace period."""
    with town_over(installed, redis_url, lease="2s") as town:
        alive = [False]
        receiver = town.endpoint("/a", answer=lambda _n: 200 if alive[0] else None)
        town.start("run")
        worker = town.start("worker", OUTBOX_GRACE="10m")
        town.emit(1)
        wait_until(lambda: receiver.requests == 1)
        worker.terminate()
        # The second counts once the first was seen: a signal that is pending twice is one signal.
        wait_until(lambda: _signal_seen(worker))
        worker.terminate()
        assert worker.ended() == 0
        alive[0] = True
        town.start("worker")
        wait_until(lambda: len(receiver.answered) == 1)
        town.wait_until_settled()
        town.check()


def _signal_seen(process: Process) -> bool:
    with open(f"/proc/{process.popen.pid}/status") as status:  # noqa: PTH123
        fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
    return not pending & (1 << (signal.SIGTERM - 1))


def test_a_copied_database_is_refused(own_postgres: EmbeddedPostgres, redis_url: str) -> None:
    """Staging restored from production must not send to real customers."""
    migrate(own_postgres.create_database("production"))
    copy = own_postgres.create_database("staging", "production")
    with town_over(copy, redis_url) as town:
        receiver = town.endpoint("/a")
        town.emit(1)
        for command in ("run", "worker"):
            process = Process((command,), town.environ)
            try:
                assert process.ended() == WrongInstance.exit_code
                assert process.said.startswith("Error: ")
                assert len(process.said.splitlines()) == 1
            finally:
                process.close()
        assert receiver.requests == 0
        with psycopg.connect(copy) as connection:
            row = connection.execute("SELECT count(*) FROM outbox.pending").fetchone()
        assert row == (1,)

"""The whole pipeline as processes: several writers, daemons and workers, good and bad receivers."""

from __future__ import annotations

import psycopg

from outbox.embedded import EmbeddedRedis
from tests.system.town import town_over, wait_until

ORGS = ("good", "flaky", "busy", "stuck")


def test_two_daemons_and_two_workers_deliver_everything_once(
    installed: str, redis_url: str
) -> None:
    """One receiver hangs, one answers 500 to half, one 429: nothing lost, no duplicate, no wrong
    signature, and the others do not wait for the bad ones."""
    with town_over(installed, redis_url) as town:
        good = town.endpoint("/good", "good")
        flaky = town.endpoint("/flaky", "flaky", lambda n: 500 if n % 2 else 200)
        busy = town.endpoint("/busy", "busy", lambda n: 429 if n % 20 == 0 else 200)
        stuck = town.endpoint("/stuck", "stuck", lambda _n: None, retry="1h", concurrency=50)
        for _ in range(2):
            town.start("run")
            town.start("worker")
        town.write(sessions=8, transactions=12, each=25, orgs=ORGS)
        each = 8 * 12 * 25 // 4
        wait_until(lambda: [len(r.answered) for r in (good, flaky, busy)] == [each] * 3)
        assert stuck.answered == {}
        town.one("SELECT 1")
        wait_until(
            lambda: (
                town.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'") == 3 * each
            )
        )
        town.check()
        assert town.owed() == each, "what the hanging receiver is owed is still there"


def test_a_transaction_that_commits_late_under_traffic_is_delivered(
    installed: str, redis_url: str
) -> None:
    """I9. The relay's floor has long passed its id."""
    with town_over(installed, redis_url) as town, psycopg.connect(installed) as late:
        receiver = town.endpoint("/a")
        town.start("run")
        town.start("worker")
        late.execute("SELECT outbox.emit('orders.late', '\"late\"'::json, 'acme')")
        sent = 0
        looks = (
            "SELECT extract(epoch FROM clock_timestamp() - min(created_at)) > 4 FROM outbox.event"
        )
        while not sent or not town.one(looks):
            town.emit(5)
            sent += 5
            wait_until(lambda: len(receiver.answered) == sent)  # noqa: B023
        late.commit()
        wait_until(lambda: len(receiver.answered) == sent + 1, 10)
        wait_until(lambda: town.owed() == 0)
        town.check()


def test_one_organizations_backlog_does_not_delay_another(installed: str, redis_url: str) -> None:
    """I15, counted: B's event arrives while more than nine tenths of A's still wait."""
    with town_over(installed, redis_url) as town:
        town.endpoint("/a", "a")
        b = town.endpoint("/b", "b")
        town.emit(100_000, "a")
        town.emit(1, "b")
        town.start("worker")
        town.start("run")
        wait_until(lambda: len(b.answered) == 1)
        assert town.owed() > 90_000


def test_one_process_does_everything_without_a_broker(installed: str) -> None:
    with town_over(installed) as town:
        receiver = town.endpoint("/a")
        daemon = town.start("run")
        town.write(sessions=4, transactions=10, each=10, orgs=("acme",))
        wait_until(lambda: len(receiver.answered) == 400)
        town.wait_until_settled()
        daemon.terminate()
        assert daemon.ended() == 0
        town.check()


def test_drain_ends_by_itself_when_nothing_is_owed(
    installed: str, redis_server: EmbeddedRedis
) -> None:
    with town_over(installed, redis_server.url) as town:
        receiver = town.endpoint("/a")
        town.emit(500)
        daemon = town.start("run", "--drain", "--workers", "2", ready="run.started")
        assert daemon.ended() == 0
        assert len(receiver.answered) == 500
        assert town.owed() == 0
        town.check()


def test_ordered_deliveries_arrive_one_after_another(installed: str, redis_url: str) -> None:
    """I8 with two daemons and two workers, and a receiver that refuses every fourth request: each
    key's events come in order, and none begins before the one before it was accepted."""
    keys, each = 8, 25
    with town_over(installed, redis_url) as town:
        receiver = town.endpoint(
            "/ordered", answer=lambda n: 500 if n % 4 == 0 else 200, order="block"
        )
        for _ in range(2):
            town.start("run")
            town.start("worker")
        query = (
            "SELECT outbox.emit('steps', json_build_object('key', k, 'step', %s::int), 'acme',"
            " ordering_key => k::text) FROM generate_series(1, %s::int) k"
        )
        with psycopg.connect(installed, autocommit=True) as writer:
            for step in range(each):
                writer.execute(query, [step, keys])
        wait_until(lambda: len(receiver.answered) == keys * each)
        town.wait_until_settled()
        steps: dict[int, list[int]] = {key: [] for key in range(1, keys + 1)}
        for _, body in receiver.came:
            steps[body["data"]["key"]].append(body["data"]["step"])
        for came in steps.values():
            assert came == sorted(came), "a later one was tried before an earlier one"
            assert set(came) == set(range(each))
        assert receiver.requests > keys * each
        town.check()

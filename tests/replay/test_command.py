"""`outbox replay`: the dry run, the start, following it, pausing and ending it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cli.conftest import (  # noqa: F401
    _logs_restored,
    _no_settings,
    key,
    outbox,
    receiver,
    spawn,
)
from tests.cli.helpers import Outbox, Process, Receiver, Shop, wait_until
from tests.replay.helpers import Past

REASON = ("--reason", "a test")


@pytest.fixture
def shop(database: str, key: str, receiver: Receiver) -> Shop:  # noqa: F811
    return Shop(database, key, receiver)


def test_a_daemon_carries_a_replay_out_and_the_command_waits_for_it(
    shop: Shop,
    receiver: Receiver,  # noqa: F811
    outbox: Outbox,  # noqa: F811
    spawn: Callable[..., Process],  # noqa: F811
) -> None:
    spawn("run", "--workers", "1", "--broker-url", "memory://", **shop.environ)
    shop.emit(3)
    receiver.wait_for(3)
    wait_until(lambda: shop.states() == [])
    ran = outbox("replay", "--type", "orders.*", *REASON, "--json", **shop.environ)
    assert ran.code == 0, ran.err
    assert (ran.json["state"], ran.json["counts"]["redelivered"]) == ("done", 3)
    receiver.wait_for(6)
    assert sorted(receiver.bodies[:3]) == sorted(receiver.bodies[3:])


def test_a_dry_run_counts_by_subscription_type_and_fate_and_makes_nothing(
    past: Past,
    outbox: Outbox,  # noqa: F811
) -> None:
    past.endpoint()
    past.deliver(2)
    url = {"OUTBOX_DATABASE_URL": past.url}
    ran = outbox("replay", "--all", "--dry-run", "--json", **url)
    subscription = past.one("SELECT id FROM outbox.subscription")
    assert ran.json["pairs"] == 2
    assert ran.json["groups"] == [
        {"subscription": subscription, "type": "orders.paid", "fate": "redelivered", "n": 2}
    ]
    assert [pair["fate"] for pair in ran.json["sample"]] == ["redelivered"] * 2
    assert "redelivered" in outbox("replay", "--all", "--dry-run", **url).out
    assert outbox("replay", "list", "--json", **url).json == []
    nothing = outbox("replay", "--subject", "none", "--dry-run", **url)
    assert (nothing.out, nothing.err) == ("", "nothing to replay\n")


def test_without_a_daemon_it_says_so_and_leaves_the_replay_to_the_next(
    past: Past,
    outbox: Outbox,  # noqa: F811
) -> None:
    past.endpoint()
    [delivery_id] = past.deliver()
    url = {"OUTBOX_DATABASE_URL": past.url}
    ran = outbox("replay", str(delivery_id), *REASON, "--id", "one", **url)
    assert ran.code == 0
    assert "no daemon runs" in ran.err
    again = outbox("replay", str(delivery_id), *REASON, "--id", "one", "--detach", "--json", **url)
    assert "exists already" in again.err
    assert again.json["id"] == "one"
    assert outbox("replay", "list", **url).out.splitlines()[1].split()[:2] == ["one", "running"]
    assert outbox("replay", "pause", "one", "--json", **url).json["state"] == "paused"
    assert outbox("replay", "resume", "one", "--json", **url).json["state"] == "running"
    past.carry_out("one")
    shown = outbox("replay", "show", "one", **url).out
    assert "pairs redelivered" in shown
    assert "100%" in shown
    assert outbox("replay", "abort", "one", **url).code == 2


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--all",), 2, "say why with --reason"),
        (("--reason", "x"), 2, "say which"),
        (("--missed", "--reason", "x"), 2, "say which"),
        (("1", "--all", "--dry-run"), 2, "exclude each other"),
        (("lists",), 2, "neither an event's id nor a delivery's"),
        (("--all", "--rate", "0", *REASON), 2, "is not a rate; write"),
        (("--type", "a b", "--dry-run"), 2, "not an event type pattern"),
        (("--type", "", "--dry-run"), 2, "not an event type pattern"),
        (("--all", "--id", "", *REASON), 2, "a replay's id has 1 to 100"),
        (("--endpoint", "99", "--missed", "--dry-run"), 9, "there is no endpoint 99"),
        (("--subscription", "99", "--dry-run"), 9, "there is no subscription 99"),
        (("show", "nothing"), 9, "there is no replay nothing"),
        (("abort", "nothing"), 9, "there is no replay nothing"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    past: Past,
    outbox: Outbox,  # noqa: F811
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    ran = outbox("replay", *args, OUTBOX_DATABASE_URL=past.url)
    assert ran.code == code
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1

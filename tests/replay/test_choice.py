"""What a replay chooses, and what it never touches."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from outbox.errors import NotFound, UsageError
from outbox.store.replay import Choice
from outbox.store.subscriptions import Rule, add_subscription
from tests.replay.helpers import ALL, Past


@pytest.fixture
def busy(past: Past) -> dict[str, list[UUID]]:
    """Delivered events of three organizations, one of them of two types and subjects."""
    for org in ("acme", "b"):
        past.endpoint(org)
    past.endpoint(None)
    made = {"acme": past.emit(), "b": past.emit("b"), "nobody": past.emit("other")}
    past.connection.execute(
        "SELECT outbox.emit('users.new', '1'::json, org_id => 'acme', subject => 'users/7')"
    )
    past.attempt("delivered")
    return {name: past.ids_of(events) for name, events in made.items()}


def chosen(past: Past, choice: Choice) -> set[UUID]:
    """What a replay of it enqueues, the dry run by pairs and by tables being of one mind."""
    expected = past.counted(choice)
    assert past.counted(choice, judge_max=0) == expected
    replay = past.replay(choice)
    assert past.counts(replay) == expected
    return {row[0] for row in past.rows("SELECT id FROM outbox.delivery")}


def test_a_replay_for_one_organization_touches_no_other(
    past: Past, busy: dict[str, list[UUID]]
) -> None:
    """I14; the subscription to all organizations got the event of this one too."""
    found = chosen(past, Choice(org="b"))
    assert found == set(busy["b"])
    assert past.rows("SELECT DISTINCT org_id FROM outbox.journal WHERE fact = 'replayed'") == [
        ("b",)
    ]
    with pytest.raises(NotFound):
        past.make(Choice(org="acme", deliveries=(busy["b"][0],)))
    subscription = past.one("SELECT id FROM outbox.subscription WHERE org_id = 'b'")
    with pytest.raises(NotFound):
        past.make(Choice(org="acme", subscription_id=subscription))


def test_a_backfill_gives_a_subscription_no_event_of_another_organization(
    past: Past, busy: dict[str, list[UUID]]
) -> None:
    endpoint = past.one("SELECT id FROM outbox.endpoint WHERE org_id = 'b'")
    new = add_subscription(past.connection, endpoint, Rule(("*",)), "b")
    past.replay(Choice(subscription_id=new), "backfill")
    assert past.rows("SELECT org_id FROM outbox.delivery") == [("b",)]


@pytest.mark.parametrize(
    ("choice", "pairs"),
    [
        (ALL, 7),
        (Choice(patterns=("users.*",)), 2),
        (Choice(patterns=("*",), org="acme"), 4),
        (Choice(patterns=("users",)), 0),
        (Choice(subject="users/7"), 2),
        (Choice(org="other"), 1),
        (Choice(org="nobody there"), 0),
    ],
)
def test_a_choice_is_of_the_events_that_meet_every_condition(
    past: Past, busy: dict[str, list[UUID]], choice: Choice, pairs: int
) -> None:
    assert len(chosen(past, choice)) == pairs


def test_an_endpoint_or_a_subscription_chooses_what_it_got(
    past: Past, busy: dict[str, list[UUID]]
) -> None:
    [(endpoint, subscription)] = past.rows(
        "SELECT endpoint_id, id FROM outbox.subscription WHERE org_id = 'b'"
    )
    expected = {d for d in busy["b"] if past.one(
        "SELECT subscription_id = %(s)s FROM outbox.journal WHERE delivery_id = %(d)s"
        " AND fact = 'delivered'", s=subscription, d=d)}  # fmt: skip
    assert len(expected) == 1
    assert chosen(past, Choice(endpoint_id=endpoint)) == expected
    assert past.counted(Choice(subscription_id=subscription)) == {"already_due": 1}
    other = past.one("SELECT min(endpoint_id) FROM outbox.subscription WHERE org_id = 'acme'")
    assert past.counted(Choice(subscription_id=subscription, endpoint_id=other)) == {}


def test_a_time_range_begins_with_its_start_and_ends_before_its_end(past: Past) -> None:
    past.endpoint()
    first, second, third = past.deliver(3)
    times = [row[0] for row in past.rows("SELECT created_at FROM outbox.event ORDER BY id")]
    assert chosen(past, Choice(since=times[1], until=times[2])) == {second}
    assert chosen(past, Choice(since=times[2])) == {second, third}
    assert chosen(past, Choice(until=times[1])) == {first, second, third}
    with pytest.raises(UsageError, match="range is empty"):
        past.make(Choice(since=times[1], until=times[1]))


def test_events_and_deliveries_are_chosen_by_their_ids(past: Past) -> None:
    past.endpoint()
    past.endpoint()
    events = past.emit(n=3)
    past.attempt("delivered")
    found = past.ids_of(events)
    assert chosen(past, Choice(events=(events[0],), deliveries=(found[5],))) == {
        *found[:2],
        found[5],
    }
    with pytest.raises(NotFound, match="no delivery"):
        past.make(Choice(deliveries=(uuid4(),)))
    with pytest.raises(UsageError, match="at most 1000 ids"):
        past.make(Choice(events=tuple(range(1, 1002))))


def test_the_missed_are_those_that_died_and_no_others(past: Past) -> None:
    endpoint = past.endpoint().id
    past.deliver(2)
    dead = past.kill(2)
    choice = Choice(endpoint_id=endpoint, missed=True)
    assert past.counted(choice, "re-emit") == {"re-emitted": 2}
    assert past.counted(choice, "re-emit", judge_max=0) == {"re-emitted": 2}
    assert chosen(past, choice) == set(dead)
    with pytest.raises(UsageError, match="by whom"):
        past.make(Choice(missed=True))


def test_a_dry_run_shows_some_of_the_pairs_and_changes_nothing(past: Past) -> None:
    past.every_fate()
    before = (past.journal(), past.states())
    past.counted()
    past.counted(judge_max=0)
    assert (past.journal(), past.states()) == before


def test_what_cannot_be_a_replay_is_refused_in_one_line(past: Past) -> None:
    for fields in ({"why": ""}, {"rate_per_s": 0.0}, {"replay_id": "a b"}, {"replay_id": "ä"}):
        with pytest.raises(UsageError):
            past.make(**fields)
    with pytest.raises(UsageError, match="not an event type"):
        past.make(Choice(patterns=("a..b",)))
    with pytest.raises(UsageError, match="modes are"):
        past.make(ALL, "reemit")

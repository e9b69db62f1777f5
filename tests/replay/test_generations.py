"""Re-emission makes new generations; a backfill gives a new subscription the past."""

from __future__ import annotations

from uuid import UUID

import pytest

from outbox.errors import NotFound, UsageError
from outbox.store.replay import Choice
from outbox.store.subscriptions import Rule, add_subscription, remove_subscription
from tests.replay.helpers import ALL, Past


def generations(past: Past) -> list[tuple[int, UUID]]:
    """Generation and id of what lives."""
    rows = past.rows("SELECT generation, id FROM outbox.delivery ORDER BY generation")
    return [(row[0], row[1]) for row in rows]


@pytest.mark.parametrize("end", ["delivered", "dead"])
def test_each_re_emission_is_a_new_generation_with_a_key_of_its_own(past: Past, end: str) -> None:
    past.endpoint()
    past.emit()
    [original] = past.attempt(end)
    keys = [original]
    for generation in (1, 2):
        replay = past.replay(ALL, "re-emit")
        assert past.counts(replay) == {"re-emitted": 1}
        [(found, key)] = generations(past)
        assert found == generation
        assert key not in keys
        assert past.facts_of(key) == [("replayed", replay, 1, 0, False)]
        keys.append(key)
        assert past.attempt("delivered") == [key]


def test_a_redelivery_after_a_re_emission_is_of_the_first_generation_alone(past: Past) -> None:
    past.endpoint()
    [original] = past.deliver()
    past.replay(ALL, "re-emit")
    [newer] = past.attempt("delivered")
    past.replay()
    assert generations(past) == [(0, original)]
    past.attempt("delivered")
    past.replay(Choice(deliveries=(newer,)))
    assert generations(past) == [(1, newer)]


@pytest.mark.parametrize("judge_max", [0, 5000])
def test_a_re_emission_leaves_alone_what_is_live_or_was_called_off(
    past: Past, judge_max: int
) -> None:
    past.every_fate()
    expected = {
        "re-emitted": 3,  # delivered, dead, and dead by expiry: that one's event is past it
        "live": 4,
        "cancelled": 1,
        "discarded": 1,
        "redacted": 1,
        "removed": 1,
    }
    expected["re-emitted"], expected["expired"] = 2, 1
    assert past.counted(ALL, "re-emit", judge_max) == expected
    replay = past.replay(ALL, "re-emit")
    assert past.counts(replay) == expected


def late_subscription(past: Past, rule: Rule, org: str | None = "acme") -> int:
    """A subscription of the endpoint that there is, made after the events."""
    endpoint = past.one("SELECT min(id) FROM outbox.endpoint")
    return add_subscription(past.connection, endpoint, rule, org)


@pytest.mark.parametrize("judge_max", [0, 5000])
def test_a_backfill_gives_a_new_subscription_what_matches_and_only_once(
    past: Past, judge_max: int
) -> None:
    past.endpoint(rule=Rule(("nothing",)))
    past.emit(n=4)
    past.route()
    new = late_subscription(past, Rule(("orders.*",), filter="$ > 1"))
    past.deliver()  # routed to it: not a matter of a backfill
    choice = Choice(subscription_id=new)
    # The payloads are 1, 2, 3, 4 and 1: the filter takes three.
    assert past.counted(choice, "backfill", judge_max) == {"backfilled": 3}
    replay = past.replay(choice, "backfill")
    assert past.counts(replay) == {"backfilled": 3}
    assert {key for _, key in generations(past)} == {
        row[0]
        for row in past.rows(
            "SELECT outbox.delivery_id(e.id, e.created_at, %(s)s, 0, i.salt)"
            " FROM outbox.event e, outbox.installation i WHERE e.payload::text::int > 1",
            s=new,
        )
    }
    [first, *_] = past.attempt("delivered")
    assert past.facts(first)[0] == ("replayed", replay)
    assert past.counted(choice, "backfill", judge_max) == {"routed": 3}
    assert past.counts(past.replay(choice, "backfill")) == {"routed": 3}
    # What was backfilled is of the past now.
    assert past.counted(choice, judge_max=judge_max) == {"redelivered": 3}
    assert past.counts(past.replay(choice)) == {"redelivered": 3}


def test_a_backfill_waits_until_what_is_pending_is_routed(past: Past) -> None:
    past.endpoint(rule=Rule(("nothing",)))
    past.emit()
    new = late_subscription(past, Rule(("*",)))
    replay = past.make(Choice(subscription_id=new), "backfill")
    assert [past.batch(replay).state for _ in range(2)] == ["running", "running"]
    past.route()
    past.carry_out(replay)
    assert past.counts(replay) == {"backfilled": 1}


def test_a_backfill_needs_a_subscription_that_is_there(past: Past) -> None:
    past.endpoint()
    with pytest.raises(UsageError, match="needs the subscription"):
        past.make(ALL, "backfill")
    with pytest.raises(UsageError, match="chooses events alone"):
        past.make(Choice(subscription_id=1, missed=True), "backfill")
    with pytest.raises(NotFound):
        past.make(Choice(subscription_id=10**9), "backfill")
    gone = late_subscription(past, Rule(("*",)))
    remove_subscription(past.connection, gone)
    with pytest.raises(UsageError, match="is removed"):
        past.make(Choice(subscription_id=gone), "backfill")

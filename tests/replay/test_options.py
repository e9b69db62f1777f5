"""Replays of subscriptions with options: a time to live is an expiry like an event's own, a key's
turns hold, and what a key dropped was called off."""

from __future__ import annotations

from datetime import timedelta

import psycopg
import pytest

from outbox.store.dispatch import Dispatch
from outbox.store.options import Options
from outbox.store.rebuild import verify
from outbox.store.replay import Choice
from outbox.store.subscriptions import Rule
from tests.replay.helpers import Past

HOUR = timedelta(hours=1)


def checked(past: Past) -> None:
    """I13, after a replay too."""
    with psycopg.connect(past.url) as connection:
        assert verify(connection).samples == {}


def test_what_has_outlived_its_time_goes_out_only_when_asked_for(past: Past) -> None:
    past.endpoint(rule=Rule(("*",), options=Options(ttl=HOUR)))
    [late] = past.deliver()
    past.connection.execute("UPDATE outbox.subscription SET ttl = interval '1 microsecond'")
    assert past.counts(past.replay()) == {"expired": 1}
    assert past.counts(past.replay(Choice(ignore_expiry=True))) == {"redelivered": 1}
    assert past.live(late)["expires_at"] is None
    checked(past)


@pytest.mark.parametrize("mode", ["redeliver", "re-emit"])
def test_what_lives_still_keeps_its_end(past: Past, mode: str) -> None:
    past.endpoint(rule=Rule(("*",), options=Options(ttl=HOUR)))
    past.deliver()
    past.replay(mode=mode)
    soon = "expires_at BETWEEN now() AND now() + interval '1 h'"
    assert past.rows(f"SELECT {soon} FROM outbox.delivery") == [(True,)]
    checked(past)


def test_what_a_key_dropped_stays_called_off(past: Past) -> None:
    options = Options(once_key="org", once_for=HOUR)
    past.endpoint(rule=Rule(("*",), options=options))
    past.deliver(2)
    assert past.counts(past.replay()) == {"redelivered": 1, "cancelled": 1}
    checked(past)


def test_replayed_ones_of_a_key_take_turns(past: Past) -> None:
    past.endpoint(rule=Rule(("*",), options=Options(turn_key="org", turns=2)))
    past.deliver(2)
    past.deliver(2)
    past.replay()
    assert past.states() == {"held": 4}
    past.hot(lambda c: Dispatch(c, 30).advance(100))
    assert past.states() == {"held": 2, "scheduled": 2}
    checked(past)

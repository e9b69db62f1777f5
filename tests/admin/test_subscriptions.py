"""Subscriptions: what a rule may say, and what a change means."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import NotFound, UsageError
from outbox.store import subscriptions as store
from outbox.store.deliveries import Aligned
from outbox.store.endpoints import remove_endpoint
from outbox.store.subscriptions import Rule, check_filter, parse_patterns
from tests.admin.helpers import Shop

PREDICATES = [
    "$.record.total > 100",
    "strict $.record.total > 100",
    "exists($.record.paid_at)",
    '!(exists($.a)) || $.b == "x"',
    "($.a + $.b) * 2 >= 3",
    '$.items[*].sku == "A-1"',
    '$.name like_regex "^[a-z]+$" flag "i"',
    '$.name starts with "x"',
    '$.price == "cost$"',
    '$."$name" == "a \\"quoted\\" $"',
    '$."datetime" == ".datetime()"',
    '$.at > "2030-01-01T00:00:00Z"',
    "($.a == 1) is unknown",
]
NOT_PREDICATES = [
    "",
    "$",
    "$.total",
    "strict $.total",
    "$.total >",
    "total > 1",
    "$.items[*] ? (@.n > 1)",
    "$.items.size()",
    "1",
    '"text"',
    "$limit < 1",
    "(1 == 2) && ($.total > $limit)",
    '$.at.datetime() < "2030-01-01T00:00:00Z".datetime()',
    "$.total > 1; DROP TABLE x",
    "$.total > 1" + " " * 1024,
    "$.\u00e4 == " + '"' + "\u00e4" * 600 + '"',
    "$.a == 1 \x00",
]


@pytest.mark.parametrize("text", PREDICATES)
def test_a_predicate_is_a_filter(shop: Shop, text: str) -> None:
    check_filter(shop.connection, text)


@pytest.mark.parametrize("text", NOT_PREDICATES, ids=range(len(NOT_PREDICATES)))
def test_anything_else_is_refused_in_one_line(shop: Shop, text: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_filter(shop.connection, text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", PREDICATES)
def test_the_router_judges_every_accepted_filter_without_an_error(shop: Shop, text: str) -> None:
    payloads = ["null", "1", "[]", '"x"', '{"a":{"b":[1]}}', '{"at":"x","record":{"total":"9"}}']
    for payload in payloads:
        query = "SELECT outbox.filter_passes(%(filter)s, %(payload)s)"
        assert shop.one(query, filter=text, payload=payload) in {True, False}


def test_a_filter_decides_what_is_delivered(shop: Shop) -> None:
    shop.endpoint(rule=Rule(("*",), filter="$ > 2"))
    shop.emit(n=4)
    shop.route()
    assert shop.states() == {"scheduled": 2}


@pytest.mark.parametrize("text", ["*", "orders.*", "a.b", "a.b.*", "outbox.*", "a-b_1,c , d.e"])
def test_patterns_are_exact_or_end_in_a_star(text: str) -> None:
    assert parse_patterns(text) == tuple(part.strip() for part in text.split(","))


@pytest.mark.parametrize(
    "text",
    ["", ",", "a,", "a.", ".a", "a..b", "*.a", "a*", "a.*.b", "a b", "**", "a.**", "\u00e4", "a\n"],
)
def test_other_patterns_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        store.check_patterns(tuple(text.split(",")))


@given(st.text(max_size=40))
def test_any_text_is_a_list_of_patterns_or_one_clear_error(text: str) -> None:
    try:
        patterns = parse_patterns(text)
    except UsageError as error:
        assert "\n" not in str(error)
    else:
        assert all(pattern.isascii() and pattern.strip() for pattern in patterns)


@pytest.mark.parametrize(
    "fields",
    [
        {"patterns": ()},
        {"patterns": ("a",) * 101},
        {"patterns": ("a" * 201,)},
        {"retry": "5s,1s"},
        {"retry": ""},
        {"max_age": timedelta()},
        {"body_format": 3},
    ],
    ids=str,
)
def test_a_rule_out_of_form_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Rule(**({"patterns": ("*",)} | fields))  # type: ignore[arg-type]


def test_an_endpoint_takes_further_subscriptions_of_its_organization(shop: Shop) -> None:
    added = shop.endpoint(None)
    second = store.add_subscription(shop.connection, added.id, Rule(("a.b",), body_format=2))
    shown = store.show_subscription(shop.connection, second)
    assert (shown["endpoint"], shown["all_orgs"], shown["body"]) == (
        added.id,
        True,
        "database-webhook",
    )
    listed = store.list_subscriptions(shop.connection, endpoint_id=added.id)
    assert [row["id"] for row in listed] == [added.subscription_id, second]


def test_a_removed_or_foreign_endpoint_takes_none(shop: Shop) -> None:
    added = shop.endpoint()
    with pytest.raises(NotFound):
        store.add_subscription(shop.connection, added.id, Rule(("*",)), "rival")
    remove_endpoint(shop.connection, added.id)
    with pytest.raises(NotFound):
        store.add_subscription(shop.connection, added.id, Rule(("*",)))


def test_every_change_leaves_a_revision_to_read(shop: Shop) -> None:
    added = shop.endpoint()
    store.pause_subscription(shop.connection, added.subscription_id)
    store.pause_subscription(shop.connection, added.subscription_id)
    store.resume_subscription(shop.connection, added.subscription_id)
    store.remove_subscription(shop.connection, added.subscription_id)
    query = "SELECT revision, config ->> 'state' FROM outbox.subscription_revision ORDER BY 1"
    assert shop.rows(query) == [(1, "active"), (2, "paused"), (3, "active"), (4, "removed")]


def test_pause_resume_remove_hold_release_and_cancel(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit(n=3)
    shop.route()
    paused = store.pause_subscription(shop.connection, added.subscription_id)
    assert paused.deliveries == Aligned(held=3)
    resumed = store.resume_subscription(shop.connection, added.subscription_id)
    assert resumed.deliveries == Aligned(released=3)
    leases = shop.lease(1)
    removed = store.remove_subscription(shop.connection, added.subscription_id)
    assert removed.deliveries == Aligned(cancelled=3)
    assert shop.take(leases) == set()
    for action in (store.pause_subscription, store.resume_subscription):
        with pytest.raises(NotFound):
            action(shop.connection, added.subscription_id)


def test_removing_one_subscription_leaves_its_neighbour(shop: Shop) -> None:
    added = shop.endpoint()
    second = store.add_subscription(shop.connection, added.id, Rule(("*",)))
    shop.emit(n=3)
    shop.route(2)
    store.remove_subscription(shop.connection, second)
    query = "SELECT subscription_id, count(*) FROM outbox.delivery GROUP BY 1"
    assert shop.rows(query) == [(added.subscription_id, 3)]


def test_another_organization_reads_and_changes_nothing(shop: Shop) -> None:
    added = shop.endpoint()
    actions = (
        store.pause_subscription,
        store.resume_subscription,
        store.remove_subscription,
        store.show_subscription,
    )
    for action in actions:
        with pytest.raises(NotFound):
            action(shop.connection, added.subscription_id, "rival")
    assert store.list_subscriptions(shop.connection, "rival") == []
    shown = store.show_subscription(shop.connection, added.subscription_id, "acme")
    assert (shown["state"], shown["revision"]) == ("active", 1)

"""Deliveries and events for operators: lists, stories, calling off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from outbox.errors import NotFound, UsageError
from outbox.store import deliveries as store
from outbox.store.dead import Selection, redrive
from outbox.store.events import EventFilter, list_events, show_event
from tests.admin.helpers import Shop


def story(shop: Shop, delivery_id: UUID) -> list[str]:
    shown = store.show_delivery(shop.connection, delivery_id)
    return [fact["fact"] for fact in shown["journal"]]


def test_a_cancelled_delivery_is_gone_and_its_story_stays(shop: Shop) -> None:
    shop.endpoint()
    shop.emit()
    shop.route()
    [(delivery_id,)] = shop.rows("SELECT id FROM outbox.delivery")
    done = store.cancel_deliveries(shop.connection, [delivery_id, delivery_id], reason="mistake")
    assert (done.cancelled, done.ended, done.unknown) == ([delivery_id], [], [])
    assert story(shop, delivery_id) == ["routed", "cancelled"]
    shown = store.show_delivery(shop.connection, delivery_id)
    assert (shown["state"], shown["journal"][-1]["reason"]) == ("cancelled", "mistake")


def test_cancelling_takes_the_lease_from_its_worker(shop: Shop) -> None:
    shop.endpoint()
    shop.emit(n=2)
    leases = shop.route(2)
    shop.take(leases[:1])
    done = store.cancel_deliveries(shop.connection, [i for i, _ in leases])
    assert len(done.cancelled) == 2
    assert shop.take(leases) == set()
    assert shop.settle(leases, "delivered") == set()


def test_what_has_ended_or_is_unknown_is_told_apart(shop: Shop) -> None:
    shop.endpoint()
    shop.emit()
    [delivered] = shop.attempt("delivered")
    [dead] = shop.kill()
    stranger = uuid4()
    done = store.cancel_deliveries(shop.connection, [delivered, dead, stranger])
    assert done.cancelled == []
    assert set(done.ended) == {delivered, dead}
    assert done.unknown == [stranger]


def test_another_organizations_delivery_is_unknown(shop: Shop) -> None:
    shop.endpoint()
    shop.emit()
    shop.route()
    delivery_id = shop.one("SELECT id FROM outbox.delivery")
    assert store.cancel_deliveries(shop.connection, [delivery_id], "rival").unknown == [delivery_id]
    with pytest.raises(NotFound):
        store.show_delivery(shop.connection, delivery_id, "rival")
    assert store.list_deliveries(shop.connection, "rival") == []
    assert shop.states() == {"scheduled": 1}


def test_a_reason_is_not_a_novel(shop: Shop) -> None:
    with pytest.raises(UsageError):
        store.cancel_deliveries(shop.connection, [uuid4()], reason="x" * 201)


def test_the_story_tells_every_attempt_and_every_budget(shop: Shop) -> None:
    shop.endpoint()
    shop.emit()
    [delivery_id] = shop.attempt("dead", "http_503")
    redrive(shop.connection, Selection(ids=[delivery_id]))
    shop.attempt("delivered", "http_200")
    assert story(shop, delivery_id) == ["routed", "dead", "redriven", "delivered"]
    shown = store.show_delivery(shop.connection, delivery_id, "acme")
    assert (shown["state"], shown["budget"], shown["type"]) == ("delivered", 2, "orders.paid")
    assert shown["url"] == "https://hooks.example.com/in"


def test_a_delivery_nobody_knows_is_not_found(shop: Shop) -> None:
    with pytest.raises(NotFound):
        store.show_delivery(shop.connection, uuid4())


def test_deliveries_are_listed_newest_first_page_by_page(shop: Shop) -> None:
    added, other = shop.endpoint(), shop.endpoint("rival")
    shop.emit(n=5)
    shop.emit("rival", 1)
    shop.route(1)
    ids = [row["id"] for row in store.list_deliveries(shop.connection)]
    assert ids == sorted(ids, reverse=True)
    assert len(ids) == 6
    first = store.list_deliveries(shop.connection, rows_max=4)
    rest = store.list_deliveries(shop.connection, before=UUID(first[-1]["id"]))
    assert [row["id"] for row in [*first, *rest]] == ids
    assert len(store.list_deliveries(shop.connection, endpoint_id=added.id)) == 5
    assert len(store.list_deliveries(shop.connection, state="leased")) == 1
    [foreign] = store.list_deliveries(shop.connection, subscription_id=other.subscription_id)
    assert foreign["org"] == "rival"


# -- events ---------------------------------------------------------------------------------------


def test_an_event_is_shown_with_its_payload_and_what_became_of_it(shop: Shop) -> None:
    shop.endpoint()
    [event_id] = shop.emit()
    assert show_event(shop.connection, event_id)["pending"] is True
    [delivery_id] = shop.attempt("delivered")
    shown = show_event(shop.connection, event_id, "acme")
    assert (shown["type"], shown["payload"], shown["pending"]) == ("orders.paid", 1, False)
    assert [fact["fact"] for fact in shown["journal"]] == ["routed", "delivered"]
    assert shown["journal"][1]["delivery"] == str(delivery_id)


def test_the_payload_is_shown_as_it_is_stored(shop: Shop) -> None:
    text = '{"n": 12345678901234567890.123456789, "n": 1}'
    [(event_id,)] = shop.rows("SELECT outbox.emit('a.b', %(text)s::json, 'acme')", text=text)
    assert show_event(shop.connection, event_id)["payload_text"] == text


def test_another_organizations_event_is_not_found(shop: Shop) -> None:
    [event_id] = shop.emit()
    for org in ("rival", ""):
        with pytest.raises(NotFound):
            show_event(shop.connection, event_id, org)
    assert list_events(shop.connection, EventFilter(org="rival")) == []


def test_events_are_found_by_type_subject_organization_and_time(shop: Shop) -> None:
    emit = "SELECT outbox.emit(%(type)s, '1'::json, %(org)s, %(subject)s)"
    ids = [
        shop.one(emit, type=kind, org=org, subject=subject)
        for kind, org, subject in [
            ("orders.paid", "acme", "orders/1"),
            ("orders.sent", "acme", "orders/2"),
            ("invoices.paid", "rival", "orders/1"),
        ]
    ]
    middle = shop.one("SELECT created_at FROM outbox.event WHERE id = %(id)s", id=ids[1])
    hour = timedelta(hours=1)
    cases = [
        (EventFilter(), [2, 1, 0]),
        (EventFilter(patterns=("orders.*",)), [1, 0]),
        (EventFilter(patterns=("invoices.paid", "orders.sent")), [2, 1]),
        (EventFilter(org="acme"), [1, 0]),
        (EventFilter(subject="orders/1"), [2, 0]),
        (EventFilter(since=middle), [2, 1]),
        (EventFilter(until=middle), [0]),
        (EventFilter(since=datetime.now(UTC) + hour), []),
        (EventFilter(before=ids[2]), [1, 0]),
        (EventFilter(org="acme", subject="orders/1"), [0]),
    ]
    for wanted, expected in cases:
        found = [row["id"] for row in list_events(shop.connection, wanted)]
        assert found == [ids[i] for i in expected], wanted
    assert len(list_events(shop.connection, EventFilter(), rows_max=2)) == 2


def test_events_of_all_slots_are_listed_in_one_order(shop: Shop) -> None:
    ids = []
    for slot in (6, 7, 0, 1):
        shop.rows("SELECT setval('outbox.ring_slot', %(slot)s)", slot=slot)
        ids += shop.emit(n=2)
    assert [row["id"] for row in list_events(shop.connection, EventFilter())] == ids[::-1]

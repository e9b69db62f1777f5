"""The story of one delivery, told from its facts; the request a redrive would send."""

from __future__ import annotations

import asyncio
import json
import os
import re
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from cli import _wiring, open_processors
from outbox.addressbook import open_endpoint
from outbox.attempt import work_of
from outbox.commands.story import gap, lines, tell, waits_for
from outbox.history import FactName
from outbox.settings import load_settings
from outbox.store import endpoints
from outbox.store.attempts import Attempts, Settlement
from outbox.store.dead import Selection, letter_as_taken, redrive
from outbox.store.deliveries import cancel_deliveries, show_delivery
from outbox.store.endpoints import load_endpoint
from outbox.store.events import show_event
from tests.admin.calling import Outbox, Ran, Receiver, added
from tests.admin.helpers import Shop

START = datetime(2030, 1, 1, tzinfo=UTC)


def told(shop: Shop, delivery_id: UUID) -> list[str]:
    return [line.text for line in tell(show_delivery(shop.connection, delivery_id))]


def attempt(shop: Shop, verdict: str, reason: str, **detail: object) -> UUID:
    leases = shop.route(10) + shop.lease()
    shop.take(leases)
    [(delivery_id, token)] = leases
    delay_s = 5.0 if verdict == "retry" else None
    text = json.dumps({"duration_ms": 12} | detail)
    settled = [Settlement(delivery_id, token, verdict, True, reason, delay_s, text)]
    shop.hot(lambda c: Attempts(c).settle(settled))
    return delivery_id


def due_now(shop: Shop) -> None:
    shop.connection.execute("UPDATE outbox.delivery SET due_at = clock_timestamp()")


def test_a_long_life_is_told_step_by_step(shop: Shop) -> None:
    added = shop.endpoint()
    [event_id] = shop.emit()
    delivery_id = attempt(shop, "retry", "http_503", response="busy\nnow", error=None)
    shop.connection.execute("UPDATE outbox.delivery SET due_at = clock_timestamp() + '1 h'")
    endpoints.pause_endpoint(shop.connection, added.id)
    endpoints.resume_endpoint(shop.connection, added.id)
    due_now(shop)
    attempt(shop, "dead", "http_500", ended_by="attempts")
    redrive(shop.connection, Selection())
    attempt(shop, "delivered", "http_200")
    assert told(shop, delivery_id) == [
        f"event {event_id} written",
        f"routed by subscription {added.subscription_id}, revision 1",
        "attempt 1 failed: http_503 in 12 ms; the next in 5 s",
        "held: its destination is paused",
        "released: resumed",
        "attempt 2 failed: http_500 in 12 ms; dead; its attempts are used up",
        "redriven: attempts of budget 2 begin",
        "attempt 1 of budget 2 delivered: http_200 in 12 ms",
    ]
    text = list(lines(show_delivery(shop.connection, delivery_id)))
    assert text[3].strip() == "answer: busy now"
    assert re.fullmatch(r"\S+T\S+  +\+\S+ m?s  routed by .*", text[1])
    # The fold of this test's own due times is not what the journal says.
    shop.connection.execute("DELETE FROM outbox.delivery")


def test_a_live_delivery_says_what_it_waits_for(shop: Shop) -> None:
    added = shop.endpoint()
    shop.emit()
    leases = shop.route(1)
    delivery_id = leases[0][0]
    assert "on its way" in str(waits_for(show_delivery(shop.connection, delivery_id)))
    shop.take(leases)
    assert "being tried since" in str(waits_for(show_delivery(shop.connection, delivery_id)))
    shop.settle(leases, "release", "shutdown")
    assert told(shop, delivery_id)[-1] == "given back unfinished (shutdown): due at once"
    assert "due at" in str(waits_for(show_delivery(shop.connection, delivery_id)))
    endpoints.pause_endpoint(shop.connection, added.id)
    paused = show_delivery(shop.connection, delivery_id)
    assert waits_for(paused) == "held: its destination is paused"
    assert list(lines(paused))[-1].strip() == "now held: its destination is paused"
    cancel_deliveries(shop.connection, [delivery_id], reason="mistake")
    assert told(shop, delivery_id)[-1] == "cancelled: mistake"
    assert waits_for(show_delivery(shop.connection, delivery_id)) is None


def fact(name: str, **fields: object) -> dict[str, Any]:
    at = {"at": START.isoformat(), "fact": name, "detail": None, "charged": False}
    return at | {"reason": "why", "due_at": START.isoformat(), "budget": 1, "attempt": 1} | fields


def delivery(*facts: dict[str, Any]) -> dict[str, Any]:
    fields = {"event": 1, "event_at": START.isoformat(), "subscription": 5, "state": "delivered"}
    return fields | {"journal": list(facts)}


def test_every_fact_has_its_words() -> None:
    for name in FactName:
        story = delivery(fact("routed", revision=1, reason=None), fact(str(name)))
        assert all(list(tell(story))), name


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (fact("routed", revision=2, reason="disabled"), "held: its destination is disabled"),
        (
            fact("routed", reason=None, due_at=(START + timedelta(days=1)).isoformat()),
            "due at 2030-01-02",
        ),
        (fact("lease_expired", charged=True), "died or hung"),
        (fact("lease_expired"), "the message was lost or late"),
        (fact("dead", reason="lease_expired"), "every worker"),
        (fact("dead", reason="parked"), "parked behind"),
        (fact("dead", reason="denied_target"), "an attempt that is not charged failed"),
        (fact("dead", charged=True, detail={"ended_by": "max_age"}), "its maximum age"),
        (fact("replayed", reason="r1", detail={"generation": 2}), "as generation 2 by r1"),
        (fact("replayed", reason="r1"), "replayed by r1"),
        (fact("expired"), "expired before"),
        (fact("discarded"), "given up: why"),
        (fact("redacted", detail={"by": "ann"}), "contents erased by ann: why"),
        (fact("carried", detail={"state": "held", "error": "x"}), "carried to a newer slot"),
    ],
)
def test_a_fact_is_told_in_a_sentence(given: dict[str, Any], words: str) -> None:
    assert words in list(tell(delivery(given)))[-1].text


def test_what_is_past_retention_is_said() -> None:
    story = delivery(fact("carried", detail={"state": "held"}), fact("released", reason="resumed"))
    assert [line.text for line in tell(story)][1:] == [
        "what happened before is past retention",
        "carried to a newer slot of the log",
        "released: resumed",
    ]


def test_a_receivers_answer_is_quoted_on_one_line_and_cut() -> None:
    answer = "a\x1b[31m\n" + "x" * 400
    [note] = list(tell(delivery(fact("attempt_failed", detail={"response": answer}))))[-1].notes
    assert len(note) < 320
    text = list(lines(delivery(fact("attempt_failed", detail={"response": answer}))))
    assert all(line.isprintable() for line in text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "+0 ms"), (-1, "+0 ms"), (0.0354, "+35 ms"), (5.25, "+5.2 s"), (180, "+3 min"),
     (9000, "+2.5 h"), (86400 * 9, "+9 d")],
)  # fmt: skip
def test_a_gap_is_short(seconds: float, text: str) -> None:
    assert gap(seconds) == text


def test_an_event_shows_its_deliveries_and_where_each_is(shop: Shop) -> None:
    first, second, third = (shop.endpoint() for _ in range(3))
    [event_id] = shop.emit()
    leases = sorted(shop.route(3))
    shop.take(leases)
    shop.settle(leases[:1], "delivered", "http_200")
    shop.settle(leases[1:2], "dead", "http_500")
    shown = show_event(shop.connection, event_id)["deliveries"]
    assert sorted(row["subscription"] for row in shown) == [
        first.subscription_id, second.subscription_id, third.subscription_id
    ]  # fmt: skip
    states = {row["id"]: (row["state"], row["attempts"], row["reason"]) for row in shown}
    assert states == {
        str(leases[0][0]): ("delivered", 1, "http_200"),
        str(leases[1][0]): ("dead", 1, "http_500"),
        str(leases[2][0]): ("leased", 0, None),
    }


# -- the request of a dead letter -----------------------------------------------------------------


def letter(shop: Shop, payload: str = "1") -> UUID:
    shop.rows("SELECT outbox.emit('orders.paid', %(text)s::json, 'acme')", text=payload)
    [delivery_id] = shop.attempt("dead")
    return delivery_id


def shown(outbox: Outbox, delivery_id: UUID, *args: str, **environ: str) -> Ran:
    ran = outbox("dead", "show", delivery_id, *args, **environ)
    assert ran.code == 0, ran.err
    return ran


def test_the_request_is_what_a_redrive_sends_to_the_byte(
    outbox: Outbox, shop: Shop, receiver: Receiver
) -> None:
    """Header by header and byte by byte against a real request of the processor itself."""
    made = added(outbox, "--header", "authorization: Bearer top-secret")
    shop.connection.execute("UPDATE outbox.endpoint SET url = %s", [receiver.url])
    payload = '{"operation":"INSERT","n":\n 12345678901234567890.10,"t":"\\u00e9 \u00e9"}'
    delivery_id = letter(shop, payload)
    request = shown(outbox, delivery_id, "--json", **receiver.settings).document["request"]

    settings = load_settings({}, {**os.environ, **receiver.settings})
    taken = letter_as_taken(shop.connection, delivery_id)
    stored = load_endpoint(shop.connection, made["id"], None)
    work = work_of(taken, open_endpoint(stored, settings.key_ring()))

    async def send() -> None:
        async with open_processors(settings) as processors:
            await processors["webhook"](work, asyncio.get_running_loop().time() + 30)

    asyncio.run(send())
    [(headers, body)] = receiver.requests
    assert request["body"].encode() == body
    assert payload.encode() in body
    named = {name.lower(): value for name, value in request["headers"]}
    assert named.keys() == headers.keys()
    masked = {name for name in named if named[name] != headers[name]}
    assert masked == {"webhook-timestamp", "webhook-signature", "authorization"}
    assert "top-secret" not in json.dumps(request)
    assert (request["method"], request["url"]) == ("POST", receiver.url)
    assert _wiring().preview(settings, work).body == body
    alone = shown(outbox, delivery_id, "--body", **receiver.settings)
    assert alone.out.encode() == body


def test_people_see_the_story_and_the_request(outbox: Outbox, shop: Shop) -> None:
    added(outbox, "--header", "x-token: top-secret")
    delivery_id = letter(shop)
    ran = shown(outbox, delivery_id)
    assert "attempt 1 failed: http_500; dead" in ran.out
    assert "POST https://hooks.example.com/in\n" in ran.out
    assert f"webhook-id: {delivery_id}" in ran.out
    assert "x-token: ***\n" in ran.out
    assert ran.out.endswith('"data":1}\n')


def test_without_the_secret_key_the_body_is_shown_all_the_same(outbox: Outbox, shop: Shop) -> None:
    added(outbox, "--header", "x-token: top-secret")
    delivery_id = letter(shop)
    ran = shown(outbox, delivery_id, OUTBOX_SECRET_KEY="")
    assert "OUTBOX_SECRET_KEY" in ran.err
    assert "x-token" not in ran.out
    assert ran.out.endswith('"data":1}\n')


def test_a_request_that_the_guard_refuses_is_shown_with_the_reason(
    outbox: Outbox, shop: Shop
) -> None:
    added(outbox)
    delivery_id = letter(shop)
    shop.connection.execute("UPDATE outbox.endpoint SET url = 'https://127.0.0.1/in'")
    request = shown(outbox, delivery_id, "--json").document["request"]
    assert "is not public" in request["refused"]
    assert (request["headers"], request["url"]) == ([], "https://127.0.0.1/in")
    assert "would be refused" in shown(outbox, delivery_id).err


def test_a_removed_destination_gets_no_request(outbox: Outbox, shop: Shop) -> None:
    made = added(outbox)
    delivery_id = letter(shop)
    endpoints.remove_endpoint(shop.connection, made["id"])
    assert shown(outbox, delivery_id, "--json").document["request"] is None
    assert "no request would be sent" in shown(outbox, delivery_id).err
    assert outbox("dead", "show", delivery_id, "--body").code == 1
    assert outbox("dead", "show", delivery_id, "--org", "rival").code == 9

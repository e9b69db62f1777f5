"""The commands as they are called: one JSON document, one line for a mistake, exit codes."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from standardwebhooks.webhooks import Webhook

from outbox.addressbook import open_endpoint
from outbox.secrets import KeyRing
from outbox.store.endpoints import load_endpoint
from tests.admin.calling import KEY, Outbox, Receiver, added
from tests.admin.helpers import URL, Shop

# -- endpoints ------------------------------------------------------------------------------------


def test_add_takes_every_option_and_prints_the_secret_once(
    outbox: Outbox, shop: Shop, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("Bearer s3cret\n")
    document = added(
        outbox,
        *("--events", "orders.*,invoices.paid", "--filter", "$.total > 3"),
        *("--retry", "exp:base=5s,factor=2,cap=1h,attempts=12", "--max-age", "3d"),
        *("--concurrency", "7", "--rate", "2.5/s", "--timeout", "3s"),
        *("--header", "X-Env: prod", "--header", "Authorization: @token"),
        *("--body", "database-webhook", "--no-gone-disables"),
        *("--ordered", "park", "--no-circuit", "--disable-after", "12h"),
    )
    assert set(document) == {"id", "subscription_id", "url", "secret"}
    assert document["secret"].startswith("whsec_")
    shown = outbox("endpoints", "show", document["id"], "--json")
    listed = outbox("endpoints", "list", "--json")
    assert listed.document == [shown.document]
    rule = shown.document["subscriptions"][0]
    assert rule["events"] == ["orders.*", "invoices.paid"]
    assert (rule["filter"], rule["body"]) == ("$.total > 3", "database-webhook")
    assert (rule["retry"], rule["max_age_s"]) == (
        "exp:base=5s,factor=2,cap=1h,attempts=12",
        259200,
    )
    assert (shown.document["concurrency"], shown.document["rate_per_s"]) == (7, 2.5)
    assert shown.document["gone_disables"] is False
    assert (shown.document["circuit"], shown.document["disable_after_s"]) == (False, 43200)
    assert rule["order"] == "park"
    for ran in (shown, listed):
        assert "s3cret" not in ran.out
        assert document["secret"] not in ran.out
    stored = load_endpoint(shop.connection, document["id"], "acme")
    opened = open_endpoint(stored, KeyRing.from_text(KEY))
    assert opened.headers == {"X-Env": "prod", "Authorization": "Bearer s3cret"}


def test_add_for_people_says_to_keep_the_secret_and_keeps_it_off_stderr(outbox: Outbox) -> None:
    ran = outbox("endpoints", "add", "--org", "a", "--url", URL, "--events", "*")
    assert "whsec_" in ran.out
    assert "not shown again" in ran.err
    assert "whsec_" not in ran.err


def test_an_ed25519_endpoint_prints_a_public_key(outbox: Outbox) -> None:
    document = added(outbox, "--signing", "ed25519")
    assert document["public_key"].startswith("whpk_")
    assert "secret" not in document


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--org", "a", "--url", "ftp://x.example.com/", "--events", "*"], 10),
        (["--org", "a", "--url", "http://x.example.com/", "--events", "*"], 10),
        (["--org", "a", "--url", "https://u:p@x.example.com/", "--events", "*"], 10),
        (["--org", "a", "--url", "https://x.example.com:22/", "--events", "*"], 10),
        (["--org", "a", "--url", "https://10.0.0.1/", "--events", "*"], 10),
        (["--org", "a", "--url", "https://[::1]/", "--events", "*"], 10),
        (["--org", "a", "--url", "nonsense", "--events", "*"], 10),
        (["--url", URL, "--events", "*"], 2),
        (["--org", "a", "--all-orgs", "--url", URL, "--events", "*"], 2),
        (["--org", "a", "--url", URL], 2),
        (["--org", "a", "--url", URL, "--events", "a..b"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--filter", "$.a"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--retry", "5s,1s"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--max-age", "soon"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--rate", "5"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--rate", "0/s"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--concurrency", "0"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--timeout", "1h"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--ordered", "never"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--disable-after", "1s"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--disable-after", "soon"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--header", "Host: x"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--header", "webhook-id: x"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--header", "no colon"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--header", "A: 1", "--header", "a: 2"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--header", "A: b\nc: d"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--header", "A: @missing"], 3),
        (["--org", "a", "--url", URL, "--events", "*", "--secret", "whsec_QUJD"], 2),
        (["--org", "a", "--url", URL, "--events", "*", "--secret", "@missing"], 3),
    ],
    ids=lambda value: " ".join(value[4:]) if isinstance(value, list) else str(value),
)
def test_a_mistake_in_add_is_one_line_and_changes_nothing(
    outbox: Outbox, shop: Shop, args: list[str], code: int
) -> None:
    ran = outbox("endpoints", "add", *args, "--json")
    assert (ran.code, ran.out) == (code, "")
    assert len(ran.err.splitlines()) == 1
    assert shop.one("SELECT count(*) FROM outbox.endpoint") == 0


@pytest.mark.parametrize("command", ["add", "rotate-secret", "test"])
def test_without_a_key_nothing_is_sealed_or_opened(outbox: Outbox, command: str) -> None:
    endpoint = added(outbox)["id"]
    args = ["--org", "a", "--url", URL, "--events", "*"] if command == "add" else [endpoint]
    ran = outbox("endpoints", command, *args, OUTBOX_SECRET_KEY="")
    assert ran.code == 11
    assert "OUTBOX_SECRET_KEY" in ran.err


@pytest.mark.parametrize("command", ["add", "rotate-secret", "test"])
def test_a_wrong_key_is_one_line(outbox: Outbox, command: str) -> None:
    endpoint = added(outbox)["id"]
    args = ["--org", "a", "--url", URL, "--events", "*"] if command == "add" else [endpoint]
    ran = outbox("endpoints", command, *args, OUTBOX_SECRET_KEY=KeyRing.generate_text())
    assert ran.code == 11
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize("header", ["whole-secret", ": whole-secret", "A b: whole-secret"])
def test_a_malformed_header_is_refused_without_being_shown(outbox: Outbox, header: str) -> None:
    ran = outbox(
        *("endpoints", "add", "--org", "a", "--url", URL, "--events", "*", "--header", header)
    )
    assert ran.code == 2
    assert "whole-secret" not in ran.err


def test_pause_resume_and_remove_print_what_became_of_deliveries(
    outbox: Outbox, shop: Shop
) -> None:
    endpoint = added(outbox)["id"]
    shop.emit(n=2)
    shop.route()
    fields = {"id": endpoint, "held": 0, "released": 0, "cancelled": 0}
    assert outbox("endpoints", "pause", endpoint, "--json").document == fields | {
        "was": "active",
        "state": "paused",
        "held": 2,
    }
    assert outbox("endpoints", "resume", endpoint, "--json").document == fields | {
        "was": "paused",
        "state": "active",
        "released": 2,
    }
    assert outbox("endpoints", "remove", endpoint, "--json").document == fields | {
        "was": "active",
        "state": "removed",
        "cancelled": 2,
    }
    assert outbox("endpoints", "resume", endpoint).code == 9
    assert outbox("endpoints", "list", "--json").document == []


@pytest.mark.parametrize("action", ["show", "pause", "resume", "remove", "rotate-secret", "test"])
def test_an_unknown_foreign_or_malformed_endpoint(outbox: Outbox, action: str) -> None:
    endpoint = added(outbox)["id"]
    assert outbox("endpoints", action, endpoint, "--org", "rival").code == 9
    assert outbox("endpoints", action, 2**62).code == 9
    assert outbox("endpoints", action, "one").code == 2
    assert outbox("endpoints", action, "0").code == 2


# -- test -----------------------------------------------------------------------------------------


def test_a_test_event_is_signed_by_old_and_new_key_and_leaves_no_trace(
    outbox: Outbox, shop: Shop, receiver: Receiver
) -> None:
    first = outbox(
        *("endpoints", "add", "--org", "acme", "--events", "*", "--url", receiver.url),
        *("--header", "X-Env: prod", "--json"),
        **receiver.settings,
    ).document
    second = outbox("endpoints", "rotate-secret", first["id"], "--json").document
    assert second["secret"] != first["secret"]
    ran = outbox("endpoints", "test", first["id"], "--json", **receiver.settings)
    assert ran.code == 0, ran.err
    shown = ran.document
    assert (shown["delivered"], shown["status"], shown["reason"]) == (True, 200, "http_200")
    assert shown["duration_ms"] >= 0
    [(headers, body)] = receiver.requests
    for secret in (first["secret"], second["secret"]):
        assert Webhook(secret).verify(body, headers)["type"] == "outbox.test"
    assert headers["x-env"] == "prod"
    for table in ("event", "pending", "delivery", "dead_letter", "journal"):
        assert shop.one(f"SELECT count(*) FROM outbox.{table}") == 0


def test_a_test_that_is_not_delivered_says_why_and_fails(
    outbox: Outbox, receiver: Receiver
) -> None:
    endpoint = outbox(
        *("endpoints", "add", "--org", "a", "--events", "*", "--url", receiver.url, "--json"),
        **receiver.settings,
    ).document["id"]
    receiver.status = 500
    ran = outbox("endpoints", "test", endpoint, "--json", **receiver.settings)
    assert ran.code == 1
    assert (ran.document["delivered"], ran.document["status"]) == (False, 500)
    # The guard judges again: what was allowed when it was added may not be allowed now.
    ran = outbox("endpoints", "test", endpoint, "--json")
    assert (ran.code, ran.document["outcome"]) == (1, "denied")
    assert len(receiver.requests) == 1


def test_a_copied_database_sends_no_test_event(
    outbox: Outbox, shop: Shop, receiver: Receiver
) -> None:
    endpoint = outbox(
        *("endpoints", "add", "--org", "a", "--events", "*", "--url", receiver.url, "--json"),
        **receiver.settings,
    ).document["id"]
    shop.connection.execute("UPDATE outbox.installation SET database_oid = 1")
    ran = outbox("endpoints", "test", endpoint, **receiver.settings)
    assert (ran.code, ran.out) == (7, "")
    assert "outbox adopt" in ran.err
    assert receiver.requests == []


# -- the rest -------------------------------------------------------------------------------------


def test_subscriptions_from_the_command_line(outbox: Outbox) -> None:
    endpoint = added(outbox)["id"]
    ran = outbox("subscriptions", "add", "--endpoint", endpoint, "--events", "a.*", "--json")
    subscription = ran.document["id"]
    assert ran.document["endpoint"] == endpoint
    listed = outbox("subscriptions", "list", "--endpoint", endpoint, "--json").document
    assert [row["id"] for row in listed][1:] == [subscription]
    for action, state in [("pause", "paused"), ("resume", "active"), ("remove", "removed")]:
        assert outbox("subscriptions", action, subscription, "--org", "rival").code == 9
        assert outbox("subscriptions", action, subscription, "--json").document["state"] == state
    assert outbox("subscriptions", "pause", subscription).code == 9
    shown = outbox("subscriptions", "show", subscription, "--json").document
    assert (shown["state"], shown["events"]) == ("removed", ["a.*"])
    assert outbox("subscriptions", "add", "--endpoint", 2**60, "--events", "*").code == 9


def test_dead_letters_from_the_command_line(outbox: Outbox, shop: Shop) -> None:
    endpoint = added(outbox)["id"]
    a, b, c = shop.kill(3)
    [reasons] = outbox("dead", "list", "--by-reason", "--json").document
    assert (reasons["reason"], reasons["endpoint"], reasons["n"]) == ("http_500", endpoint, 3)
    assert len(outbox("dead", "list", "--org", "acme", "--json").document) == 3
    shown = outbox("dead", "show", a, "--json").document
    assert [fact["fact"] for fact in shown["journal"]] == ["routed", "dead"]
    counted = {"redriven": 3, "removed": 0, "expired": 0, "unknown": 0, "dry_run": True}
    assert outbox("dead", "redrive", "--all", "--dry-run", "--json").document == counted
    assert outbox("dead", "redrive", a, b, "--json").document["redriven"] == 2
    assert outbox("dead", "show", a).code == 9
    discarded = outbox("dead", "discard", c, "--reason", "no use", "--json").document
    assert discarded == {"discarded": 1, "unknown": 0, "dry_run": False}
    assert shop.facts(c)[-1] == ("discarded", "no use")


def test_dead_letters_are_chosen_by_what_they_died_of(outbox: Outbox, shop: Shop) -> None:
    added(outbox)
    shop.kill(2)
    assert outbox("dead", "list", "--died-of", "http_404", "--json").document == []
    assert len(outbox("dead", "list", "--died-of", "http_500", "--json").document) == 2
    assert outbox("dead", "redrive", "--died-of", "http_404", "--json").document["redriven"] == 0
    assert outbox("dead", "redrive", "--died-of", "http_500", "--json").document["redriven"] == 2
    assert outbox("dead", "redrive", "--reason", "http_500").code == 2


def test_to_count_what_a_discard_would_take_needs_no_reason(outbox: Outbox, shop: Shop) -> None:
    added(outbox)
    [delivery_id] = shop.kill()
    counted = outbox("dead", "discard", "--died-of", "http_500", "--dry-run", "--json").document
    assert counted == {"discarded": 1, "unknown": 0, "dry_run": True}
    ran = outbox("dead", "discard", delivery_id)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert shop.facts(delivery_id)[-1][0] == "dead"


def test_dead_commands_refuse_to_guess(outbox: Outbox, shop: Shop) -> None:
    endpoint = added(outbox)["id"]
    [delivery_id] = shop.kill()
    assert outbox("dead", "redrive").code == 2
    assert outbox("dead", "discard", "--reason", "x").code == 2
    assert outbox("dead", "discard", "--all").code == 2
    assert outbox("dead", "redrive", "--all", delivery_id).code == 2
    assert outbox("dead", "redrive", "17").code == 2
    assert outbox("dead", "redrive", uuid4()).code == 9
    assert outbox("dead", "redrive", delivery_id, "--org", "rival").code == 9
    assert outbox("dead", "discard", delivery_id, "--org", "rival", "--reason", "x").code == 9
    outbox("endpoints", "remove", endpoint)
    ran = outbox("dead", "redrive", delivery_id)
    assert ran.code == 1
    assert "removed" in ran.err
    assert shop.states() == {"dead": 1}


def test_deliveries_and_events_from_the_command_line(outbox: Outbox, shop: Shop) -> None:
    added(outbox)
    [event_id] = shop.emit()
    shop.route()
    [row] = outbox("deliveries", "list", "--json").document
    assert (row["event"], row["state"]) == (event_id, "scheduled")
    assert outbox("deliveries", "cancel", row["id"], "--org", "rival").code == 9
    ran = outbox("deliveries", "cancel", row["id"], "--json")
    assert ran.document == {"cancelled": [row["id"]], "ended": [], "unknown": []}
    assert outbox("deliveries", "cancel", row["id"]).code == 1
    assert outbox("deliveries", "show", row["id"], "--json").document["state"] == "cancelled"
    assert outbox("deliveries", "show", uuid4()).code == 9
    [event] = outbox("events", "list", "--type", "orders.*", "--json").document
    assert event["id"] == event_id
    facts = outbox("events", "show", event_id, "--json").document["journal"]
    assert [fact["fact"] for fact in facts] == ["routed", "cancelled"]
    assert outbox("events", "show", event_id, "--org", "rival").code == 9
    assert outbox("events", "list", "--type", "a..b").code == 2
    assert outbox("events", "list", "--since", "yesterday").code == 2


def test_people_get_tables(outbox: Outbox, shop: Shop) -> None:
    endpoint = added(outbox)["id"]
    subscription = outbox("subscriptions", "list", "--json").document[0]["id"]
    [dead] = shop.kill()
    [event_id] = shop.emit()
    shop.route()
    delivery = shop.one("SELECT id FROM outbox.delivery")
    for args, expected in [
        (["endpoints", "list"], URL),
        (["endpoints", "show", endpoint], "hmac"),
        (["subscriptions", "list"], "active"),
        (["subscriptions", "show", subscription], "active_from"),
        (["dead", "list"], "http_500"),
        (["dead", "show", dead], "routed"),
        (["deliveries", "list"], "scheduled"),
        (["deliveries", "show", delivery], "routed"),
        (["events", "list"], "orders.paid"),
        (["events", "show", event_id], "routed"),
        (["dead", "redrive", "--all"], "redriven  1"),
        (["endpoints", "pause", endpoint], "paused"),
        (["subscriptions", "pause", subscription], "paused"),
        (["deliveries", "cancel", delivery], "cancelled  1"),
    ]:
        ran = outbox(*args)
        assert ran.code == 0, ran.err
        assert expected in ran.out, args


def test_lists_of_nothing_are_empty_documents(outbox: Outbox) -> None:
    for group in ("endpoints", "subscriptions", "dead", "deliveries", "events"):
        assert outbox(group, "list", "--json").document == []
        assert outbox(group, "list").out.strip() == ""

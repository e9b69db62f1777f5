"""From an event to an SMTP server, recipient by recipient: what is sent, to whom, and how often."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.outcome import DATABASE_AWAY
from outbox.store.dead import Selection, redrive
from outbox.store.deliveries import cancel_deliveries
from outbox.store.emails import Emails, EmailsUnavailable
from outbox.store.statements import statement
from tests.mail.post import Post, parsed
from tests.mail.sink import HANG, HANG_UP, Script, Sink

THREE = {"to": ["a@example.org", "b@example.org"], "bcc": "c@example.org"}


def first(verb: str, answer: str, holding: str = "") -> Script:
    """Answer so the first time a verb comes whose argument holds a text."""
    done: list[str] = []

    def script(asked: str, arg: str) -> str | None:
        if asked == verb and holding in arg and not done:
            done.append(asked)
            return answer
        return None

    return script


def always(verb: str, answer: str, holding: str = "") -> Script:
    return lambda asked, arg: answer if asked == verb and holding in arg else None


def test_an_event_becomes_a_message(post: Post, sink: Sink) -> None:
    post.subscribe()
    post.emit(name="<b>Jane</b>")
    [delivery] = post.deliver()
    [taken] = sink.taken
    message = parsed(taken.data)
    assert (taken.sender, taken.recipients) == ("shop@example.com", ("jane@example.org",))
    assert message["From"] == "Shop <shop@example.com>"
    assert message["Subject"] == "Order 7"
    assert message["Message-ID"] == f"<{delivery}@example.com>"
    assert message.get_content() == "Hello <b>Jane</b>\r\n"
    assert post.end(delivery) == ("delivered", "sent")
    assert post.people(delivery) == {"jane@example.org": ("sent", "250 2.0.0 taken", 1)}


# -- each recipient --------------------------------------------------------------------------------


def test_who_is_refused_for_now_is_tried_again_alone_and_the_bytes_stay(
    post: Post, sink: Sink
) -> None:
    """A partial refusal is no exception of the library; it must not pass for success."""
    sink.script = first("RCPT", "451 4.2.0 come back", "<b@")
    post.subscribe(THREE | {"text": "{{ event.data.name }} {{ event.timestamp }}"})
    post.emit()
    [delivery] = post.deliver()
    assert post.states(delivery) == {
        "a@example.org": "sent", "b@example.org": "deferred", "c@example.org": "sent"
    }  # fmt: skip
    assert post.end(delivery) == ("attempt_failed", "deferred")
    post.again()
    assert [taken.recipients for taken in sink.taken] == [
        ("a@example.org", "c@example.org"), ("b@example.org",)
    ]  # fmt: skip
    assert sink.taken[0].data == sink.taken[1].data
    assert post.people(delivery)["b@example.org"] == ("sent", "250 2.0.0 taken", 2)
    assert post.people(delivery)["a@example.org"][2] == 1
    assert post.end(delivery) == ("delivered", "sent")


@pytest.mark.parametrize(
    ("reply", "state", "reason"),
    [
        ("550 5.1.1 no such mailbox", "rejected", "rejected 5.1.1"),
        ("550 5.7.1 policy", "rejected", None),
        ("550 no", "rejected", None),
        ("552 4.2.2 mailbox full", "deferred", None),
        ("452 4.2.2 mailbox full", "deferred", None),
        ("421 4.3.2 closing", "deferred", None),
    ],
)
def test_the_enhanced_code_is_read(
    post: Post, sink: Sink, reply: str, state: str, reason: str | None
) -> None:
    """5.1.1 suppresses, 5.7.x does not, 4.2.2 defers."""
    sink.script = always("RCPT", reply)
    post.subscribe()
    post.emit()
    [delivery] = post.deliver()
    assert sink.taken == []
    assert post.people(delivery) == {"jane@example.org": (state, reply, 1)}
    assert post.suppressed() == ([("acme", "jane@example.org", reason)] if reason else [])
    dead = ("dead", "rejected") if state == "rejected" else ("attempt_failed", "deferred")
    assert post.end(delivery) == dead


def test_one_who_is_rejected_makes_it_dead_once_the_others_have_it(post: Post, sink: Sink) -> None:
    refusals: list[Script] = [
        always("RCPT", "550 5.7.1 no", "<a@"), first("RCPT", "450 4.7.1 greylisted", "<b@")
    ]  # fmt: skip
    sink.script = lambda verb, arg: next(filter(None, (s(verb, arg) for s in refusals)), None)
    post.subscribe(THREE)
    post.emit()
    [delivery] = post.deliver()
    assert post.end(delivery) == ("attempt_failed", "deferred")
    post.again()
    assert post.end(delivery) == ("dead", "rejected")
    assert post.states(delivery) == {
        "a@example.org": "rejected", "b@example.org": "sent", "c@example.org": "sent"
    }  # fmt: skip
    assert sorted(sink.sent_to) == ["b@example.org", "c@example.org"]


def test_a_redrive_offers_those_who_were_rejected_once_more_and_nobody_else(
    post: Post, sink: Sink
) -> None:
    sink.script = always("RCPT", "550 5.7.1 no", "<a@")
    post.subscribe(THREE)
    post.emit()
    [delivery] = post.deliver()
    sink.script = None
    redrive(post.engine.connection, Selection(ids=[delivery]))
    post.again()
    assert sorted(sink.sent_to) == ["a@example.org", "b@example.org", "c@example.org"]
    assert post.end(delivery) == ("delivered", "sent")


# -- every verb ------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["EHLO", "MAIL", "RCPT", "DATA"])
def test_a_connection_lost_before_the_contents_defers(post: Post, sink: Sink, verb: str) -> None:
    sink.script = first(verb, HANG_UP)
    post.subscribe()
    post.emit()
    [delivery] = post.deliver()
    assert sink.taken == []
    assert post.end(delivery)[0] == "attempt_failed"
    offered = "queued" if verb == "EHLO" else "deferred"
    assert post.states(delivery) == {"jane@example.org": offered}
    post.again()
    assert post.end(delivery) == ("delivered", "sent")
    assert len(sink.taken) == 1


@pytest.mark.parametrize(
    ("verb", "reply", "end"),
    [
        ("MAIL", "451 4.3.0 later", ("attempt_failed", "deferred")),
        ("MAIL", "550 5.7.1 not you", ("dead", "rejected")),
        ("DATA", "451 4.3.0 later", ("attempt_failed", "deferred")),
        ("DATA", "554 5.7.1 no", ("dead", "rejected")),
        ("BODY", "451 4.3.0 later", ("attempt_failed", "deferred")),
        ("BODY", "554 5.6.0 spam", ("dead", "rejected")),
        ("BODY", "354 what", ("attempt_failed", "deferred")),
    ],
)
def test_a_refusal_of_the_whole_message_is_each_recipients(
    post: Post, sink: Sink, verb: str, reply: str, end: tuple[str, str]
) -> None:
    sink.script = always(verb, reply)
    post.subscribe(THREE)
    post.emit()
    [delivery] = post.deliver()
    assert post.end(delivery) == end
    assert {people[1] for people in post.people(delivery).values()} == {reply}
    assert post.suppressed() == []
    # The connection is clean afterwards: the next message goes through it.
    sink.script = None
    post.emit(id=8)
    post.deliver()
    assert len(sink.taken) == 1


def test_a_connection_lost_after_the_contents_is_unknown_and_repeats_the_message_id(
    post: Post, sink: Sink
) -> None:
    sink.script = first("BODY", HANG_UP)
    post.subscribe()
    post.emit()
    [delivery] = post.deliver()
    assert post.states(delivery) == {"jane@example.org": "unknown"}
    assert post.end(delivery) == ("attempt_failed", "unknown")
    post.again()
    one, two = sink.taken
    assert one.data == two.data
    assert post.end(delivery) == ("delivered", "sent")


def test_on_unknown_hold_a_person_decides(post: Post, sink: Sink) -> None:
    sink.script = first("BODY", HANG_UP)
    post.subscribe(on_unknown="hold")
    post.emit()
    [delivery] = post.deliver()
    assert post.end(delivery) == ("dead", "unknown_held")
    redrive(post.engine.connection, Selection(ids=[delivery]))
    post.again()
    assert len(sink.taken) == 2
    assert post.end(delivery) == ("delivered", "sent")


def test_an_answer_that_does_not_come_is_unknown_when_the_time_is_over(
    post: Post, sink: Sink
) -> None:
    sink.script = always("BODY", HANG)
    post.subscribe(timeout=timedelta(seconds=1.3))
    post.emit()
    [delivery] = post.deliver()
    assert post.states(delivery) == {"jane@example.org": "unknown"}
    assert post.end(delivery) == ("attempt_failed", "unknown")


# -- restarts --------------------------------------------------------------------------------------


def died_while_sending(post: Post, delivery: UUID) -> None:
    """As a worker leaves it that dies between the contents and the settle."""
    post.engine.run(
        "UPDATE outbox.email_recipient SET state = 'sending' WHERE delivery_id = %s", delivery
    )


@pytest.mark.parametrize(
    ("policy", "end", "sent"),
    [("retry", ("delivered", "sent"), 1), ("hold", ("dead", "unknown_held"), 0)],
)
def test_who_was_being_sent_to_when_the_worker_died_is_unknown(
    post: Post, sink: Sink, policy: str, end: tuple[str, str], sent: int
) -> None:
    sink.script = first("RCPT", "451 4.2.0 later")
    post.subscribe(on_unknown=policy)
    post.emit()
    [delivery] = post.deliver()
    died_while_sending(post, delivery)
    post.again()
    assert post.end(delivery) == end
    assert len(sink.taken) == sent


def test_what_is_cancelled_while_it_is_offered_is_not_sent(post: Post, sink: Sink) -> None:
    """The last look before the contents are sent is PostgreSQL's."""

    post.subscribe()
    post.emit()
    [(delivery, _)] = leases = post.engine.leases()

    def script(verb: str, _arg: str) -> str | None:
        if verb == "RCPT":
            with psycopg.connect(post.engine.url, autocommit=True) as connection:
                cancel_deliveries(connection, [delivery])
        return None

    sink.script = script
    post.deliver(leases)
    assert sink.taken == []
    assert post.end(delivery) == ("cancelled", "operator")


def test_a_message_is_frozen_once_whatever_becomes_of_templates(
    database: str, sink: Sink, tmp_path: Path
) -> None:
    sink.script = first("MAIL", "451 4.3.0 later")
    (tmp_path / "paid.html").write_text("Yours")
    post = Post(database, sink, OUTBOX_TEMPLATES=str(tmp_path))
    post.subscribe(html={"file": "paid.html"})
    post.emit()
    [delivery] = post.deliver()
    frozen = post.engine.one("SELECT mime FROM outbox.email")
    (tmp_path / "paid.html").write_text("Another")
    post.again()
    [taken] = sink.taken
    assert b"Yours" in taken.data
    assert taken.data == frozen
    assert post.engine.one("SELECT count(*) FROM outbox.email") == 1
    assert post.engine.one("SELECT message_id FROM outbox.email") == f"<{delivery}@example.com>"
    post.engine.close()


# -- suppression -----------------------------------------------------------------------------------


def test_who_is_suppressed_gets_nothing_and_organizations_do_not_meet(
    post: Post, sink: Sink
) -> None:
    for org in ("acme", "rival"):
        post.subscribe(org=org)
    post.engine.connection.execute(
        statement("suppression_add"),
        {"org_id": "acme", "address": "jane@example.org", "reason": "manual"},
    )
    post.emit(to="Jane@Example.org")
    [delivery] = post.deliver()
    assert sink.taken == []
    assert "connect" not in [verb for verb, _ in sink.asked]
    assert post.states(delivery) == {"Jane@example.org": "suppressed"}
    assert post.end(delivery) == ("delivered", "suppressed")
    post.emit(org="rival")
    post.deliver()
    assert sink.sent_to == ["jane@example.org"]


def test_who_is_suppressed_between_two_attempts_is_not_tried_again(post: Post, sink: Sink) -> None:
    sink.script = always("RCPT", "451 4.2.0 later")
    post.subscribe(THREE)
    post.emit()
    [delivery] = post.deliver()
    post.engine.run("INSERT INTO outbox.suppression VALUES ('acme', 'b@example.org', 'manual')")
    sink.script = None
    post.again()
    assert sorted(sink.sent_to) == ["a@example.org", "c@example.org"]
    assert post.states(delivery)["b@example.org"] == "suppressed"
    assert post.end(delivery) == ("delivered", "sent")


# -- facts -----------------------------------------------------------------------------------------


def test_the_states_of_recipients_fold_out_of_the_facts(post: Post, sink: Sink) -> None:
    sink.script = first("RCPT", "451 4.2.0 later", "<b@")
    post.subscribe(THREE)
    post.emit()
    [delivery] = post.deliver()
    post.again()
    folded: dict[str, str] = {}
    for (detail,) in post.engine.rows(
        "SELECT detail FROM outbox.journal WHERE delivery_id = %s AND detail ? 'recipients'"
        " ORDER BY at",
        delivery,
    ):
        folded |= {one["address"]: one["state"] for one in detail["recipients"]}
    assert folded == post.states(delivery)


# -- what cannot be sent ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "data", "reason"),
    [
        ({}, {"name": None, "to": ""}, "no_recipient"),
        ({"text": "{{ event.data.nothing }}"}, {}, "template_failed"),
        ({"from": "{{ event.data.to }}"}, {"to": "nobody"}, "bad_sender"),
        ({"text": "{{ event.data.big }}" * 3}, {"big": "x" * 700_000}, "template_failed"),
    ],
)
def test_an_event_that_no_message_can_be_made_of_is_dead_with_its_reason(
    post: Post, sink: Sink, config: dict[str, object], data: dict[str, Any], reason: str
) -> None:
    post.subscribe(config)
    post.emit(**data)
    [delivery] = post.deliver()
    assert post.end(delivery) == ("dead", reason)
    assert sink.asked == []


def test_what_is_no_address_is_rejected_and_the_others_get_it(post: Post, sink: Sink) -> None:
    post.subscribe(to=["{{ event.data.to }}", "b@example.org"])
    post.emit(to="nobody at all")
    [delivery] = post.deliver()
    assert sink.sent_to == ["b@example.org"]
    assert post.states(delivery) == {"nobody at all": "rejected", "b@example.org": "sent"}
    assert post.end(delivery) == ("dead", "rejected")


@pytest.mark.parametrize("limit", ["1000", "0"])
def test_a_message_larger_than_the_servers_limit_is_not_offered(database: str, limit: str) -> None:
    with Sink(size=int(limit)) as sink:
        post = Post(database, sink)
        post.subscribe()
        post.emit(name="x" * 2000)
        [delivery] = post.deliver()
        assert len(sink.taken) == (limit == "0")
        end = ("delivered", "sent") if limit == "0" else ("dead", "rejected")
        assert post.end(delivery) == end
        post.engine.close()


def test_without_a_server_nothing_is_charged_and_all_goes_on_when_it_is_back(
    database: str, sink: Sink
) -> None:
    post = Post(database, sink)
    post.subscribe()
    post.emit(n=3)
    right = post.environ["OUTBOX_SMTP_URL"]
    post.environ["OUTBOX_SMTP_URL"] = "smtp://127.0.0.1:9?tls=none"
    for delivery in post.deliver():
        assert post.engine.facts(delivery) == [("attempt_failed", "smtp_unreachable", False, 0)]
    post.environ["OUTBOX_SMTP_URL"] = right
    assert len(post.again()) == 3
    assert len(sink.taken) == 3
    post.engine.close()


def test_connections_are_kept_and_bounded(database: str, sink: Sink) -> None:
    post = Post(database, sink)
    post.environ["OUTBOX_SMTP_URL"] += "&connections=3&messages=10"
    post.subscribe()
    post.emit(n=60)
    post.deliver()
    assert len(sink.taken) == 60
    assert 6 <= sink.connections <= 9
    post.engine.close()


def test_a_document_of_the_same_event_is_attached(
    post: Post, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `outbox.document.rendered` tells of is fetched by organization and hash."""
    asked = []

    async def fetch(_settings: object, org: str | None, sha256: str) -> bytes:
        asked.append((org, sha256))
        return b"%PDF-1.7 x"

    monkeypatch.setattr("processors.artifacts.fetch", fetch)
    post.subscribe(
        to="{{ event.data.source.email }}",
        text="Yours",
        subject="Invoice",
        attachments=[{"artifact": "{{ event.data.artifact.sha256 }}"}],
    )
    artifact = {"sha256": "ab" * 32, "filename": "Rechnung 7.pdf"}
    payload = json.dumps({"artifact": artifact, "source": {"email": "jane@example.org"}})
    post.engine.run(
        "SELECT outbox.announce('outbox.document.rendered', 'acme', NULL, %s::json)", payload
    )
    [delivery] = post.deliver()
    assert post.end(delivery) == ("delivered", "sent")
    assert asked == [("acme", "ab" * 32)]
    [part] = parsed(sink.taken[0].data).iter_attachments()
    assert (part.get_filename(), part.get_content_type()) == ("Rechnung 7.pdf", "application/pdf")
    assert part.get_content() == b"%PDF-1.7 x"


def test_where_postgresql_was_away_the_next_attempt_comes_soon(
    post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, nothing is charged; what the operator must mend waits longer."""

    async def away(_emails: Emails, _delivery: UUID) -> None:
        raise EmailsUnavailable("away")

    post.subscribe()
    post.emit()
    with monkeypatch.context() as patch:
        patch.setattr(Emails, "open", away)
        [delivery] = post.deliver()
    assert post.end(delivery) == ("attempt_failed", "email_unprepared")
    row = post.engine.delivery(delivery)
    assert row["attempts"] == 0
    assert row["due_at"] - post.engine.now() < 2 * DATABASE_AWAY
    post.again()
    assert post.end(delivery) == ("delivered", "sent")

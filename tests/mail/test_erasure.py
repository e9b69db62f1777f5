"""What was frozen goes with its event, by redaction or retention; what is owed stays."""

from __future__ import annotations

from datetime import timedelta

from outbox.store.redaction import Choice, count, find_events, redact, sweep
from outbox.store.retention import RetentionConfig
from tests.mail.erasing import redact_elsewhere, tend, traces
from tests.mail.post import Post
from tests.mail.sink import Sink

KEEP = RetentionConfig(keep=timedelta(days=6))


def test_a_redaction_leaves_no_trace_of_message_recipient_or_reply(post: Post, sink: Sink) -> None:
    answers = {"jane": "451 4.2.0 jane.doe is busy", "ann": "451 4.2.0 later"}
    sink.script = lambda verb, arg: (
        answers["jane" if "jane" in arg else "ann"] if verb == "RCPT" else None
    )
    post.subscribe()
    events = post.emit(to="jane.doe@example.org", name="Jane.Doe")
    post.emit(to="ann@example.org", name="Ann", id=8)
    one, two = post.deliver()
    connection = post.engine.connection
    assert traces(post, "jane.doe")
    assert count(connection, events).emails == 1
    done = redact(connection, find_events(connection, Choice(ids=events)).ids, "asked")
    assert done.toll.emails == 1
    assert [w for w in sweep(connection, done.xid) if "samples" not in w] == []
    assert traces(post, "jane.doe", "Jane.Doe") == []
    assert {address for d in (one, two) for address in post.people(d)} == {"ann@example.org"}
    sink.script = None
    post.again()
    assert sink.sent_to == ["ann@example.org"]


def test_a_redaction_while_it_is_sent_leaves_nothing_either(post: Post, sink: Sink) -> None:
    post.subscribe()
    [event] = post.emit(to="jane.doe@example.org")

    def script(verb: str, _arg: str) -> str | None:
        if verb == "BODY":
            redact_elsewhere(post.engine.url, event)
        return None

    sink.script = script
    post.deliver()
    assert traces(post, "jane.doe") == []


def test_retention_takes_messages_and_carries_those_that_are_owed(post: Post, sink: Sink) -> None:
    sink.script = lambda verb, arg: "451 4.2.0 later" if verb == "RCPT" and "<b@" in arg else None
    post.subscribe()
    post.emit(to="a@example.org")
    post.emit(to="b@example.org")
    post.deliver()
    frozen = post.engine.one(
        "SELECT mime FROM outbox.email e JOIN outbox.email_recipient r USING (slot, delivery_id)"
        " WHERE r.address = 'b@example.org'"
    )
    post.checked = False  # the facts of the first slot are gone
    for day in range(9):
        tend(post, KEEP, day)
    assert post.engine.rows("SELECT address FROM outbox.email_recipient") == [("b@example.org",)]
    assert post.engine.one("SELECT count(*) FROM outbox.email") == 1
    assert post.engine.one("SELECT slot FROM outbox.email") == post.engine.one(
        "SELECT event_slot FROM outbox.delivery"
    )
    sink.script = None
    post.again()
    assert sink.taken[-1].data == frozen
    assert sink.sent_to == ["a@example.org", "b@example.org"]

"""Recipients against a server that says anything: nobody is sent to after a final state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.recipients import HARD, OWED, Recipient, enhanced_code, judged, readable
from outbox.store.dead import Selection, redrive
from tests.mail.post import Post
from tests.mail.sink import HANG_UP, Sink
from tests.profiles import scaled

PEOPLE = ("a@example.org", "b@example.org", "c@example.org")
REPLIES = st.sampled_from(
    ["ok", "ok", "450 4.7.1 later", "550 5.7.1 no", "550 5.1.1 none", HANG_UP]
)
ATTEMPTS = st.lists(
    st.fixed_dictionaries(
        {
            "RCPT": st.tuples(REPLIES, REPLIES, REPLIES),
            "MAIL": st.sampled_from(["ok"] * 6 + ["451 4.3.0 x", "550 5.7.1 x", HANG_UP]),
            "DATA": st.sampled_from(["ok"] * 6 + ["451 4.3.0 x", "554 5.7.1 x", HANG_UP]),
            "BODY": st.sampled_from(["ok"] * 6 + ["451 4.3.0 x", "554 5.6.0 x", HANG_UP]),
        }
    ),
    min_size=1,
    max_size=4,
)


class Model:
    """What should become of recipients, told what the server says."""

    def __init__(self, hold: bool) -> None:
        self.hold = hold
        self.states = dict.fromkeys(PEOPLE, Recipient.QUEUED)
        self.taken: list[tuple[str, ...]] = []

    @property
    def owed(self) -> list[str]:
        return [a for a, state in self.states.items() if state in OWED - self._final()]

    def _final(self) -> frozenset[Recipient]:
        return frozenset({Recipient.UNKNOWN}) if self.hold else frozenset()

    def attempt(self, said: dict[str, Any]) -> None:
        owed, accepted = self.owed, []
        if self._refused(said["MAIL"], owed):
            return
        for n, address in enumerate(PEOPLE):
            if address not in owed:
                continue
            if said["RCPT"][n] == HANG_UP:
                self._all([a for a in owed if self._undecided(a, owed, n)], Recipient.DEFERRED)
                return
            if not self._refused(said["RCPT"][n], [address]):
                accepted.append(address)
        if not accepted or self._refused(said["DATA"], accepted):
            return
        if said["BODY"] == HANG_UP:
            self.taken.append(tuple(accepted))
            self._all(accepted, Recipient.UNKNOWN)
        elif not self._refused(said["BODY"], accepted):
            self.taken.append(tuple(accepted))
            self._all(accepted, Recipient.SENT)

    def _undecided(self, address: str, owed: list[str], n: int) -> bool:
        """Whom the connection's end leaves: the accepted ones and those not asked about."""
        return self.states[address] is not Recipient.REJECTED or PEOPLE.index(address) >= n

    def _refused(self, reply: str, addresses: list[str]) -> bool:
        if reply == "ok":
            return False
        rejected = reply.startswith("5")
        self._all(addresses, Recipient.REJECTED if rejected else Recipient.DEFERRED)
        return True

    def _all(self, addresses: list[str], state: Recipient) -> None:
        self.states |= dict.fromkeys(addresses, state)

    @property
    def end(self) -> str:
        states = set(self.states.values())
        if self.owed:
            return "attempt_failed"
        bad = {Recipient.REJECTED, Recipient.UNKNOWN} & states
        return "dead" if bad else "delivered"


def script_of(said: dict[str, Any]) -> Callable[[str, str], str | None]:
    def script(verb: str, arg: str) -> str | None:
        if verb == "RCPT":
            [n] = [n for n, address in enumerate(PEOPLE) if address in arg]
            reply = said["RCPT"][n]
        else:
            reply = said.get(verb, "ok")
        return None if reply == "ok" else str(reply)

    return script


@scaled(0.3)
@given(said=ATTEMPTS, hold=st.booleans())
def test_retries_go_to_those_who_are_owed_and_final_states_stay(
    migrated_template: str, postgres: Any, said: list[dict[str, Any]], hold: bool
) -> None:
    with Sink() as sink:
        name = f"recipients_{id(sink)}"
        post = Post(postgres.create_database(name, migrated_template), sink)
        try:
            _follow(post, sink, said, hold)
        finally:
            post.engine.close()
            postgres.drop_database(name)


def _follow(post: Post, sink: Sink, said: list[dict[str, Any]], hold: bool) -> None:
    model = Model(hold)
    post.subscribe(
        to=list(PEOPLE), text="{{ event.timestamp }}", on_unknown="hold" if hold else "retry"
    )
    post.emit()
    leases = post.engine.leases()
    [(delivery, _)] = leases
    for n, replies in enumerate(said):
        sink.script = script_of(replies)
        model.attempt(replies)
        post.deliver(leases) if n == 0 else post.again(hours=9)
        assert post.states(delivery) == {a: str(s) for a, s in model.states.items()}
        assert post.end(delivery)[0] == model.end
        if model.end != "attempt_failed":
            break
    assert [taken.recipients for taken in sink.taken] == model.taken
    assert len({taken.data for taken in sink.taken}) <= 1, "the bytes never change"
    suppressed = {address for _, address, _ in post.suppressed()}
    assert suppressed == {
        a for a, (_, reply, _) in post.people(delivery).items() if "5.1.1" in (reply or "")
    }
    post.engine.check()


def test_the_states_stand_in_sql_as_in_python(database: str) -> None:
    with psycopg.connect(database) as connection:
        [(text,)] = connection.execute(
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c'"
            " AND conrelid = 'outbox.email_recipient'::regclass"
        ).fetchall()
    for state in Recipient:
        assert f"'{state}'::text" in text
    assert text.count("::text") >= len(Recipient)


@pytest.mark.parametrize(
    ("code", "text", "state"),
    [
        (550, "5.1.1 no", Recipient.REJECTED),
        (550, "no", Recipient.REJECTED),
        (552, "4.2.2 full", Recipient.DEFERRED),
        (450, "greylisted, see 5.5.5.5", Recipient.DEFERRED),
        (421, "", Recipient.DEFERRED),
    ],
)
def test_a_reply_is_judged(code: int, text: str, state: Recipient) -> None:
    assert judged(code, text) is state


def test_codes_and_replies() -> None:
    assert enhanced_code("550 5.1.10 null mx") == "5.1.10"
    assert "5.1.1" in HARD
    assert enhanced_code(None) is None
    assert readable("a\r\nb\0\ud800" + "x" * 999) == ("a  b  " + "x" * 999)[:500]


def test_redriving_reopens(post: Post, sink: Sink) -> None:
    """Also who was suppressed and is not any more."""
    post.engine.run("INSERT INTO outbox.suppression VALUES ('acme', 'a@example.org', 'x')")
    sink.script = script_of({"RCPT": ("ok", "550 5.7.1 no", "ok")})
    post.subscribe(to=list(PEOPLE))
    post.emit()
    [delivery] = post.deliver()
    post.engine.run("DELETE FROM outbox.suppression")
    sink.script = None
    redrive(post.engine.connection, Selection(ids=[delivery]))
    post.again()
    assert sorted(sink.sent_to) == sorted(PEOPLE)


def test_who_is_held_is_not_sent_to_with_those_who_are_tried_again(post: Post, sink: Sink) -> None:
    """One is deferred, of the other nobody knows: that one waits for a person."""
    post.subscribe(to=list(PEOPLE[:2]), on_unknown="hold")
    post.emit()
    sink.script = lambda verb, arg: {
        "RCPT": "450 4.2.0 later" if PEOPLE[0] in arg else None,
        "BODY": HANG_UP,
    }.get(verb)
    [delivery] = post.deliver()
    assert post.states(delivery) == {PEOPLE[0]: "deferred", PEOPLE[1]: "unknown"}
    sink.script = None
    post.again()
    assert post.states(delivery) == {PEOPLE[0]: "sent", PEOPLE[1]: "unknown"}
    assert post.end(delivery) == ("dead", "unknown_held")
    assert [taken.recipients for taken in sink.taken] == [(PEOPLE[1],), (PEOPLE[0],)]
    with psycopg.connect(post.engine.url, autocommit=True) as connection:
        redrive(connection, Selection(org="acme"))
    post.again()
    assert post.states(delivery) == {PEOPLE[0]: "sent", PEOPLE[1]: "sent"}
    assert post.end(delivery) == ("delivered", "sent")

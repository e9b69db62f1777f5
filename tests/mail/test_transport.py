"""TLS, login and what a server must be before anything is sent to it."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from outbox.smtp_url import SmtpServer, parse_smtp_url
from tests.mail.post import Post
from tests.mail.sink import HANG_UP, Sink


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA, name: str = "127.0.0.1") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


# aiosmtpd knows no TLS but its own STARTTLS.
@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")
@pytest.mark.parametrize("tls", ["starttls", "implicit"])
def test_over_tls_with_a_login(
    database: str, authority: trustme.CA, tmp_path: Path, tls: str
) -> None:
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    context = server_context(authority)
    with Sink(tls=context, implicit=tls == "implicit", login=("me", "p@ss/w")) as sink:
        post = Post(database, sink, OUTBOX_CA_FILE=str(ca))
        post.environ["OUTBOX_SMTP_URL"] = f"smtp://me:p%40ss%2Fw@127.0.0.1:{sink.port}?tls={tls}"
        post.subscribe()
        post.emit(n=2)
        for delivery in post.deliver():
            assert post.end(delivery) == ("delivered", "sent")
        assert sink.connections <= 4, "two, each begun anew after STARTTLS"
        post.engine.close()


@pytest.mark.parametrize(
    ("tls", "certified", "trusted", "password", "reason"),
    [
        ("starttls", None, True, "", "smtp_tls"),
        ("starttls", "127.0.0.1", False, "", "smtp_tls"),
        ("starttls", "other.test", True, "", "smtp_tls"),
        ("implicit", "127.0.0.1", False, "", "smtp_tls"),
        ("starttls", "127.0.0.1", True, "me:wrong@", "smtp_auth"),
    ],
)
def test_without_what_the_operator_asked_for_nothing_is_sent(
    database: str,
    authority: trustme.CA,
    tmp_path: Path,
    tls: str,
    certified: str | None,
    trusted: bool,
    password: str,
    reason: str,
) -> None:
    """No TLS offered, an unknown authority, another name, a wrong password: nobody is charged, and
    no command but the first was heard."""
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca)
    context = server_context(authority, certified) if certified else None
    login = ("me", "right") if password else None
    with Sink(tls=context, implicit=tls == "implicit", login=login) as sink:
        post = Post(database, sink)
        if trusted:
            post.environ["OUTBOX_CA_FILE"] = str(ca)
        post.environ["OUTBOX_SMTP_URL"] = f"smtp://{password}127.0.0.1:{sink.port}?tls={tls}"
        post.subscribe()
        post.emit()
        [delivery] = post.deliver()
        assert post.engine.facts(delivery) == [("attempt_failed", reason, False, 0)]
        assert not {"MAIL", "RCPT", "DATA"} & {verb for verb, _ in sink.asked}
        post.engine.close()


def test_a_connection_that_the_server_closed_meanwhile_costs_no_attempt(
    post: Post, sink: Sink
) -> None:
    """Every other MAIL on a kept connection finds it closed; another one is opened at once."""
    asked: list[str] = []

    def script(verb: str, _arg: str) -> str | None:
        asked.append(verb)
        stale = verb == "MAIL" and asked.count("MAIL") in {2, 4}
        return (HANG_UP if asked.count("MAIL") == 2 else "421 4.4.2 idle") if stale else None

    sink.script = script
    post.environ["OUTBOX_SMTP_URL"] += "&connections=1"
    post.subscribe()
    post.emit(n=3)
    for delivery in post.deliver():
        assert post.engine.facts(delivery) == [("delivered", "sent", True, 1)]
    assert len(sink.taken) == 3


@pytest.mark.parametrize("pipelining", [True, False])
def test_recipients_come_with_the_sender_where_the_server_takes_commands_in_flights(
    database: str, pipelining: bool
) -> None:
    """One connection all the while: whatever is refused, what was asked in vain is read first."""

    def script(verb: str, arg: str) -> str | None:
        if verb == "MAIL" and "bad@" in arg:
            return "451 4.3.0 not now"
        if verb == "RCPT" and ("b@" in arg or "nobody@" in arg):
            return f"550 5.7.1 not {arg[4:-1]}"
        return None

    with Sink(script, pipelining=pipelining) as sink:
        post = Post(database, sink)
        post.environ["OUTBOX_SMTP_URL"] += "&connections=1"
        three = ["a@example.org", "b@example.org", "c@example.org"]
        for org, sender, to in [
            ("late", "bad@example.com", three),
            ("some", "shop@example.com", three),
            ("none", "shop@example.com", ["nobody@example.org"]),
            ("last", "shop@example.com", ["last@example.org"]),
        ]:
            post.subscribe({"from": sender, "to": to}, org=org)
            post.emit(org=org)
        ends = {
            post.engine.one("SELECT e.org_id FROM outbox.event e JOIN outbox.journal j"
                            " ON j.event_id = e.id WHERE j.delivery_id = %s LIMIT 1", delivery):
            (post.end(delivery), [reply for _, reply, _ in post.people(delivery).values()])
            for delivery in post.deliver()
        }  # fmt: skip
        assert sorted(sink.flights) == ([1, 1, 3, 3] if pipelining else [0, 0, 0, 0])
        assert sink.connections == 1
        assert {one.recipients for one in sink.taken} == {
            ("a@example.org", "c@example.org"),
            ("last@example.org",),
        }
        taken, refused = "250 2.0.0 taken", "550 5.7.1 not {}@example.org"
        assert ends == {
            "late": (("attempt_failed", "deferred"), ["451 4.3.0 not now"] * 3),
            "some": (("dead", "rejected"), [taken, refused.format("b"), taken]),
            "none": (("dead", "rejected"), [refused.format("nobody")]),
            "last": (("delivered", "sent"), [taken]),
        }
        post.engine.close()


@pytest.mark.parametrize(
    "said",
    [
        "hello",
        "25",
        "999999",
        "250 ok\r\n354 go on\r\n250 taken",
        "250-" + "\r\n250-".join(["x" * 500] * 200),
    ],
    ids=["no code", "half a code", "a long code", "one reply too many", "a reply without end"],
)
def test_a_server_that_does_not_speak_smtp_defers(database: str, said: str) -> None:
    with Sink(lambda verb, _arg: said if verb == "RCPT" else None, pipelining=True) as sink:
        post = Post(database, sink)
        post.subscribe(timeout=timedelta(seconds=3))
        post.emit()
        [delivery] = post.deliver()
        assert post.end(delivery) == ("attempt_failed", "deferred")
        assert sink.taken == []
        post.engine.close()


def test_smtputf8_is_used_where_an_address_needs_it(database: str) -> None:
    for offered in (True, False):
        with Sink(smtputf8=offered) as sink:
            post = Post(database, sink)
            post.subscribe(org=f"o{offered}")
            post.emit(org=f"o{offered}", to="用户@例子.广告")
            [delivery] = post.deliver()
            if offered:
                assert sink.sent_to == ["用户@xn--fsqu00a.xn--4rr70v"]
                assert "SMTPUTF8" in sink.taken[0].options
            else:
                assert post.end(delivery) == ("dead", "rejected")
                assert sink.taken == []
            post.engine.close()


def test_an_smtp_url() -> None:
    server = parse_smtp_url(
        "smtp://u%40x:p%2Fw@mail.example.com?tls=implicit&connections=5&idle=1m"
    )
    assert (server.host, server.port, server.tls) == ("mail.example.com", 465, "implicit")
    assert (server.user, server.password) == ("u@x", "p/w")
    assert (server.connections, server.idle.total_seconds()) == (5, 60)
    assert "p/w" not in repr(server)
    assert parse_smtp_url("smtp://h") == SmtpServer("h", 587)
    assert parse_smtp_url("smtp://[::1]:25?tls=none").host == "::1"


@pytest.mark.parametrize(
    "text",
    [
        *("http://h", "smtp://", "smtp://h:x", "smtp://h/path", "smtp://h?tls=maybe"),
        *("smtp://h?x=1", "smtp://h?connections=0", "smtp://h?idle=x", "smtp://h?messages=many"),
    ],
)
def test_what_is_no_smtp_url(text: str) -> None:
    with pytest.raises(ValueError, match=r"^(not|tls|an SMTP|connections|idle|messages)"):
        parse_smtp_url(text)

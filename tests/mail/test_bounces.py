"""What is reported later: bounces, complaints, arrivals, by notification, event and signed POST."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
import psycopg
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from outbox.bounces import Report, read_reports, reports_in_events
from outbox.errors import UsageError
from outbox.receivers.bounces import bounce_receiver
from outbox.recipients import Recipient
from outbox.secrets import KeyRing
from outbox.signature import sign
from outbox.store.emails import Noted, note_reports
from outbox.work import SigningKey
from tests.mail.post import Post
from tests.mail.sink import Sink

ID = UUID("01a21900-857b-8879-a388-a2959093ac62")


def notification(
    delivery: UUID,
    address: str = "jane@example.org",
    *,
    action: str = "failed",
    status: str = "5.1.1",
    diagnostic: str = "550 5.1.1 <jane@example.org>: no such user",
    quoted: str = "message/rfc822",
) -> bytes:
    """As mail servers write one (RFC 3464)."""
    return f"""\
Return-Path: <>
From: MAILER-DAEMON@mx.example.net
To: shop@example.com
Subject: Undelivered Mail Returned to Sender
Message-ID: <x@mx.example.net>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status; boundary="b"

--b
Content-Type: text/plain

I am sorry.

--b
Content-Type: message/delivery-status

Reporting-MTA: dns; mx.example.net
Arrival-Date: Thu, 26 Nov 2026 17:43:35 +0000

Final-Recipient: rfc822; forwarded@elsewhere.example
Original-Recipient: rfc822;{address}
Action: {action}
Status: {status}
Diagnostic-Code: smtp; {diagnostic}

--b
Content-Type: {quoted}

From: shop@example.com
Message-ID: <{delivery}@example.com>
Subject: Order 7

--b--
""".replace("\n", "\r\n").encode()


@pytest.mark.parametrize("quoted", ["message/rfc822", "text/rfc822-headers"])
def test_a_notification_is_read(quoted: str) -> None:
    [report] = read_reports(notification(ID, quoted=quoted))
    reply = "550 5.1.1 <jane@example.org>: no such user"
    assert report == Report(ID, "jane@example.org", Recipient.BOUNCED, "5.1.1", reply)
    assert read_reports(notification(ID, action="delayed", status="4.4.1")) == []
    arrived = notification(ID, action="delivered", status="2.0.0", diagnostic="250 ok")
    [report] = read_reports(arrived)
    assert report.state is Recipient.DELIVERED


def test_what_is_no_report_is_one_line() -> None:
    for data in (b"", b"Subject: hello\r\n\r\nbye", b"\xff\xfe", b"{", b'"x"', b"[1]", b"[" * 9000):
        with pytest.raises(UsageError) as caught:
            read_reports(data)
        assert "\n" not in str(caught.value)
    # Another's message, or an event of another kind, is no mistake: providers send many.
    foreign = notification(ID).replace(str(ID).encode(), b"somebody-elses")
    assert read_reports(foreign) == []
    assert reports_in_events({"type": "email.opened", "data": {"message_id": f"<{ID}@x.y>"}}) == []


def test_hostile_reports_are_refused_or_read_as_text_that_postgresql_takes() -> None:
    deep = b"".join(
        b'Content-Type: multipart/mixed; boundary="b%d"\r\n\r\n--b%d\r\n' % (n, n)
        for n in range(3000)
    )
    with pytest.raises(UsageError, match="nested too deeply"):
        read_reports(deep)
    [report] = read_reports(
        b'{"type": "bounced", "message_id": "<%b@x>", "to": "a\\u0000\\ud800@x"}' % str(ID).encode()
    )
    assert report.address == "a  @x"


def test_json_events_of_the_usual_shapes_are_read() -> None:
    message_id = f"<{ID}@example.com>"
    flat = {"event": "bounce", "message-id": message_id, "email": "a@b.c", "reason": "550 5.1.1 no"}
    nested = {
        "type": "email.complained",
        "created_at": "2026-01-31T12:00:00Z",
        "data": {"message_id": message_id, "to": ["a@b.c", "d@e.f"]},
    }
    bare = {"type": "delivered", "message_id": message_id, "status": "2.0.0"}
    assert reports_in_events([flat, nested, bare]) == [
        Report(ID, "a@b.c", Recipient.BOUNCED, "5.1.1", "550 5.1.1 no"),
        Report(ID, "a@b.c", Recipient.COMPLAINED),
        Report(ID, "d@e.f", Recipient.COMPLAINED),
        Report(ID, None, Recipient.DELIVERED, "2.0.0"),
    ]


# -- what they do ----------------------------------------------------------------------------------


def sent(post: Post, org: str = "acme", **config: Any) -> UUID:
    post.subscribe(org=org, **config)
    post.emit(org=org)
    [delivery] = post.deliver()
    return delivery


def note(post: Post, *reports: Report, org: str | None = None) -> Noted:
    with psycopg.connect(post.engine.url, autocommit=True) as connection:
        return note_reports(connection, reports, org)


def test_a_hard_bounce_is_noted_told_and_suppresses(post: Post, sink: Sink) -> None:
    delivery = sent(post)
    reports = read_reports(notification(delivery))
    assert note(post, *reports) == Noted(1, 1, 1)
    assert note(post, *reports) == Noted(1, 1, 0)
    assert post.states(delivery) == {"jane@example.org": "bounced"}
    assert post.suppressed() == [("acme", "jane@example.org", "bounced 5.1.1")]
    [(kind, payload)] = post.engine.rows(
        "SELECT type, payload FROM outbox.event WHERE type LIKE 'outbox.email.%'"
    )
    assert kind == "outbox.email.bounced"
    assert payload["delivery"] == str(delivery)
    assert "jane" not in json.dumps(payload)
    post.emit()
    leases = post.engine.leases()
    post.deliver(leases)
    assert len(sink.taken) == 1


@pytest.mark.parametrize(
    ("status", "suppressed"), [("5.7.1", False), ("5.2.2", False), ("5.1.10", True)]
)
def test_only_what_condemns_the_address_suppresses_it(
    post: Post, status: str, suppressed: bool
) -> None:
    delivery = sent(post)
    data = notification(delivery, status=status, diagnostic=f"550 {status} no")
    assert note(post, *read_reports(data)).changed == 1
    assert bool(post.suppressed()) is suppressed


def test_reports_never_go_backwards_nor_touch_another_organization(post: Post) -> None:
    delivery = sent(post, "acme")
    other = sent(post, "rival")
    complained = Report(delivery, "JANE@example.org", Recipient.COMPLAINED)
    delivered = Report(delivery, "jane@example.org", Recipient.DELIVERED)
    assert note(post, complained, org="rival") == Noted(1, 0, 0)
    assert note(post, delivered, complained, delivered, org="acme") == Noted(3, 3, 2)
    assert note(post, Report(ID, None, Recipient.BOUNCED)) == Noted(1, 0, 0)
    assert note(post, Report(delivery, "who@else.example", Recipient.BOUNCED)) == Noted(1, 0, 0)
    assert post.states(delivery) == {"jane@example.org": "complained"}
    assert post.states(other) == {"jane@example.org": "sent"}
    assert post.suppressed() == [("acme", "jane@example.org", "complained")]


def test_a_report_that_comes_before_the_settle_stays(post: Post, sink: Sink) -> None:
    """A server may bounce before our worker has written that it was sent."""

    def script(verb: str, _arg: str) -> str | None:
        if verb == "BODY":
            [(delivery,)] = _rows(post.engine.url, "SELECT delivery_id FROM outbox.email")
            assert note(post, Report(delivery, None, Recipient.BOUNCED, "5.7.1")).changed == 1
        return None

    sink.script = script
    assert post.states(sent(post)) == {"jane@example.org": "bounced"}


def _rows(url: str, query: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


# -- the receiver ----------------------------------------------------------------------------------


def test_a_signed_post_is_noted_and_an_unsigned_one_is_not(post: Post) -> None:
    delivery = sent(post)
    secret = "whsec_" + KeyRing.generate_text()
    app = Starlette(
        routes=[Mount("/reports", bounce_receiver(secret, post.engine.url, org="acme"))]
    )
    event = {"type": "bounced", "message_id": f"<{delivery}@example.com>", "status": "5.1.1"}

    def post_it(body: bytes, *, forged: bool = False) -> Any:
        at = int(datetime.now(UTC).timestamp())
        key = SigningKey("hmac", b"x" * 32 if forged else _material(secret))
        headers = {
            "webhook-id": "msg_1",
            "webhook-timestamp": str(at),
            "webhook-signature": sign((key,), "msg_1", at, body),
        }
        return asyncio.run(request("POST", content=body, headers=headers))

    async def request(method: str, **options: Any) -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            return await client.request(method, "/reports/", **options)

    assert post_it(json.dumps(event).encode(), forged=True).status_code == 401
    assert post.states(delivery) == {"jane@example.org": "sent"}
    answer = post_it(json.dumps(event).encode())
    assert (answer.status_code, answer.json()["changed"]) == (200, 1)
    assert post_it(b"hello").status_code == 422
    assert asyncio.run(request("GET")).status_code == 405
    assert post.states(delivery) == {"jane@example.org": "bounced"}


def _material(secret: str) -> bytes:
    return b64decode(secret.removeprefix("whsec_"))

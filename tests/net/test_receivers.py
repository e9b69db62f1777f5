"""The pieces for receivers, in real applications behind real servers.

Requests are signed by the independent `standardwebhooks` package, or by `cryptography` alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from outbox.errors import UsageError
from outbox.receivers import Rules, django, flask, starlette
from tests.net.receiver_apps import (
    FRAMEWORK_MAX,
    NEW_SECRET,
    PRIVATE,
    SECRET,
    Journal,
    fastapi_app,
    serving,
    starlette_app,
)

KINDS = ["starlette", "fastapi", "flask", "django_wsgi", "django_asgi"]
# White space and escapes that a parser and a writer would change, and bytes beyond ASCII.
BODY = '{ "type":"orders.updated", "data":{"name":"Zo\\u00eb, 東京"} }\n'


class Receiver:
    """One served application, and a client that signs."""

    def __init__(self, kind: str, address: str, journal: Journal, client: httpx.Client) -> None:
        self.kind = kind
        self.address, self.journal, self.client = address, journal, client

    def post(self, route: str, headers: dict[str, str], body: Any = BODY) -> httpx.Response:
        content = body.encode() if isinstance(body, str) else body
        sent = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
        return self.client.post(f"{self.address}/{route}", content=content, headers=sent)


@pytest.fixture(params=KINDS, scope="module")
def served(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    journal = Journal()
    with serving(request.param, journal) as address, httpx.Client(trust_env=False) as client:
        yield Receiver(request.param, address, journal, client)


@pytest.fixture
def receiver(served: Receiver) -> Receiver:
    served.journal.__init__()  # type: ignore[misc]  # a clean journal behind the same server
    return served


def signed(
    message_id: str = "msg_1", body: str = BODY, secret: str = SECRET, age: timedelta = timedelta()
) -> dict[str, str]:
    at = datetime.now(UTC) - age
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(secret).sign(message_id, at, body),
        "content-type": "application/json",
    }


def error(response: httpx.Response) -> str:
    content = response.json()
    return str(content.get("detail", content)["error"])


def test_a_genuine_webhook_reaches_the_handler_with_its_raw_bytes(receiver: Receiver) -> None:
    response = receiver.post("hook", signed())
    assert response.status_code == 200
    assert response.json() == {
        "id": "msg_1",
        "digest": hashlib.sha256(BODY.encode()).hexdigest(),
        "type": "orders.updated",
    }


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_400_and_the_handler_does_not_run(
    receiver: Receiver, name: str
) -> None:
    headers = signed()
    del headers[name]
    response = receiver.post("hook", headers)
    assert (response.status_code, error(response)) == (400, "bad_headers")
    assert name in response.text
    assert receiver.journal.runs == []


def test_a_malformed_timestamp_is_400(receiver: Receiver) -> None:
    response = receiver.post("hook", signed() | {"webhook-timestamp": "now"})
    assert (response.status_code, error(response)) == (400, "bad_headers")


# Made when a test runs: a timestamp of six minutes ahead is genuine a minute after collection.
FORGERIES: dict[str, Callable[[], dict[str, str]]] = {
    "other_secret": lambda: signed(secret=NEW_SECRET),
    "other_body": lambda: signed(body=BODY.replace("updated", "deleted")),
    "other_id": lambda: signed() | {"webhook-id": "msg_2"},
    "nonsense": lambda: signed() | {"webhook-signature": "v1 v2, v1,ä"},
    "too_old": lambda: signed(age=timedelta(minutes=6)),
    "too_new": lambda: signed(age=timedelta(minutes=-6)),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_does_not_verify_is_401_and_the_handler_does_not_run(
    receiver: Receiver, name: str
) -> None:
    response = receiver.post("hook", FORGERIES[name]())
    assert (response.status_code, error(response)) == (401, "not_verified")
    assert receiver.journal.runs == []


def test_a_body_over_the_limit_is_413_also_when_it_is_genuine(receiver: Receiver) -> None:
    body = '{"type":"' + "x" * 100 + '"}'
    response = receiver.post("small", signed(body=body), body)
    assert (response.status_code, error(response)) == (413, "body_too_large")
    assert receiver.journal.runs == []


def test_the_limit_of_the_framework_holds_beside_ours(receiver: Receiver) -> None:
    body = '{"type":"' + "x" * FRAMEWORK_MAX + '"}'
    has_one = receiver.kind not in ("starlette", "fastapi")
    assert receiver.post("hook", signed(body=body), body).status_code == (413 if has_one else 200)


def test_a_body_at_the_limit_passes(receiver: Receiver) -> None:
    body = '{"type":"' + "x" * (64 - 11) + '"}'
    assert len(body) == 64
    assert receiver.post("small", signed(body=body), body).status_code == 200


def test_a_body_without_a_declared_length_is_measured(receiver: Receiver) -> None:
    """A chunked body is cut off at the limit; wsgiref knows no chunks and hands on no body."""
    body = '{"type":"' + "x" * 100 + '"}'
    pieces = iter([body[:50].encode(), body[50:].encode()])
    response = receiver.post("small", signed(body=body), pieces)
    expected = 401 if receiver.kind == "django_wsgi" else 413
    assert response.status_code == expected
    assert receiver.journal.runs == []


@pytest.mark.parametrize("make", [starlette_app, fastapi_app])
def test_an_endless_body_is_not_read_beyond_the_limit(make: Any) -> None:
    """Straight over ASGI, where one can see how many pieces were asked for."""
    pieces: list[bytes] = []
    answers: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        assert len(pieces) < 100, "it reads on and on"
        pieces.append(b"x" * 40)
        return {"type": "http.request", "body": pieces[-1], "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/small", "query_string": b"", "headers": []}
    asyncio.run(make(Journal())(scope, receive, send))
    assert (len(pieces), answers[0]["status"]) == (2, 413)


def test_an_ed25519_signature_verifies_with_the_public_key(receiver: Receiver) -> None:
    stamp = int(datetime.now(UTC).timestamp())
    made = PRIVATE.sign(f"msg_1.{stamp}.{BODY}".encode())
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(stamp),
        "webhook-signature": "v1a," + b64encode(made).decode(),
    }
    assert receiver.post("public", headers).status_code == 200
    assert receiver.post("public", signed()).status_code == 401


def test_both_secrets_verify_during_a_rotation(receiver: Receiver) -> None:
    assert receiver.post("rotating", signed("msg_1", secret=SECRET)).status_code == 200
    assert receiver.post("rotating", signed("msg_2", secret=NEW_SECRET)).status_code == 200


def test_processed_work_is_not_repeated_and_its_sender_is_told_success(receiver: Receiver) -> None:
    assert receiver.post("once", signed()).json()["id"] == "msg_1"
    response = receiver.post("once", signed())
    content = response.json()
    assert response.status_code == 200
    assert content.get("detail", content) == {"status": "duplicate"}
    assert receiver.journal.runs == ["msg_1"]


def test_failed_work_is_done_again_when_the_sender_retries(receiver: Receiver) -> None:
    receiver.journal.failing = True
    assert receiver.post("once", signed()).status_code == 500
    receiver.journal.failing = False
    assert receiver.post("once", signed()).status_code == 200
    assert receiver.journal.runs == ["msg_1", "msg_1"]


def test_a_forger_learns_nothing_about_what_was_processed(receiver: Receiver) -> None:
    receiver.post("once", signed())
    assert receiver.post("once", signed(secret=NEW_SECRET)).status_code == 401


@pytest.mark.parametrize(
    "make", [starlette.webhook, starlette.receive, flask.webhook, django.webhook]
)
def test_an_unusable_key_is_refused_when_the_route_is_made(make: Any) -> None:
    wrong: list[Any] = ["", "whsec_", [], "whsk_AAAA"]
    for unusable in wrong:
        with pytest.raises(UsageError):
            make(unusable)


def test_secrets_stay_out_of_representations() -> None:
    assert SECRET not in repr(Rules(SECRET))


@pytest.mark.parametrize("length", ["9" * 5000, "٣", "-1", "x", "", None])
def test_a_strange_content_length_never_crashes(length: str | None) -> None:
    said = None
    try:
        Rules(SECRET).check_declared(length)
    except UsageError as refused:
        said = str(refused)
    assert said == ("the body exceeds 1048576 bytes" if length == "9" * 5000 else None)

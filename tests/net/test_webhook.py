"""The webhook processor: signed requests out, outcomes back."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from ipaddress import IPv4Network
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from outbox.errors import UsageError
from outbox.outcome import Kind, Outcome
from outbox.work import Endpoint, SigningKey, Work
from processors.egress import EgressPolicy
from processors.failures import OURS, Reason
from processors.http import HttpClient
from processors.resolver import CaresResolver
from processors.webhook import (
    WebhookProcessor,
    build_body,
    check_custom_headers,
    parse_retry_after,
)
from tests.net.conftest import Run
from tests.net.peers import Peer, Server, answer_all, client_of, free_port, naming, serving

NOW = 1_795_341_600.75  # 2026-11-22T10:00:00.75Z
KEY = SigningKey("hmac", b"k" * 24)
OLD_KEY = SigningKey("hmac", b"o" * 24)
PAYLOAD = (
    rb'{"operation": "UPDATE", "schema": "public", "table": "ord\"ers", '
    rb'"record": {"id": 9007199254740993, "total": 1.10, "note": "a\u0000b \u00fc }{"}, '
    rb'"old_record": {"id": 9007199254740993, "total": 1.00, "tags": [1, {"x": "]"}]}, '
    rb'"changed": ["total", "note"]}'
)
ENDPOINT = Endpoint("ep_1", "acme", "https://example.com/", (KEY,), {}, timedelta(seconds=5))
WORK = Work(
    delivery_id=UUID("7a1e6f0a-5f0e-4b4e-9a0e-0123456789ab"),
    event_id=7,
    type="orders.updated",
    occurred_at="2026-11-22T09:59:59.123456Z",
    payload=PAYLOAD,
    attempt=1,
    body_format=1,
    endpoint=ENDPOINT,
    org_id="acme",
)


@asynccontextmanager
async def processing(server: Server) -> AsyncIterator[WebhookProcessor]:
    async with client_of(server) as client:
        yield WebhookProcessor(client, server.policy(), lambda: NOW, "Outbox/test")


def work_to(server: Server, *, body_format: int = 1, **changes: Any) -> Work:
    endpoint = replace(ENDPOINT, url=server.url(), **changes)
    return replace(WORK, endpoint=endpoint, body_format=body_format)


async def deliver(processor: WebhookProcessor, work: Work, budget_s: float = 5.0) -> Outcome:
    return await processor(work, asyncio.get_running_loop().time() + budget_s)


def parse(request: bytes) -> tuple[list[tuple[str, str]], bytes]:
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode("ascii").split("\r\n")[1:]
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)], body


def test_the_standard_body_is_these_bytes() -> None:
    assert build_body(WORK) == (
        b'{"type":"orders.updated","timestamp":"2026-11-22T09:59:59.123456Z","data":'
        + PAYLOAD
        + b"}"
    )


def test_the_database_webhook_body_is_these_bytes() -> None:
    assert build_body(replace(WORK, body_format=2)) == (
        rb'{"type":"UPDATE","table":"ord\"ers","schema":"public",'
        rb'"record":{"id": 9007199254740993, "total": 1.10, "note": "a\u0000b \u00fc }{"},'
        rb'"old_record":{"id": 9007199254740993, "total": 1.00, "tags": [1, {"x": "]"}]}}'
    )


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (
            b'{"operation":"insert","schema":"s","table":"t","record":{"a":1}}',
            b'{"type":"INSERT","table":"t","schema":"s","record":{"a":1},"old_record":null}',
        ),
        (
            b'{"operation":"DELETE","schema":"s","table":"t","record":null,"old_record":{"a":1}}',
            b'{"type":"DELETE","table":"t","schema":"s","record":null,"old_record":{"a":1}}',
        ),
        (
            b'{"operation":"TRUNCATE","schema":"s","table":"t"}',
            b'{"type":"TRUNCATE","table":"t","schema":"s","record":null,"old_record":null}',
        ),
    ],
)
def test_members_that_are_absent_are_null(payload: bytes, expected: bytes) -> None:
    assert build_body(replace(WORK, body_format=2, payload=payload)) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"{}",
        b"null",
        b"[1]",
        b'{"operation":"INSERT"}',
        b'{"operation":1,"schema":"s","table":"t"}',
        b'{"operation":"refund","schema":"s","table":"t"}',
    ],
)
def test_an_event_that_is_no_captured_row_gets_the_standard_body(payload: bytes) -> None:
    work = replace(WORK, body_format=2, payload=payload)
    assert build_body(work) == build_body(replace(work, body_format=1))


@given(st.text(), st.dictionaries(st.text(), st.integers() | st.text()))
def test_every_body_is_json_that_says_what_the_event_says(
    name: str, data: dict[str, int | str]
) -> None:
    work = replace(WORK, type=name, payload=json.dumps(data).encode())
    expected = {"type": name, "timestamp": WORK.occurred_at, "data": data}
    assert json.loads(build_body(work)) == expected


@pytest.mark.parametrize("body_format", [1, 2])
def test_a_receiver_with_an_independent_library_verifies_the_request(
    run: Run, body_format: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, processing(server) as processor:
            work = work_to(server, body_format=body_format, keys=(KEY, OLD_KEY))
            outcome = await deliver(processor, work)
            assert (outcome.kind, outcome.reason) == (Kind.DELIVERED, "http_200")
            fields, body = parse(server.requests[0])
            headers = dict(fields)
            assert headers["webhook-id"] == str(WORK.delivery_id)
            assert headers["webhook-timestamp"] == str(int(NOW))
            for key in (KEY, OLD_KEY):
                webhook = Webhook("whsec_" + base64.b64encode(key.material).decode())
                # The library reads the machine's clock; the tolerance is not what is tested.
                monkeypatch.setattr(webhook, "_Webhook__verify_timestamp", lambda _stamp: _at(NOW))
                assert webhook.verify(body, headers) == json.loads(body)

    run(main())


def _at(unix_s: float) -> Any:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(int(unix_s), tz=UTC)


def test_the_headers_stand_in_this_order(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, processing(server) as processor:
            work = work_to(server, headers={"Authorization": "Bearer x", "User-Agent": "mine"})
            await deliver(processor, replace(work, headers={"outbox-hops": "1", "other": "2"}))
            fields, body = parse(server.requests[0])
            assert [name for name, _ in fields] == [
                "Host",
                "content-type",
                "accept",
                "accept-encoding",
                "Authorization",
                "User-Agent",
                "webhook-id",
                "webhook-timestamp",
                "webhook-signature",
                "outbox-hops",
                "content-length",
            ]
            values = dict(fields)
            assert values["accept-encoding"] == "identity"
            assert values["content-type"] == "application/json"
            assert values["User-Agent"] == "mine"
            assert values["content-length"] == str(len(body))

    run(main())


def test_every_attempt_sends_the_same_bytes_under_the_same_id(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server:
            async with client_of(server) as client:
                clock = iter([1000.0, 1300.0])
                processor = WebhookProcessor(client, server.policy(), lambda: next(clock), "a")
                for attempt in (1, 2):
                    await deliver(processor, replace(work_to(server), attempt=attempt))
            (first, body_1), (second, body_2) = map(parse, server.requests)
            assert body_1 == body_2
            changed = {one[0] for one, two in zip(first, second, strict=True) if one != two}
            assert changed == {"webhook-timestamp", "webhook-signature"}

    run(main())


def test_an_events_header_cannot_split_or_shape_the_request(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, processing(server) as processor:
            event_headers = {
                "outbox-a\r\nHost": "evil",
                "outbox-b": "x\r\nwebhook-id: forged",
                "outbox-c": "\u00fc",
                "Webhook-Id": "forged",
                "outbox-good": "yes",
            }
            await deliver(processor, replace(work_to(server), headers=event_headers))
            names = [name for name, _ in parse(server.requests[0])[0]]
            assert [name for name in names if name.startswith("outbox-")] == ["outbox-good"]
            assert b"forged" not in server.requests[0]
            assert b"evil" not in server.requests[0]

    run(main())


def test_an_endpoint_that_changes_is_followed_at_once(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, processing(server) as processor:
            await deliver(processor, work_to(server))
            await deliver(processor, work_to(server, headers={"x-new": "1"}))
            moved = replace(ENDPOINT, url=server.url(path="/moved"))
            await deliver(processor, replace(WORK, endpoint=moved))
            assert b"x-new: 1" in server.requests[1]
            assert server.requests[2].startswith(b"POST /moved ")

    run(main())


ANSWERS = [
    ("200 OK", {}, Outcome(Kind.DELIVERED, "http_200")),
    ("204 No", {}, Outcome(Kind.DELIVERED, "http_204")),
    ("299 Odd", {}, Outcome(Kind.DELIVERED, "http_299")),
    ("301 Moved", {"Location": "https://example.com/"}, Outcome(Kind.RETRY, "redirect")),
    ("304 Same", {}, Outcome(Kind.RETRY, "redirect")),
    ("400 Bad", {"Retry-After": "9"}, Outcome(Kind.RETRY, "http_400")),
    ("404 No", {}, Outcome(Kind.RETRY, "http_404")),
    ("410 Gone", {}, Outcome(Kind.REJECTED, "http_410", disable_endpoint=True)),
    ("429 Slow", {}, Outcome(Kind.THROTTLED, "http_429")),
    ("429 Slow", {"Retry-After": "120"}, Outcome(Kind.THROTTLED, "http_429", timedelta(minutes=2))),
    ("429 Slow", {"Retry-After": "soon"}, Outcome(Kind.THROTTLED, "http_429")),
    (
        "503 Busy",
        {"retry-after": "Sun, 22 Nov 2026 10:01:00 GMT"},
        Outcome(Kind.RETRY, "http_503", timedelta(seconds=59.25)),
    ),
    ("500 Oops", {}, Outcome(Kind.RETRY, "http_500")),
    ("599 Odd", {}, Outcome(Kind.RETRY, "http_599")),
]


@pytest.mark.parametrize(("status", "headers", "expected"), ANSWERS)
def test_an_answer_becomes_its_outcome(
    run: Run, status: str, headers: Mapping[str, str], expected: Outcome
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await peer.say(f"HTTP/1.1 {status}\r\n{lines}Content-Length: 0\r\n\r\n".encode())

    async def main() -> None:
        async with serving(script) as server, processing(server) as processor:
            outcome = await deliver(processor, work_to(server))
            assert replace(outcome, detail={}) == expected
            assert outcome.detail["status"] == int(status[:3])
            assert set(outcome.detail) == {"status", "duration_ms", "response", "error"}

    run(main())


def test_410_is_retried_where_the_endpoint_says_so(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 410 Gone\r\nContent-Length: 0\r\n\r\n")

    async def main() -> None:
        async with serving(script) as server, processing(server) as processor:
            outcome = await deliver(processor, work_to(server, gone_disables=False))
            assert (outcome.kind, outcome.disable_endpoint) == (Kind.RETRY, False)

    run(main())


def test_a_body_that_cannot_be_read_as_text_is_kept_without_harm(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n" + b"\0\xff\xed" * 3000)

    async def main() -> None:
        async with serving(script) as server, processing(server) as processor:
            outcome = await deliver(processor, work_to(server))
            assert outcome.kind is Kind.DELIVERED
            text = str(outcome.detail["response"])
            assert len(text) <= 4096
            assert "\\u0000" not in json.dumps(text)
            assert "\\ud" not in json.dumps(text)

    run(main())


def test_a_deadline_of_the_endpoint_is_a_timeout(run: Run) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.reader.read()

    async def main() -> None:
        async with serving(script) as server, processing(server) as processor:
            work = work_to(server, timeout=timedelta(milliseconds=100))
            outcome = await deliver(processor, work, budget_s=60)
            assert (outcome.kind, outcome.reason) == (Kind.RETRY, "timeout")
            assert not server.ended.is_set()

    run(main())


def test_a_refused_destination_is_denied_without_its_address(run: Run) -> None:
    async def main() -> None:
        server = Server(port=free_port())
        policy = EgressPolicy((IPv4Network("127.0.0.1/32"),), True, frozenset({server.port}))
        async with naming(lambda _name, _kind: ["10.9.8.7"]) as dns:
            async with client_of(server, dns=dns.address, policy=policy) as client:
                processor = WebhookProcessor(client, policy, lambda: NOW)
                for url in (server.url("inner.test"), server.url("10.9.8.7"), "https://a:1/", "x"):
                    endpoint = replace(ENDPOINT, url=url)
                    outcome = await deliver(processor, replace(WORK, endpoint=endpoint))
                    assert (outcome.kind, outcome.reason) == (Kind.DENIED, "denied_target")
                    assert "10.9.8.7" not in str(outcome.detail)

    run(main())


def test_our_resolver_down_is_not_charged(run: Run) -> None:
    async def main() -> None:
        server = Server(port=free_port())
        async with client_of(server, dns=f"127.0.0.1:{free_port()}") as client:
            processor = WebhookProcessor(client, server.policy(), lambda: NOW)
            endpoint = replace(ENDPOINT, url=server.url("any.test"))
            outcome = await deliver(processor, replace(WORK, endpoint=endpoint))
            assert (outcome.kind, outcome.reason) == (Kind.INTERNAL, "resolver_down")

    run(main())


def test_out_of_file_descriptors_is_not_charged(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_args: object, **_options: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    async def main() -> None:
        async with serving(answer_all) as server, processing(server) as processor:
            with monkeypatch.context() as patch:
                patch.setattr("processors.http.socket.socket", exhausted)
                outcome = await deliver(processor, work_to(server))
            assert (outcome.kind, outcome.reason) == (Kind.INTERNAL, "local_limit")

    run(main())


def test_a_stored_header_that_would_split_the_request_sends_nothing(run: Run) -> None:
    async def main() -> None:
        async with serving(answer_all) as server, processing(server) as processor:
            outcome = await deliver(processor, work_to(server, headers={"x": "a\r\nb: c"}))
            assert (outcome.kind, outcome.reason) == (Kind.DENIED, "bad_header")
            assert server.connections == 0

    run(main())


def test_reasons_on_our_side_are_few_and_named() -> None:
    assert {Reason.RESOLVER_DOWN, Reason.RESOLVER_BUSY, Reason.LOCAL_LIMIT} == OURS


@pytest.mark.parametrize(
    "name",
    """webhook-id Webhook-Signature WEBHOOK-X host Content-Length transfer-encoding connection
    keep-alive te trailer upgrade expect proxy-authorization accept-encoding content-encoding
    outbox-hops""".split(),
)
def test_a_header_that_is_ours_cannot_be_set(name: str) -> None:
    with pytest.raises(UsageError, match="set by Outbox"):
        check_custom_headers({name: "x"})


@pytest.mark.parametrize(
    "headers",
    [
        {"x y": "a"},
        {"": "a"},
        {"x\u00fc": "a"},
        {"x": "\u00fc"},
        {"x": "a\nb"},
        {"x": "a\0"},
        {"x": "1", "X": "2"},
        {"x": "a" * 9000},
        {f"x-{number}": "a" for number in range(33)},
    ],
)
def test_a_header_that_is_not_well_formed_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        check_custom_headers(headers)


def test_ordinary_headers_are_accepted() -> None:
    check_custom_headers({"Authorization": "Bearer a.b-c", "X-Tenant": "acme", "user-agent": "u"})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0),
        (" 30 ", 30),
        ("-5", None),
        ("1.5", None),
        ("\u0663", None),
        ("9" * 18, 365 * 86400),
        ("9" * 40, None),
        ("Sun, 22 Nov 2026 10:00:30 GMT", 29.25),
        ("Sunday, 22-Nov-26 10:00:30 GMT", 29.25),
        ("Sun Nov 22 10:00:30 2026", 29.25),
        ("Sun, 22 Nov 2020 10:00:30 GMT", 0),
        ("Sun, 22 Nov 9999 10:00:30 GMT", 365 * 86400),
        ("Sun, 99 Nov 2026 10:00:30 GMT", None),
    ],
)
def test_retry_after_is_read_in_both_forms(value: str | None, seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert parse_retry_after(value, NOW) == expected


@given(st.text())
def test_no_retry_after_makes_reading_fail(value: str) -> None:
    after = parse_retry_after(value, NOW)
    assert after is None or timedelta(0) <= after <= timedelta(days=365)


def test_client_and_processor_are_built_without_a_loop() -> None:
    resolver = CaresResolver()
    policy = EgressPolicy()
    WebhookProcessor(HttpClient(policy, resolver), policy, lambda: NOW)
    resolver.close()

"""The REST endpoints: what is taken, what is refused, in which words."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from tests.realtime.peer import peer
from tests.realtime.scene import QUICK, Scene, awaited, token

GOOD = {"topic": "room", "event": "e", "payload": {"a": 1}}
BLANK = ["can't be blank"]


@pytest.fixture
def rest(shared: Scene) -> Iterator[httpx.Client]:
    """As the service's key."""
    key = {"authorization": f"Bearer {token(role='service_role')}"}
    with httpx.Client(base_url=f"{shared.url}/api", headers=key) as client:
        yield client


def batch(rest: httpx.Client, *messages: Any, **more: Any) -> httpx.Response:
    return rest.post("/broadcast", json={"messages": list(messages)}, **more)


def test_a_caller_needs_a_token_as_bearer_or_apikey(shared: Scene) -> None:
    for headers in (
        {},
        {"authorization": "Bearer x"},
        {"authorization": f"Basic {token()}"},
        {"apikey": token(lasts_s=-1)},
    ):
        for path in ("/broadcast", "/broadcast/room/events/e"):
            answer = httpx.post(f"{shared.url}/api{path}", json={}, headers=headers)
            assert (answer.status_code, answer.json()) == (401, {"message": "Unauthorized"})
    with httpx.Client(base_url=f"{shared.url}/api", headers={"apikey": token()}) as anonymous:
        assert batch(anonymous, GOOD).status_code == 202
        answer = anonymous.post("/broadcast/room/events/e", json={})
        assert answer.status_code == 202


def test_a_bad_message_sinks_its_batch_and_is_pointed_at(rest: httpx.Client) -> None:
    answer = batch(
        rest,
        {"topic": "room", "event": "e"},
        GOOD,
        {"topic": "", "event": 5, "payload": [1]},
        {**GOOD, "topic": "é" * 124, "private": "yes", "id": 5},
        {**GOOD, "payload": {"x": "y" * 3_100_000}},
        "nonsense",
    )
    assert answer.status_code == 422
    assert answer.json() == {
        "errors": {
            "messages": [
                {"payload": BLANK},
                {},
                {"topic": BLANK, "event": ["is invalid"], "payload": ["is invalid"]},
                {"topic": ["is too long"], "private": ["is invalid"], "id": ["is invalid"]},
                {"payload": ["Payload size exceeds tenant limit"]},
                {"topic": BLANK, "event": BLANK, "payload": BLANK},
            ]
        }
    }
    empty: Any
    for empty in ({}, {"messages": []}, {"messages": {}}, []):
        assert rest.post("/broadcast", json=empty).status_code == 422
    assert rest.post("/broadcast", content=b"{").status_code == 400
    assert rest.post("/broadcast", content=b" " * 8_100_000).status_code == 413


@awaited
async def test_of_a_batch_the_private_messages_that_may_not_be_sent_are_skipped_silently(
    shared: Scene,
) -> None:
    as_member = {"authorization": f"Bearer {token('alice')}"}
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("orders:acme")
        await alice.joined("room", private=False)
        with httpx.Client(base_url=f"{shared.url}/api", headers=as_member) as member:
            forged = {**GOOD, "topic": "orders:acme", "private": True}
            answer = batch(member, forged, forged, {**GOOD, "id": "7"})
            assert (answer.status_code, answer.content) == (202, b"")
            told = await alice.event("broadcast")
            assert (told.topic, told.payload["meta"]) == ("realtime:room", {"id": "7"})
            path = "/broadcast/orders:acme/events/e"
            refused = member.post(f"{path}?private=true", json={})
            assert (refused.status_code, refused.json()) == (403, {"message": "Unauthorized"})
            assert member.post(path, json={}).status_code == 202  # the public room of that name
        assert await alice.silent() == []


@awaited
async def test_one_event_takes_json_or_bytes(shared: Scene, rest: httpx.Client) -> None:
    async with peer(shared.ws, token("alice")) as alice:
        await alice.joined("a/b", private=False)
        path = "/broadcast/a%2Fb/events/e"
        raw = {"content-type": "application/octet-stream"}
        assert rest.post(path, content=b"\xff", headers=raw).status_code == 202
        assert (await alice.event("broadcast")).payload["payload"] == b"\xff"
        assert rest.post(path, content=b"[1.50]").status_code == 202  # a missing type is JSON
        assert (await alice.event("broadcast")).payload["payload"] == [1.5]
    for kind, content, status, document in (
        (
            "text/plain",
            b"{}",
            415,
            {"error": "Unsupported Media Type. Use application/json or application/octet-stream"},
        ),
        ("application/json", b"{", 422, {"message": "the body is not JSON"}),
        (
            "application/json",
            b" " * 3_100_000,
            422,
            {"message": "Payload size exceeds tenant limit"},
        ),
    ):
        answer = rest.post(path, content=content, headers={"content-type": kind})
        assert (answer.status_code, answer.json()) == (status, document)
    assert rest.post(f"/broadcast/{'x' * 247}/events/e", json={}).status_code == 422


def test_too_many_are_refused_and_the_rate_is_told(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(replace(QUICK, events_per_s=10))
    key = {"authorization": f"Bearer {token(role='service_role')}"}
    now = time.time()
    scene.server.center.events._clock = lambda: now  # rates are those of whole seconds
    with httpx.Client(base_url=f"{scene.url}/api", headers=key) as rest:
        answer = batch(rest, *[GOOD] * 11)
        assert answer.status_code == 429
        assert answer.json() == {
            "message": "Too many messages to broadcast, please reduce the batch size"
        }
        for _ in range(3):
            assert batch(rest, *[GOOD] * 10).status_code == 202
        scene.server.center.events._clock = lambda: now + 1
        for answer in (batch(rest, GOOD), rest.post("/broadcast/room/events/e", json={})):
            assert answer.status_code == 429
            assert answer.json() == {"message": "You have exceeded your rate limit"}
            assert answer.headers["x-rate-limit"] == "10"
            assert int(answer.headers["x-rate-rolling"]) > 10
            assert answer.headers["x-rate-limit-remaining"] == "0"


def test_a_page_of_any_origin_may_call(rest: httpx.Client) -> None:
    asked = {
        "origin": "https://app.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "apikey,authorization,content-type",
    }
    answer = rest.options("/broadcast", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    answer = batch(rest, GOOD, headers={"origin": "https://app.example.com"})
    assert "x-rate-limit" in answer.headers["access-control-expose-headers"]


def test_without_a_database_private_messages_are_refused(
    make_scene: Callable[..., Scene],
) -> None:
    scene = make_scene()
    line = scene.server.center.store._judge
    line._url = "postgresql://127.0.0.1:1/none"
    key = {"authorization": f"Bearer {token(role='service_role')}"}
    with httpx.Client(base_url=f"{scene.url}/api", headers=key) as rest:
        for answer in (
            batch(rest, {**GOOD, "private": True}),
            rest.post("/broadcast/room/events/e?private=true", json={}),
        ):
            assert answer.status_code == 422
            assert answer.json() == {"message": "Tenant database unavailable"}

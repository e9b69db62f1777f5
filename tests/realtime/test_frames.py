"""The codec of the stand-in server against golden frames, and whatever a client may send."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.realtime.frames import (
    V1,
    V2,
    Broadcast,
    Frame,
    MalformedFrame,
    Push,
    decode,
    encode,
    encode_broadcast,
    fits,
)
from outbox.realtime.joining import Refusal, Replay, read_join
from outbox.realtime.limits import Rate
from outbox.realtime.presence import Presence

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "vectors" / "realtime.json").read_text()
)


def test_a_clients_golden_binary_push_is_read() -> None:
    golden = GOLDEN["kind_3"]
    push = decode(V2, bytes.fromhex(golden["hex"]))
    assert isinstance(push, Push)
    assert (push.join_ref, push.ref, push.topic, push.event) == tuple(
        golden[name] for name in ("join_ref", "ref", "topic", "event")
    )
    assert push.is_json
    assert json.loads(push.payload) == golden["payload"]


def test_a_broadcast_is_the_golden_binary_frame_byte_by_byte() -> None:
    golden = GOLDEN["kind_4"]
    payload = json.dumps(golden["payload"], separators=(",", ":")).encode()
    message = Broadcast(golden["event"], payload, golden["meta"])
    frame = encode_broadcast(V2, golden["topic"], message)
    assert isinstance(frame, bytes)
    assert frame.hex() == golden["hex"]


@pytest.mark.parametrize(
    ("version", "text"),
    [
        (V1, '{"topic":"t","event":"e","payload":{"a":1},"ref":"2","join_ref":"1"}'),
        (V2, '["1","2","t","e",{"a":1}]'),
    ],
)
def test_a_text_frame_is_read(version: str, text: str) -> None:
    assert decode(version, text) == Frame("1", "2", "t", "e", {"a": 1})


def test_version_1_sends_no_join_ref_and_always_a_ref() -> None:
    told = encode(V1, join_ref="1", topic="t", event="system", payload={})
    assert json.loads(told) == {"topic": "t", "event": "system", "payload": {}, "ref": None}
    told = encode(V2, join_ref="1", ref="2", topic="t", event="phx_reply", payload={})
    assert json.loads(told) == ["1", "2", "t", "phx_reply", {}]


def test_a_message_has_a_form_for_each_version() -> None:
    message = Broadcast("e", b'{"n":12345678901234567890.10}', {"id": "x"})
    text = encode_broadcast(V1, "realtime:t", message)
    assert isinstance(text, str)
    assert '"payload":{"n":12345678901234567890.10}' in text  # as PostgreSQL wrote it
    assert json.loads(text)["payload"]["meta"] == {"id": "x"}
    rest = Broadcast("e", b"{}", binary=False)
    told = encode_broadcast(V2, "realtime:t", rest)
    assert isinstance(told, str)
    assert json.loads(told) == [
        *(None, None, "realtime:t", "broadcast"),
        {"type": "broadcast", "event": "e", "payload": {}},
    ]
    raw = Broadcast("e", b"\x00\xff", is_json=False)
    assert encode_broadcast(V1, "realtime:t", raw) is None
    assert encode_broadcast(V2, "realtime:t", raw) == b"\x04\x0a\x01\x00\x00realtime:te\x00\xff"


@pytest.mark.parametrize(
    ("version", "data"),
    [
        (V1, b"\x03\x00\x00\x00\x00\x00\x01"),
        (V1, "[]"),
        (V1, '{"topic":1,"event":"e"}'),
        (V1, '{"topic":"t"}'),
        (V2, "{}"),
        (V2, "[1,2,3]"),
        (V2, '[{},"1","t","e",{}]'),
        (V2, '[true,"1","t","e",{}]'),
        (V2, "not json"),
        (V2, '["1","1","\\ud800","e",{}]'),
        (V2, b""),
        (V2, b"\x00\x00\x00\x00\x00\x00\x01{}"),
        (V2, b"\x03\x00\x00\xff\x00\x00\x01{}"),
        (V2, b"\x03\x00\x00\x01\x00\x00\x01\xff{}"),
        (V2, b"\x03\x00\x00\x01\x00\x00\x02t{}"),
        (V2, b"\x03\x00\x00\x01\x00\x00\x01t{"),
    ],
)
def test_what_is_no_frame_is_told_apart(version: str, data: str | bytes) -> None:
    with pytest.raises(MalformedFrame):
        decode(version, data)


@given(st.sampled_from([V1, V2]), st.binary(max_size=60) | st.text(max_size=60))
def test_no_bytes_raise_anything_else(version: str, data: str | bytes) -> None:
    with suppress(MalformedFrame):
        decode(version, data)


names = st.text(max_size=60).filter(lambda text: fits("", text))


@given(names, names, st.binary(max_size=40))
def test_what_fits_has_a_binary_frame_that_says_its_own_lengths(
    topic: str, event: str, payload: bytes
) -> None:
    frame = encode_broadcast(V2, topic, Broadcast(event, payload, {"id": "1"}, is_json=False))
    assert isinstance(frame, bytes)
    sizes = frame[1:4]
    parts, start = [], 5
    for size in sizes:
        parts.append(frame[start : start + size])
        start += size
    assert [parts[0].decode(), parts[1].decode(), parts[2]] == [topic, event, b'{"id":"1"}']
    assert frame[start:] == payload


def test_topic_and_event_have_255_bytes() -> None:
    assert fits("é" * 127, "e" * 255)
    assert not fits("é" * 128, "e")
    assert not fits("t", "e" * 256)


# -- joining ---------------------------------------------------------------------------------------


def test_a_join_is_read_as_well_as_it_can_be() -> None:
    config = {
        "broadcast": {"ack": "true", "self": True, "replay": {"since": 5, "limit": 99}},
        "presence": {"key": "me", "enabled": "true"},
        "private": "true",
    }
    join = read_join({"config": config, "access_token": "a", "user_token": None})
    assert (join.private, join.ack, join.to_self, join.presence, join.presence_key) == (
        *(True, True, True, True),
        "me",
    )
    assert join.replay == Replay(5, 25)
    assert join.token == "a"
    assert read_join({"user_token": "u", "access_token": "a"}).token == "u"
    odd: Any
    for odd in (None, 3, [], {"config": []}, {"config": {"broadcast": 1, "private": "yes"}}):
        assert not read_join(odd).private


@pytest.mark.parametrize(
    ("replay", "private", "reason"),
    [
        ({"since": 5}, False, "UnableToReplayMessages: Replay is not allowed for public channels"),
        ({"since": "5"}, True, "UnableToReplayMessages: Replay params are not valid"),
        ({"limit": 5}, True, "UnableToReplayMessages: Replay params are not valid"),
        ({"since": True}, True, "UnableToReplayMessages: Replay params are not valid"),
        ({"since": 2**63}, True, "UnableToReplayMessages: Replay params are not valid"),
        ({"since": 5, "limit": 2.5}, True, "UnableToReplayMessages: Replay params are not valid"),
    ],
)
def test_a_replay_that_cannot_be_says_why(replay: Any, private: bool, reason: str) -> None:
    join = read_join({"config": {"private": private, "broadcast": {"replay": replay}}})
    assert isinstance(join.replay, Refusal)
    assert join.replay.reason == reason


def test_a_replays_limit_is_clamped() -> None:
    def limit(value: int) -> int:
        join = read_join(
            {"config": {"private": True, "broadcast": {"replay": {"since": 0, "limit": value}}}}
        )
        assert isinstance(join.replay, Replay)
        return join.replay.limit

    assert [limit(n) for n in (-5, 0, 1, 25, 26, 10**9)] == [1, 1, 1, 25, 25, 25]


# -- rates and presence ----------------------------------------------------------------------------


def test_a_rate_is_that_of_the_seconds_that_are_over() -> None:
    now = [1000.5]
    rate = Rate(10, lambda: now[0])
    rate.add(15)
    assert rate.average == 0  # a burst within its second
    now[0] += 1
    assert rate.average == 15
    assert rate.exceeded
    now[0] += 1
    assert rate.average == 7.5
    now[0] += 100
    assert rate.average == 0
    for _ in range(90):
        rate.add(20)
        now[0] += 1
    assert rate.average == 20


def test_presence_tells_differences_and_a_late_comer_the_state() -> None:
    presence = Presence()
    first = presence.track("a", "ann", {"at": 1})
    assert first == {"joins": {"ann": {"metas": [{"at": 1, "phx_ref": "1"}]}}, "leaves": {}}
    again = presence.track("a", "ann", {"at": 2})
    assert again["leaves"] == first["joins"]
    presence.track("b", "ann", {"at": 3})
    assert [meta["at"] for meta in presence.state()["ann"]["metas"]] == [2, 3]
    left = presence.untrack("a")
    assert left is not None
    assert left["leaves"] == again["joins"]
    assert presence.untrack("a") is None
    assert orjson.dumps(presence.state())

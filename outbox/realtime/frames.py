"""The frames on the websocket: text of versions 1.0.0 and 2.0.0, binary kinds 3 and 4.

Pure. What a client sends becomes a `Frame` or a `Push`; what it is sent is made here. A `Broadcast`
carries its payload as bytes, unparsed: numbers beyond what JavaScript can hold reach the client as
PostgreSQL wrote them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

V1, V2 = "1.0.0", "2.0.0"
KIND_PUSH, KIND_BROADCAST = 3, 4
AS_BYTES, AS_JSON = 0, 1
NAME_BYTES_MAX = 255
"""Lengths are one byte each: of topic (with its `realtime:`), event and meta in UTF-8."""

Ref = str | int | None


class MalformedFrame(ValueError):
    """What came is not a frame of the version that was agreed on."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A text frame from a client."""

    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: Any


@dataclass(frozen=True, slots=True)
class Push:
    """A client's broadcast as a binary frame (kind 3). Its meta is not kept: nobody but the server
    says what a message's id is, or that it was replayed."""

    join_ref: Ref
    ref: Ref
    topic: str
    event: str
    payload: bytes
    is_json: bool


@dataclass(frozen=True, slots=True)
class Broadcast:
    """A message for the subscribers of a topic. `payload` is JSON text unless `is_json` is false;
    `binary` says whether clients of version 2 get it as a binary frame."""

    event: str
    payload: bytes
    meta: Mapping[str, object] = field(default_factory=dict)
    is_json: bool = True
    binary: bool = True


def decode(version: str, data: str | bytes) -> Frame | Push:
    """Read what a client sent. Raises MalformedFrame."""
    if isinstance(data, bytes):
        if version != V2:
            raise MalformedFrame("binary frames belong to version 2.0.0")
        return _decode_push(data)
    try:
        found = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise MalformedFrame("not JSON") from error
    if version == V2:
        if not isinstance(found, list) or len(found) != 5:
            raise MalformedFrame("not a list of five")
        join_ref, ref, topic, event, payload = found
    else:
        if not isinstance(found, dict) or not {"topic", "event"} <= found.keys():
            raise MalformedFrame("not an object with topic and event")
        join_ref, ref = found.get("join_ref"), found.get("ref")
        topic, event, payload = found["topic"], found["event"], found.get("payload")
    if not (isinstance(topic, str) and isinstance(event, str)):
        raise MalformedFrame("topic and event are texts")
    if not (_is_ref(join_ref) and _is_ref(ref)):
        raise MalformedFrame("refs are texts")
    return Frame(join_ref, ref, topic, event, payload)


def _is_ref(value: object) -> bool:
    return value is None or (isinstance(value, str | int) and not isinstance(value, bool))


def _decode_push(data: bytes) -> Push:
    if len(data) < 7 or data[0] != KIND_PUSH:
        raise MalformedFrame("not a binary frame of kind 3")
    *lengths, encoding = data[1:7]
    texts, start = [], 7
    for length in lengths:
        texts.append(data[start : start + length])
        start += length
    if len(data) < start or encoding not in {AS_BYTES, AS_JSON}:
        raise MalformedFrame("a binary frame ends before its parts do")
    payload = data[start:]
    try:
        join_ref, ref, topic, event, _meta = (text.decode() for text in texts)
        if encoding == AS_JSON:
            orjson.loads(payload)
    except (UnicodeDecodeError, orjson.JSONDecodeError) as error:
        raise MalformedFrame("a binary frame holds what is not text or JSON") from error
    return Push(join_ref or None, ref or None, topic, event, payload, encoding == AS_JSON)


def encode(
    version: str, *, join_ref: Ref = None, ref: Ref = None, topic: str, event: str, payload: Any
) -> str:
    """A text frame for a client. Version 1.0.0 has no place for `join_ref`."""
    if version == V2:
        return orjson.dumps([join_ref, ref, topic, event, payload]).decode()
    frame = {"topic": topic, "event": event, "payload": payload, "ref": ref}
    return orjson.dumps(frame).decode()


def encode_broadcast(version: str, topic: str, message: Broadcast) -> str | bytes | None:
    """A message as one client gets it; None where its version has no form for it."""
    if version == V2 and message.binary:
        return _encode_kind_4(topic, message)
    if not message.is_json:
        return None
    payload: dict[str, object] = {
        "type": "broadcast",
        "event": message.event,
        "payload": orjson.Fragment(message.payload),
    }
    if message.meta:
        payload["meta"] = message.meta
    return encode(version, topic=topic, event="broadcast", payload=payload)


def _encode_kind_4(topic: str, message: Broadcast) -> bytes:
    parts = [
        topic.encode(),
        message.event.encode(),
        orjson.dumps(message.meta) if message.meta else b"",
    ]
    header = [KIND_BROADCAST, *map(len, parts), AS_JSON if message.is_json else AS_BYTES]
    return bytes(header) + b"".join(parts) + message.payload


def fits(topic: str, event: str) -> bool:
    """Whether topic (with its prefix) and event have room in a binary frame."""
    return max(len(topic.encode()), len(event.encode())) <= NAME_BYTES_MAX

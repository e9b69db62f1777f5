"""The REST endpoints that broadcast: many messages at once, or one.

A batch is accepted or refused as a whole. 202 does not mean delivered, nor even sent: private
messages that the caller may not send are skipped without a word, as Supabase does. The endpoint for
one event says 403 instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from outbox.errors import DatabaseUnavailable
from outbox.realtime.frames import Broadcast, fits
from outbox.realtime.hub import Center
from outbox.realtime.joining import PREFIX
from outbox.realtime.limits import BODY_BYTES_MAX, Rate
from outbox.realtime.tokens import Claims, TokenRefused
from outbox.store.realtime import Acting, PartitionMissing

JSON_TYPE, BYTES_TYPE = "application/json", "application/octet-stream"
_WRONG_TYPE = f"Unsupported Media Type. Use {JSON_TYPE} or {BYTES_TYPE}"
_TOO_LARGE = "Payload size exceeds tenant limit"
_RATE = "You have exceeded your rate limit"
_BATCH = "Too many messages to broadcast, please reduce the batch size"
_BLANK = "can't be blank"


class Rest:
    """The handlers, for one server."""

    def __init__(self, center: Center) -> None:
        self._center = center

    async def batch(self, request: Request) -> Response:
        """POST /api/broadcast."""
        claims = self._caller(request)
        if claims is None:
            return self._say(401, "Unauthorized")
        body = await _body(request)
        if body is None:
            return self._answer(413, {"message": "Request Entity Too Large"})
        try:
            document = orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._answer(400, {"errors": {"detail": "Bad Request"}})
        given = document.get("messages") if isinstance(document, dict) else None
        if not isinstance(given, list) or not given:
            return self._answer(422, {"errors": {"messages": [_BLANK]}})
        problems = [self._problems(message) for message in given]
        if any(problems):
            return self._answer(422, {"errors": {"messages": problems}})
        events = self._center.events
        if events.exceeded:
            return self._say(429, _RATE)
        if events.average + len(given) > events.limit:
            return self._say(429, _BATCH)
        try:
            await self._send_all(given, _acting(claims, request))
        except PartitionMissing:
            return self._say(422, "Missing messages partition")
        except DatabaseUnavailable:
            return self._say(422, "Tenant database unavailable")
        return self._answer(202)

    async def _send_all(self, messages: list[dict[str, Any]], acting: Acting) -> None:
        may: dict[str, bool] = {}
        for message in messages:
            private, topic = message.get("private") is True, message["topic"]
            if private and topic not in may:
                may[topic] = await self._center.store.may_write(acting, topic, "broadcast")
            self._center.events.add()
            if private and not may[topic]:
                continue
            meta = {"id": message["id"]} if message.get("id") else {}
            payload = orjson.dumps(message["payload"])
            told = Broadcast(message["event"], payload, meta, binary=False)
            self._center.hub.publish(private, topic, told)

    def _problems(self, message: Any) -> dict[str, list[str]]:
        """What is wrong with one message, by field."""
        if not isinstance(message, dict):
            return {name: [_BLANK] for name in ("topic", "event", "payload")}
        wrong: dict[str, list[str]] = {}
        for name in ("topic", "event"):
            if not message.get(name):
                wrong[name] = [_BLANK]
            elif not isinstance(message[name], str):
                wrong[name] = ["is invalid"]
            elif not fits(PREFIX + message[name] if name == "topic" else "", message[name]):
                wrong[name] = ["is too long"]
        payload = message.get("payload")
        if payload is None:
            wrong["payload"] = [_BLANK]
        elif not isinstance(payload, dict):
            wrong["payload"] = ["is invalid"]
        elif len(orjson.dumps(payload)) > self._center.limits.payload_bytes:
            wrong["payload"] = [_TOO_LARGE]
        if not isinstance(message.get("private", False), bool):
            wrong["private"] = ["is invalid"]
        if not isinstance(message.get("id", ""), str):
            wrong["id"] = ["is invalid"]
        return wrong

    async def single(self, request: Request) -> Response:
        """POST /api/broadcast/TOPIC/events/EVENT."""
        claims = self._caller(request)
        if claims is None:
            return self._say(401, "Unauthorized")
        kind = request.headers.get("content-type", JSON_TYPE).partition(";")[0].strip().lower()
        if kind not in {JSON_TYPE, BYTES_TYPE}:
            return self._answer(415, {"error": _WRONG_TYPE})
        topic, event = request.path_params["topic"], request.path_params["event"]
        body = await _body(request)
        if body is None or len(body) > self._center.limits.payload_bytes:
            return self._say(422, _TOO_LARGE)
        if self._center.events.exceeded:
            return self._say(429, _RATE)
        if (problem := _misfit(topic, event, kind, body)) is not None:
            return self._say(422, problem)
        private = request.query_params.get("private") == "true"
        if private:
            refused = await self._refused(_acting(claims, request), topic)
            if refused is not None:
                return refused
        self._center.events.add()
        message = Broadcast(event, body, is_json=kind == JSON_TYPE)
        self._center.hub.publish(private, topic, message)
        return self._answer(202)

    async def _refused(self, acting: Acting, topic: str) -> Response | None:
        try:
            if await self._center.store.may_write(acting, topic, "broadcast"):
                return None
        except PartitionMissing:
            return self._say(422, "Missing messages partition")
        except DatabaseUnavailable:
            return self._say(422, "Tenant database unavailable")
        return self._say(403, "Unauthorized")

    # -- what both share -------------------------------------------------------------------------

    def _caller(self, request: Request) -> Claims | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            token = request.headers.get("apikey", "")
        try:
            return self._center.verifier.verify(token.strip(), self._center.now())
        except TokenRefused:
            return None

    def _say(self, status: int, message: str) -> Response:
        return self._answer(status, {"message": message})

    def _answer(self, status: int, document: Mapping[str, Any] | None = None) -> Response:
        headers = _rate_headers(self._center.events)
        if document is None:
            return Response(status_code=status, headers=headers)
        return JSONResponse(document, status, headers=headers)


def _rate_headers(rate: Rate) -> dict[str, str]:
    used, limit = round(rate.average), round(rate.limit)
    return {
        "x-rate-rolling": str(used),
        "x-rate-limit": str(limit),
        "x-rate-limit-remaining": str(max(limit - used, 0)),
    }


def _misfit(topic: str, event: str, kind: str, body: bytes) -> str | None:
    if not fits(PREFIX + topic, event):
        return "topic or event is too long"
    if kind == JSON_TYPE:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            return "the body is not JSON"
    return None


def _acting(claims: Claims, request: Request) -> Acting:
    return Acting(claims.role, claims.text, claims.sub, request_headers(request.headers))


def request_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers as policies may look at them; none that prove who the client is."""
    hidden = {"authorization", "apikey", "x-api-key", "cookie"}
    return {name: value for name, value in headers.items() if name not in hidden}


async def _body(request: Request) -> bytes | None:
    """The body, None where it is longer than is read."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > BODY_BYTES_MAX:
            return None
        parts.append(part)
    return b"".join(parts)

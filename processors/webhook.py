"""The webhook processor: one attempt is one signed POST.

Owns the body formats, the headers and the translation of what came back into an Outcome. The
body is the same bytes on every attempt of a delivery; only the timestamp and the signature
change. Nothing that has to do with keeping the response can make an attempt fail.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any
from uuid import UUID

from outbox.errors import DestinationRefused, UsageError
from outbox.outcome import Kind, Outcome
from outbox.settings import Settings
from outbox.signature import sign
from outbox.work import Endpoint, Work
from processors.connection import Response
from processors.egress import Destination, EgressPolicy, parse_destination, policy_of
from processors.failures import OURS, RequestFailed
from processors.http import HttpClient, header_line, request_head
from processors.kinds import Kind as KindOfDestination
from processors.rawjson import members
from processors.resolver import CaresResolver

BODY_STANDARD = 1
BODY_DATABASE_WEBHOOK = 2
CUSTOM_HEADERS_MAX = 32
CUSTOM_HEADER_BYTES_MAX = 8192
RETRY_AFTER_S_MAX = 365 * 86400
_ENDPOINTS_KEPT = 4096

# What the signature, the framing or the connection rest on.
_RESERVED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_GENERATION = ("outbox-generation", "outbox-original-id")
_RESERVED_STARTS = ("webhook-", "proxy-", "outbox-")
_OPERATIONS = frozenset({"INSERT", "UPDATE", "DELETE", "TRUNCATE"})
_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What stays the same for every request to an endpoint."""

    url: str
    custom: Mapping[str, str]
    destination: Destination
    head: bytes


class WebhookProcessor:
    """Delivers one Work by HTTP. `clock` gives unix time in seconds."""

    def __init__(
        self,
        client: HttpClient,
        policy: EgressPolicy,
        clock: Callable[[], float],
        user_agent: str | None = None,
    ) -> None:
        self._client = client
        self._policy = policy
        self._clock = clock
        self._user_agent = user_agent or f"Outbox/{_version()}"
        self._prepared: dict[str, _Prepared] = {}

    async def __call__(self, work: Work, deadline: float) -> Outcome:
        """Make one attempt. `deadline` is a loop time; the endpoint's timeout bounds it too."""
        started = asyncio.get_running_loop().time()
        until = min(deadline, started + work.destination.timeout.total_seconds())
        try:
            destination, head, body = self.request(work)
            response = await self._client.post(destination, head, body, until)
        except DestinationRefused as refusal:
            return Outcome(Kind.DENIED, "denied_target", detail={"error": str(refusal)})
        except UsageError as error:
            return Outcome(Kind.DENIED, "bad_header", detail={"error": str(error)})
        except RequestFailed as failure:
            return _from_failure(failure, asyncio.get_running_loop().time() - started)
        return self._from_response(response, work.destination)

    def request(self, work: Work) -> tuple[Destination, bytes, bytes]:
        """Where an attempt goes, its headers signed now, its body. Raises DestinationRefused or
        UsageError."""
        prepared = self._prepare(work.destination)
        body = build_body(work)
        return prepared.destination, prepared.head + self._varying_headers(work, body), body

    def _prepare(self, endpoint: Endpoint) -> _Prepared:
        prepared = self._prepared.get(endpoint.id)
        if (
            prepared is not None
            and prepared.url == endpoint.url
            and prepared.custom == endpoint.headers
        ):
            return prepared
        check_custom_headers(endpoint.headers)
        destination = parse_destination(endpoint.url, self._policy)
        head = request_head(destination, _fixed_headers(endpoint.headers, self._user_agent))
        prepared = _Prepared(endpoint.url, dict(endpoint.headers), destination, head)
        if len(self._prepared) >= _ENDPOINTS_KEPT:
            self._prepared.clear()  # rare, and cheaper than keeping an order of use
        self._prepared[endpoint.id] = prepared
        return prepared

    def _varying_headers(self, work: Work, body: bytes) -> bytes:
        message_id = str(work.delivery_id)
        timestamp = int(self._clock())
        signature = sign(work.destination.keys, message_id, timestamp, body)
        lines = (
            f"webhook-id: {message_id}\r\nwebhook-timestamp: {timestamp}\r\n"
            f"webhook-signature: {signature}\r\n"
        ).encode("ascii")
        if work.generation:
            lines += _generation_headers(work.generation, work.original_id)
        return lines if not work.headers else lines + _event_headers(work.headers)

    def _from_response(self, response: Response, endpoint: Endpoint) -> Outcome:
        status = response.status
        detail = {
            "status": status,
            "duration_ms": round(response.duration_s * 1000),
            "response": response.body_snippet,
            "error": None,
        }
        if 200 <= status < 300:
            return Outcome(Kind.DELIVERED, f"http_{status}", detail=detail)
        if 300 <= status < 400:
            detail["error"] = "the receiver redirects; redirects are not followed"
            return Outcome(Kind.RETRY, "redirect", detail=detail)
        reason = f"http_{status}"
        if status == 410 and endpoint.gone_disables:
            return Outcome(Kind.REJECTED, reason, detail=detail, disable_endpoint=True)
        if status not in (429, 503):
            return Outcome(Kind.RETRY, reason, detail=detail)
        kind = Kind.THROTTLED if status == 429 else Kind.RETRY
        after = parse_retry_after(response.retry_after, self._clock())
        return Outcome(kind, reason, after=after, detail=detail)


def build_body(work: Work) -> bytes:
    """The body: a function of event, type and format alone, so that every attempt sends the same
    bytes. An event without captured row gets the standard body in both formats."""
    if work.body_format == BODY_DATABASE_WEBHOOK:
        body = _database_webhook_body(work.payload)
        if body is not None:
            return body
    return b'{"type":%b,"timestamp":%b,"data":%b}' % (
        _quoted(work.type),
        _quoted(work.occurred_at),
        work.payload,
    )


def check_custom_headers(headers: Mapping[str, str]) -> None:
    """Raises UsageError unless `headers` may stand in a request: names and values well-formed,
    none that belongs to the signature, the framing or the connection, 8 KiB in all."""
    if len(headers) > CUSTOM_HEADERS_MAX:
        raise UsageError(f"more than {CUSTOM_HEADERS_MAX} custom headers")
    seen: set[str] = set()
    size = 0
    for name, value in headers.items():
        lowered = name.lower()
        if lowered in _RESERVED or lowered.startswith(_RESERVED_STARTS):
            raise UsageError(f"the header {name[:64]!r} is set by Outbox and cannot be changed")
        if lowered in seen:
            raise UsageError(f"the header {name[:64]!r} is given twice")
        seen.add(lowered)
        size += len(_header_line(name, value))
    if size > CUSTOM_HEADER_BYTES_MAX:
        raise UsageError(f"the custom headers are larger than {CUSTOM_HEADER_BYTES_MAX} bytes")


def parse_retry_after(value: str | None, now: float) -> timedelta | None:
    """Read Retry-After (RFC 9110, 10.2.3): seconds, or a date that is compared with the unix time
    `now`. None when absent or unreadable, at most a year, never negative."""
    if value is None:
        return None
    text = value.strip()
    if _DIGITS.fullmatch(text):
        return timedelta(seconds=min(int(text), RETRY_AFTER_S_MAX))
    try:
        seconds = parsedate_to_datetime(text).timestamp() - now
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return timedelta(seconds=min(max(seconds, 0.0), RETRY_AFTER_S_MAX))


def _from_failure(failure: RequestFailed, duration_s: float) -> Outcome:
    kind = Kind.INTERNAL if failure.reason in OURS else Kind.RETRY
    detail = {
        "status": None,
        "duration_ms": round(duration_s * 1000),
        "response": None,
        "error": str(failure),
    }
    return Outcome(kind, str(failure.reason), detail=detail)


def _fixed_headers(custom: Mapping[str, str], user_agent: str) -> list[tuple[bytes, bytes]]:
    """Ours first; what the operator sets in their place replaces them."""
    own = {
        "content-type": "application/json",
        "user-agent": user_agent,
        "accept": "*/*",
        "accept-encoding": "identity",
    }
    replaced = {name.lower() for name in custom}
    kept = [(name, value) for name, value in own.items() if name not in replaced]
    return [
        (name.encode("ascii"), value.encode("ascii")) for name, value in [*kept, *custom.items()]
    ]


def _event_headers(headers: Mapping[str, str]) -> bytes:
    """The event's own `outbox-*` headers. One that is not well-formed is left out: whoever emits
    an event must not be able to break, or to shape, the request."""
    lines = []
    for name, value in headers.items():
        if not name.lower().startswith("outbox-") or name.lower() in _GENERATION:
            continue
        try:
            lines.append(_header_line(name, value))
        except UsageError:
            continue
    return b"".join(lines)


def _generation_headers(generation: int, original_id: UUID | None) -> bytes:
    """What tells a re-emitted event from a new one: its key is new, this was the first."""
    return f"outbox-generation: {generation}\r\noutbox-original-id: {original_id}\r\n".encode(
        "ascii"
    )


def _header_line(name: str, value: str) -> bytes:
    try:
        return header_line(name.encode("ascii"), value.encode("ascii"))
    except UnicodeEncodeError:
        raise UsageError(f"the header {name[:64]!r} holds a character outside ASCII") from None


def _database_webhook_body(payload: bytes) -> bytes | None:
    """The body of Supabase's database webhooks out of a captured payload, or None."""
    parts = members(payload)
    if parts is None or not {"operation", "schema", "table"} <= parts.keys():
        return None
    operation = json.loads(parts["operation"])
    if not isinstance(operation, str) or operation.upper() not in _OPERATIONS:
        return None
    return b'{"type":"%b","table":%b,"schema":%b,"record":%b,"old_record":%b}' % (
        operation.upper().encode("ascii"),
        parts["table"],
        parts["schema"],
        parts.get("record", b"null"),
        parts.get("old_record", b"null"),
    )


@lru_cache(maxsize=4096)
def _quoted(text: str) -> bytes:
    return json.dumps(text).encode("ascii")


def _version() -> str:
    try:
        return version("outboxd")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"


# -- the kind -------------------------------------------------------------------------------------


@asynccontextmanager
async def open_webhooks(settings: Settings) -> AsyncIterator[dict[str, WebhookProcessor]]:
    """The webhook processor over a client of its own."""
    policy = policy_of(settings)
    resolver = CaresResolver()
    client = HttpClient(policy, resolver)
    try:
        yield {"webhook": WebhookProcessor(client, policy, time.time)}
    finally:
        client.close()
        resolver.close()


def _refuse(_settings: Settings, _config: Mapping[str, Any]) -> dict[str, Any]:
    raise UsageError("a webhook goes to an endpoint: give --endpoint, and no --config")


KIND = KindOfDestination(open=open_webhooks, check=_refuse)

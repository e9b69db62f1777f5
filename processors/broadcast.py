"""The kind `broadcast`: what a subscription of it is configured with, and the transport over http.

The daemon itself performs it (outbox/broadcast.py); nothing here runs in a worker.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from typing import Any
from urllib.parse import quote

import orjson

from outbox.durations import parse_duration
from outbox.errors import ConfigurationError, DestinationRefused, UsageError
from outbox.outcome import Kind, Outcome
from outbox.settings import Settings
from outbox.store.broadcasts import Message
from outbox.worker import Processor
from processors.connection import Response
from processors.egress import Destination, EgressPolicy, parse_destination
from processors.failures import RequestFailed
from processors.http import HttpClient, request_head
from processors.kinds import Kind as KindOfDestination
from processors.resolver import CaresResolver

TOPIC = re.compile(r"([A-Za-z0-9_.-]{1,56}):\{org_id\}")
"""As outbox.install_realtime_policies takes prefixes: the organization ends the topic and nothing
else in it may hold a colon, so that no two organizations can share one."""
INCLUDE_MAX = 100
COALESCE_MAX = timedelta(hours=1)
DEFAULTS = {"topic": "orders:{org_id}", "transport": "sql", "include": [], "private": True}

ANYWHERE = (IPv4Network("0.0.0.0/0"), IPv6Network("::/0"))

SEND_S_MAX = 10.0
"""Time for one batch, with all its halves: well within the shortest usual lease."""
PROBE_S = 600.0
"""How long an answer to the question whether we may send to private topics holds."""
THROTTLED_S = 1.0


# -- configuration --------------------------------------------------------------------------------


def check_broadcast(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration as it is stored. Raises UsageError, one line."""
    unknown = set(config) - {*DEFAULTS, "event_name", "coalesce"}
    if unknown:
        raise UsageError(f"a broadcast has no setting {min(unknown)!r}")
    given = {**DEFAULTS, **config}
    match = TOPIC.fullmatch(str(given["topic"]))
    if match is None:
        raise UsageError(
            f"--topic {given['topic']!r} is not of the form orders:{{org_id}}: 1 to 56 letters,"
            " digits, '_', '.' or '-', a colon, and the organization last"
        )
    if given["transport"] not in ("sql", "http"):
        raise UsageError("transports are sql and http")
    if given["transport"] == "http" and settings.realtime_url is None:
        raise UsageError("the http transport needs OUTBOX_REALTIME_URL and OUTBOX_REALTIME_KEY")
    stored = {
        "prefix": match[1],
        "transport": given["transport"],
        "include": _names(given["include"]),
        "private": _boolean(given["private"]),
    }
    return stored | _optional(given)


def _optional(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if (name := given.get("event_name")) is not None:
        if not isinstance(name, str) or not 1 <= len(name.encode()) <= 255:
            raise UsageError("an event name has 1 to 255 bytes")
        found["event_name"] = name
    if (text := given.get("coalesce")) is not None:
        window = parse_duration(str(text))
        if not timedelta() < window <= COALESCE_MAX:
            raise UsageError("the window of --coalesce is above zero and at most 1h")
        found["coalesce_s"] = window.total_seconds()
    return found


def _names(value: object) -> list[str]:
    names = list(value) if isinstance(value, list | tuple) else None
    if names is None or len(names) > INCLUDE_MAX or not all(isinstance(n, str) for n in names):
        raise UsageError(f"the columns to include are a list of at most {INCLUDE_MAX} names")
    return [str(name) for name in dict.fromkeys(names)]


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError("private is true or false")
    return value


@asynccontextmanager
async def _open_nothing(_settings: Settings) -> AsyncIterator[Mapping[str, Processor]]:
    yield {}


KIND = KindOfDestination(
    open=_open_nothing, check=check_broadcast, retry="exp:base=1s,factor=2,cap=1m,attempts=12"
)


# -- over http ------------------------------------------------------------------------------------


@asynccontextmanager
async def open_transport(settings: Settings) -> AsyncIterator[RealtimeRest | None]:
    """The transport over http; None where no server is configured."""
    if settings.realtime_url is None:
        yield None
        return
    if settings.realtime_key is None:
        raise ConfigurationError("OUTBOX_REALTIME_URL is set and OUTBOX_REALTIME_KEY is not")
    # The operator's own server, which no tenant can name: any address and port will do.
    policy = EgressPolicy(
        allow_cidrs=ANYWHERE,
        allow_http=True,
        ports=frozenset(range(1, 65536)),
        ca_file=settings.ca_file,
    )
    resolver = CaresResolver()
    client = HttpClient(policy, resolver)
    try:
        yield RealtimeRest(
            client, settings.realtime_url, settings.realtime_key, settings.realtime_rate
        )
    except DestinationRefused as error:
        raise ConfigurationError(f"OUTBOX_REALTIME_URL: {error}") from error
    finally:
        client.close()
        resolver.close()


def base_of(url: str) -> str:
    """What stands before `/api/broadcast`: the path given, `/realtime/v1` where none is."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return (
        f"{scheme}://{host}/realtime/v1" if not slash else f"{scheme}://{host}/{path}".rstrip("/")
    )


class RealtimeRest:
    """Sends batches to a Realtime server within `rate_per_s` messages a second."""

    def __init__(
        self,
        client: HttpClient,
        url: str,
        key: str,
        rate_per_s: float,
        *,
        clock: Callable[[], float] | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._url = base_of(url)
        self._rate = rate_per_s
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._sleep = sleep
        self._headers = [
            (b"content-type", b"application/json"),
            (b"authorization", f"Bearer {key}".encode("ascii")),
            (b"apikey", key.encode("ascii")),
        ]
        self._batch = self._destination("/api/broadcast")
        self._head = request_head(self._batch, self._headers)
        self._free_at = 0.0
        self._allowed_until = 0.0

    def _destination(self, path: str) -> Destination:
        return parse_destination(f"{self._url}{path}", self._client.policy)

    async def send(self, messages: Sequence[Message]) -> list[Outcome]:
        """An outcome each. A batch that the server refuses is halved until the bad one stands
        alone; what there was no time for costs no attempt."""
        until = self._clock() + SEND_S_MAX
        outcomes: list[Outcome] = []
        size = max(1, int(self._rate))
        for start in range(0, len(messages), size):
            outcomes += await self._part(messages[start : start + size], until)
        return outcomes

    async def _part(self, messages: Sequence[Message], until: float) -> list[Outcome]:
        private = next((m for m in messages if m.private), None)
        if private is not None and self._clock() >= self._allowed_until:
            first = await self._probe(private, until)
            if first is not None:
                rest = [m for m in messages if m is not private]
                # Who may not send one may send none, and the batch would skip them in silence.
                others = (
                    await self._part(rest, until)
                    if first.kind is Kind.DELIVERED and rest
                    else [first] * len(rest)
                )
                outcomes = iter(others)
                return [first if m is private else next(outcomes) for m in messages]
        return await self._post(messages, until)

    async def _probe(self, message: Message, until: float) -> Outcome | None:
        """Send one message by the endpoint that says whether it may be sent; None where the server
        has no such endpoint."""
        path = f"/api/broadcast/{quote(message.topic or '', safe='')}"
        path += f"/events/{quote(message.event, safe='')}?private=true"
        destination = self._destination(path)
        head = request_head(destination, self._headers)
        response = await self._request(destination, head, message.payload.encode(), 1, until)
        if isinstance(response, Outcome):
            return response
        if response.status == 404:
            self._allowed_until = self._clock() + PROBE_S
            return None
        if response.status == 202:
            self._allowed_until = self._clock() + PROBE_S
        return _outcome(response)

    async def _post(self, messages: Sequence[Message], until: float) -> list[Outcome]:
        body = b'{"messages":[' + b",".join(_encoded(m) for m in messages) + b"]}"
        response = await self._request(self._batch, self._head, body, len(messages), until)
        if isinstance(response, Outcome):
            return [response] * len(messages)
        if response.status == 422 and len(messages) > 1:
            middle = len(messages) // 2
            halves = (messages[:middle], messages[middle:])
            return [one for half in halves for one in await self._post(half, until)]
        return [_outcome(response)] * len(messages)

    async def _request(
        self, destination: Destination, head: bytes, body: bytes, n: int, until: float
    ) -> Response | Outcome:
        now = self._clock()
        wait_s = max(0.0, self._free_at - now)
        if now + wait_s >= until:
            return Outcome(Kind.INTERNAL, "no_time_left")
        await self._sleep(wait_s)
        self._free_at = max(self._free_at, now) + n / self._rate
        try:
            return await self._client.post(destination, head, body, until)
        except RequestFailed as failure:
            return Outcome(Kind.RETRY, str(failure.reason), detail={"error": str(failure)})
        except DestinationRefused as refusal:
            return Outcome(Kind.RETRY, "denied_target", detail={"error": str(refusal)})


def _encoded(message: Message) -> bytes:
    return orjson.dumps(
        {
            "topic": message.topic,
            "event": message.event,
            "payload": orjson.Fragment(message.payload),
            "private": message.private,
            "id": str(message.id),
        }
    )


def _outcome(response: Response) -> Outcome:
    detail = {"status": response.status, "response": response.body_snippet[:500]}
    reason = f"http_{response.status}"
    match response.status:
        case 200 | 202:
            return Outcome(Kind.DELIVERED, "broadcast", detail={"status": response.status})
        case 429:
            after = timedelta(seconds=THROTTLED_S)
            return Outcome(Kind.THROTTLED, reason, after=after, detail=detail)
        case 413 | 422:
            return Outcome(Kind.REJECTED, reason, detail=detail)
    return Outcome(Kind.RETRY, reason, detail=detail)

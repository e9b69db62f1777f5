"""The server: routes, handshakes, the feed of committed rows, start and stop.

When the feed breaks, every client is hung up on: what is committed until it is back is told to
nobody, and a client that must connect again knows that it missed something.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from outbox.errors import DatabaseUnavailable, UsageError
from outbox.realtime import joining
from outbox.realtime.frames import V1, V2
from outbox.realtime.hub import Center
from outbox.realtime.limits import FRAME_BYTES_MAX, Clock, Limits
from outbox.realtime.rest import Rest, request_headers
from outbox.realtime.session import Session
from outbox.realtime.tokens import TokenRefused, Verifier
from outbox.store.realtime import RealtimeStore, feed

log = structlog.get_logger("outbox.realtime")

_PAGE_MAY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
)
_AGAIN_S_MAX = 5.0
_PARTITIONS_S = 3600.0
DRAIN_S_MAX = 2.0


class _Wire:
    """A Starlette websocket as a session uses it."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def receive(self) -> str | bytes | None:
        message = await self._websocket.receive()
        if message["type"] != "websocket.receive":
            return None
        text: str | None = message.get("text")
        return message.get("bytes") if text is None else text

    async def send(self, frame: str | bytes) -> None:
        if isinstance(frame, str):
            await self._websocket.send_text(frame)
        else:
            await self._websocket.send_bytes(frame)

    async def close(self, code: int) -> None:
        await self._websocket.close(code)


async def _page(_request: Request) -> Response:
    """Topics side by side, for people: tokens stand after the `#` and do not come here."""
    return FileResponse(
        Path(__file__).with_name("page.html"), headers={"content-security-policy": _PAGE_MAY}
    )


def _way(path: str, target: Callable[[], str]) -> Route:
    async def lead(_request: Request) -> Response:
        return RedirectResponse(target(), 302, {"cache-control": "no-store"})

    return Route(path, lead)


@dataclass(eq=False)
class RealtimeServer:
    """A server for one database. `url` must be a direct connection, not a pooler's. `ways` are
    paths that lead elsewhere: such as short ones to the page, with topics and fresh tokens."""

    url: str
    verifier: Verifier
    limits: Limits = field(default_factory=Limits)
    now: Clock = time.time
    ways: Mapping[str, Callable[[], str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.center = Center(RealtimeStore(self.url), self.verifier, self.limits, self.now)
        self.sessions: set[Session] = set()
        self._left = asyncio.Event()
        self.stopping = asyncio.Event()

    def application(self) -> Starlette:
        """The ASGI application, with the paths of a project's gateway and of a bare server."""
        rest = Rest(self.center)
        routes: list[Route | WebSocketRoute] = [Route("/", _page)]
        routes += [_way(path, target) for path, target in self.ways.items()]
        for base, websocket in (
            ("/realtime/v1", "/realtime/v1/websocket"),
            ("", "/socket/websocket"),
        ):
            routes += [
                WebSocketRoute(websocket, self._websocket),
                Route(f"{base}/api/broadcast", rest.batch, methods=["POST"]),
                Route(
                    f"{base}/api/broadcast/{{topic:path}}/events/{{event}}",
                    rest.single,
                    methods=["POST"],
                ),
            ]
        anywhere = Middleware(
            CORSMiddleware,
            allow_origins=["*"],
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-rate-rolling", "x-rate-limit", "x-rate-limit-remaining"],
        )
        return Starlette(routes=routes, middleware=[anywhere])

    async def _websocket(self, websocket: WebSocket) -> None:
        token = websocket.headers.get("x-api-key") or websocket.query_params.get("apikey", "")
        status, problem = self._refusal(token)
        if problem is not None:
            await asyncio.sleep(self.limits.connect_delay_s)
            await websocket.send_denial_response(JSONResponse({"error": problem}, status))
            return
        version = V2 if websocket.query_params.get("vsn", V1).startswith("2.") else V1
        await websocket.accept()
        headers = request_headers(websocket.headers)
        session = Session(self.center, _Wire(websocket), version, token, headers)
        self.sessions.add(session)
        try:
            await session.run()
        except WebSocketDisconnect:
            pass
        finally:
            self.sessions.discard(session)
            self._left.set()

    def _refusal(self, token: str) -> tuple[int, str | None]:
        """Why a handshake is refused."""
        if not token:
            return 401, joining.API_KEY_MISSING
        try:
            self.verifier.verify(token, self.now())
        except TokenRefused as refused:
            text = refused.refusal.text
            expired = text.startswith(joining.TOKEN_EXPIRED)
            return 401, joining.TOKEN_EXPIRED if expired else text
        if len(self.sessions) >= self.limits.users:
            return 429, joining.TOO_MANY_USERS
        if not self.center.replicating.is_set():
            # Who came now would miss what is committed until the feed is back, and not know it.
            return 500, joining.NOT_CONNECTED
        return 200, None

    # -- the feed --------------------------------------------------------------------------------

    async def keep_fed(self) -> None:
        """Push committed rows out until cancelled, over as many connections as it takes.

        Raises ConfigurationError where rows can never be heard.
        """
        failures = 0
        while True:
            try:
                await feed(self.url, self.center.store, self.center.publish_rows, self._up)
            except DatabaseUnavailable as error:
                if self.center.replicating.is_set():
                    failures = 0
                if failures == 0:
                    log.warning("realtime.feed_lost", error=str(error))
                self.center.replicating.clear()
                self.drain()
            await asyncio.sleep(min(_AGAIN_S_MAX, 0.1 * 2 ** min(failures, 10)))
            failures += 1

    def _up(self) -> None:
        self.center.replicating.set()
        log.info("realtime.feed_up")

    async def keep_partitions(self) -> None:
        """See to the partitions every hour."""
        while True:
            try:
                await self.center.store.keep_partitions()
                wait_s = _PARTITIONS_S
            except DatabaseUnavailable:
                wait_s = _AGAIN_S_MAX
            await asyncio.sleep(wait_s)

    def drain(self) -> None:
        """Ask every client to connect again."""
        for session in list(self.sessions):
            session.drain()

    def stop(self) -> None:
        """End `serve`, as SIGTERM does."""
        self.stopping.set()

    async def emptied(self) -> None:
        """Wait until every client has left."""
        while self.sessions:
            self._left.clear()
            await self._left.wait()


def _is_news(record: logging.LogRecord) -> bool:
    """False for what uvicorn says of every handshake that was refused."""
    return "without completing handshake" not in record.getMessage()


class _Uvicorn(uvicorn.Server):
    """Clients are told before their sockets are closed."""

    def __init__(self, config: uvicorn.Config, server: RealtimeServer) -> None:
        super().__init__(config)
        self._realtime = server
        logging.getLogger("uvicorn.error").addFilter(_is_news)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are the command's, which ends with the exit code it wants."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._realtime.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._realtime.emptied(), DRAIN_S_MAX)
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """The listening socket. Raises UsageError."""
    with ExitStack() as undone:
        try:
            family, *_, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            listening = undone.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)  # from here on clients wait instead of being refused
        except OSError as error:
            raise UsageError(
                f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port"
            ) from error
        undone.pop_all()
    return listening


def address_of(listening: socket.socket) -> str:
    """The URL that clients are given."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else quote(host)}:{port}/realtime/v1"


async def serve(
    server: RealtimeServer, listening: socket.socket, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until `server.stop` is called. `ready` is called when clients may come."""
    config = uvicorn.Config(
        server.application(),
        log_config=None,
        log_level="warning",  # below that it writes addresses with their keys
        access_log=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=FRAME_BYTES_MAX,
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    front = _Uvicorn(config, server)
    async with _background(server) as feeding:
        loop = asyncio.get_running_loop()
        up, stopped = (
            loop.create_task(e.wait()) for e in (server.center.replicating, server.stopping)
        )
        await asyncio.wait({up, feeding, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if up.done():
            ready()
            for ended in (feeding, stopped):
                ended.add_done_callback(lambda _task: setattr(front, "should_exit", True))
            await front.serve(sockets=[listening])
        for task in (up, stopped):
            task.cancel()
        if feeding.done():
            feeding.result()  # rows can never be heard: it says why


@asynccontextmanager
async def _background(server: RealtimeServer) -> AsyncIterator[asyncio.Task[None]]:
    tasks = [asyncio.create_task(server.keep_fed()), asyncio.create_task(server.keep_partitions())]
    try:
        yield tasks[0]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.center.store.close()

"""An SMTP server on loopback that takes what it is sent, or answers as the test says."""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

HANG_UP = "hang up"
"""An answer that is none: the connection is cut."""
HANG = "hang"
"""An answer that does not come."""

Script = Callable[[str, str], str | None]
"""Asked at EHLO, AUTH, MAIL, RCPT, DATA and BODY (the end of data) with the argument: a reply,
HANG_UP, HANG, or None to go on. At BODY the message counts as taken unless it is refused."""


@dataclass(frozen=True)
class Taken:
    """One transaction that the server answered for, or would have."""

    sender: str
    recipients: tuple[str, ...]
    options: tuple[str, ...]
    data: bytes = field(repr=False)


class _Server(SMTP):
    transport: Any

    def __init__(self, sink: Sink, **options: Any) -> None:
        super().__init__(sink, **options)
        self._sink = sink

    async def _scripted(self, verb: str, arg: str | None, go_on: Any) -> None:
        answer = self._sink.answer(verb, arg or "")
        if answer == HANG_UP:
            self.transport.abort()
        elif answer == HANG:
            await asyncio.sleep(3600)
        elif answer is not None:
            await self.push(answer)
        else:
            await go_on(arg)

    async def smtp_EHLO(self, arg: str) -> None:  # noqa: N802 (aiosmtpd's name)
        await self._scripted("EHLO", arg, super().smtp_EHLO)

    async def smtp_AUTH(self, arg: str) -> None:  # noqa: N802 (aiosmtpd's name)
        await self._scripted("AUTH", arg, super().smtp_AUTH)

    async def smtp_MAIL(self, arg: str) -> None:  # noqa: N802 (aiosmtpd's name)
        waiting: Any = self._reader  # asyncio tells nobody else what has arrived
        self._sink.flights.append(bytes(waiting._buffer).count(b"RCPT TO:"))
        await self._scripted("MAIL", arg, super().smtp_MAIL)

    async def smtp_RCPT(self, arg: str) -> None:  # noqa: N802 (aiosmtpd's name)
        await self._scripted("RCPT", arg, super().smtp_RCPT)

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 (aiosmtpd's name)
        await self._scripted("DATA", arg, super().smtp_DATA)

    def connection_made(self, transport: Any) -> None:
        self._sink.connections += 1
        super().connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self.transport is not None:
            super().connection_lost(error)

    async def push(self, status: Any) -> None:
        if self.transport is not None and not self.transport.is_closing():
            await super().push(status)


class Sink:
    """The server, in a thread of its own."""

    def __init__(
        self,
        script: Script | None = None,
        *,
        tls: ssl.SSLContext | None = None,
        implicit: bool = False,
        login: tuple[str, str] | None = None,
        size: int = 33_554_432,
        smtputf8: bool = True,
        pipelining: bool = False,
    ) -> None:
        self.script = script
        self.taken: list[Taken] = []
        self.asked: list[tuple[str, str]] = []
        self.connections = 0
        self.flights: list[int] = []  # recipients that came in one flight with each MAIL
        self._pipelining = pipelining
        self._tls = tls
        self._implicit = implicit
        self._login = login
        self._options = {
            "data_size_limit": size,
            "enable_SMTPUTF8": smtputf8,
            "hostname": "sink.test",
            "decode_data": False,
            "require_starttls": tls is not None and not implicit,
            "tls_context": None if implicit else tls,
            "auth_required": login is not None,
            "auth_require_tls": tls is not None and not implicit,
            "authenticator": self._authenticate if login else None,
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.port = 0

    def answer(self, verb: str, arg: str) -> str | None:
        self.asked.append((verb, arg))
        return None if self.script is None else self.script(verb, arg)

    def _authenticate(self, _s: Any, _se: Any, _e: Any, _m: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        good = (data.login.decode(), data.password.decode()) == self._login
        return AuthResult(success=good, handled=False)

    async def handle_EHLO(  # noqa: N802 (aiosmtpd's name)
        self, _server: _Server, session: Any, _envelope: Any, name: str, responses: list[str]
    ) -> list[str]:
        session.host_name = name
        return [responses[0], *["250-PIPELINING"] * self._pipelining, *responses[1:]]

    async def handle_DATA(  # noqa: N802 (aiosmtpd's name)
        self, server: _Server, _session: Any, envelope: Any
    ) -> str:
        answer = self.answer("BODY", "")
        if answer is None or answer in {HANG, HANG_UP} or answer.startswith("2"):
            self.taken.append(
                Taken(
                    envelope.mail_from,
                    tuple(envelope.rcpt_tos),
                    tuple(envelope.mail_options),
                    envelope.content,
                )
            )
        if answer == HANG_UP:
            server.transport.abort()
        elif answer == HANG:
            await asyncio.sleep(3600)
        return answer or "250 2.0.0 taken"

    @property
    def sent_to(self) -> list[str]:
        """Everybody who was sent something, once for each message."""
        return [address for taken in self.taken for address in taken.recipients]

    def __enter__(self) -> Self:
        self._thread.start()
        context = self._tls if self._implicit else None

        async def start() -> asyncio.Server:
            return await self._loop.create_server(
                lambda: _Server(self, loop=self._loop, **self._options), "127.0.0.1", 0, ssl=context
            )

        self._server = asyncio.run_coroutine_threadsafe(start(), self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        async def stop() -> None:
            self._server.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

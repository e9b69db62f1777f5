"""Receiving webhooks with Starlette and FastAPI.

`webhook` makes a FastAPI dependency that yields the `Verified` request; `receive` wraps a plain
Starlette endpoint. The body is read here, in pieces and up to a limit: use `Verified.body` or
`Verified.json()`, since the request's own stream is consumed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import wraps
from inspect import isawaitable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from outbox.errors import AlreadyProcessed, PayloadTooLarge, VerificationError
from outbox.receivers import BODY_MAX, Clock, Rules, Secrets, answer
from outbox.signature import TOLERANCE, Verified

Seen = Callable[[str], bool | Awaitable[bool]]
Handler = Callable[[Request, Verified], Awaitable[Response]]


def webhook(
    secrets: Secrets,
    *,
    seen: Seen | None = None,
    tolerance: timedelta = TOLERANCE,
    body_max: int = BODY_MAX,
    now: Clock | None = None,
) -> Callable[[Request], Awaitable[Verified]]:
    """Make a dependency: `hook: Annotated[Verified, Depends(webhook("whsec_..."))]`.

    A request that does not verify becomes an HTTPException, which FastAPI writes as JSON under
    `detail`. `seen` may be a function (run in a thread) or a coroutine function; see
    `outbox.verify` for what it must answer.
    """
    rules = Rules(secrets, tolerance, body_max, now)

    async def verified(request: Request) -> Verified:
        try:
            return await _verify(request, rules, seen)
        except (VerificationError, PayloadTooLarge) as error:
            status, detail = answer(error)
            # A mapping is what FastAPI documents for `detail`; Starlette's annotation says str.
            raise HTTPException(status, detail) from error  # type: ignore[arg-type]

    return verified


def receive(
    secrets: Secrets,
    *,
    seen: Seen | None = None,
    tolerance: timedelta = TOLERANCE,
    body_max: int = BODY_MAX,
    now: Clock | None = None,
) -> Callable[[Handler], Callable[[Request], Awaitable[Response]]]:
    """Wrap `async def handler(request, webhook)` as a Starlette endpoint; arguments as above."""
    rules = Rules(secrets, tolerance, body_max, now)

    def decorate(handler: Handler) -> Callable[[Request], Awaitable[Response]]:
        @wraps(handler)
        async def endpoint(request: Request) -> Response:
            try:
                verified = await _verify(request, rules, seen)
            except (VerificationError, PayloadTooLarge) as error:
                status, content = answer(error)
                return JSONResponse(content, status)
            return await handler(request, verified)

        return endpoint

    return decorate


async def _verify(request: Request, rules: Rules, seen: Seen | None) -> Verified:
    verified = rules.verify(await _read(request, rules), request.headers)
    if seen is not None and await _ask(seen, verified.id):
        raise AlreadyProcessed(f"webhook {verified.id} was already processed")
    return verified


async def _read(request: Request, rules: Rules) -> bytes:
    rules.check_declared(request.headers.get("content-length"))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        rules.check_length(len(body))
    return bytes(body)


async def _ask(seen: Seen, message_id: str) -> bool:
    # In a thread, because a plain function may ask a database; a coroutine is only made there.
    answered = await run_in_threadpool(seen, message_id)
    return await answered if isawaitable(answered) else answered

"""Receiving webhooks with Django: a decorator for a view, sync or async, exempt from CSRF.

The view gets the `Verified` request as its second argument, after `request`. Django's own
DATA_UPLOAD_MAX_MEMORY_SIZE holds beside the limit given here; the smaller one wins.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from inspect import iscoroutinefunction
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

from outbox.errors import PayloadTooLarge, VerificationError
from outbox.receivers import BODY_MAX, Clock, Rules, Secrets, answer
from outbox.signature import TOLERANCE, Verified

Seen = Callable[[str], bool]
View = Callable[..., Any]


def webhook(
    secrets: Secrets,
    *,
    seen: Seen | None = None,
    tolerance: timedelta = TOLERANCE,
    body_max: int = BODY_MAX,
    now: Clock | None = None,
) -> Callable[[View], View]:
    """Wrap `def view(request, webhook, ...)`. See `outbox.verify` for the arguments."""
    rules = Rules(secrets, tolerance, body_max, now)

    def decorate(view: View) -> View:
        # A signature replaces the CSRF token: the sender has no session.
        wrapped: View = csrf_exempt((_async if iscoroutinefunction(view) else _sync)(view))
        return wrapped

    def _sync(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            found = _verify(request, rules, seen)
            return view(request, found, *args, **kwargs) if isinstance(found, Verified) else found

        return wrapped

    def _async(view: View) -> View:
        @wraps(view)
        async def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            found = await sync_to_async(_verify)(request, rules, seen)
            if isinstance(found, Verified):
                return await view(request, found, *args, **kwargs)
            return found

        return wrapped

    return decorate


def _verify(request: HttpRequest, rules: Rules, seen: Seen | None) -> Verified | JsonResponse:
    """The verified request, or the response that refuses it."""
    try:
        return rules.verify(_read(request, rules), request.headers, seen)
    except (VerificationError, PayloadTooLarge) as error:
        status, content = answer(error)
        return JsonResponse(content, status=status)


def _read(request: HttpRequest, rules: Rules) -> bytes:
    rules.check_declared(request.headers.get("Content-Length"))
    try:
        return bytes(request.body)
    except RequestDataTooBig:
        raise PayloadTooLarge("the body exceeds DATA_UPLOAD_MAX_MEMORY_SIZE") from None

"""Receiving webhooks with Flask: a decorator for a view.

The view gets the `Verified` request as its first argument. The raw body is read and kept, so
`flask.request.get_data()` still works; a hook that parsed `request.form` before has consumed it.
Flask's own MAX_CONTENT_LENGTH holds beside the limit given here; the smaller one wins.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any

from flask import current_app, jsonify, request
from werkzeug.exceptions import RequestEntityTooLarge

from outbox.errors import PayloadTooLarge, VerificationError
from outbox.receivers import BODY_MAX, Clock, Rules, Secrets, answer
from outbox.signature import TOLERANCE, Verified

View = Callable[..., Any]


def webhook(
    secrets: Secrets,
    *,
    seen: Callable[[str], bool] | None = None,
    tolerance: timedelta = TOLERANCE,
    body_max: int = BODY_MAX,
    now: Clock | None = None,
) -> Callable[[View], View]:
    """Wrap `def view(webhook, ...)`; put it under `@app.post(...)`. See `outbox.verify`."""
    rules = Rules(secrets, tolerance, body_max, now)

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            try:
                verified = _verify(rules, seen)
            except (VerificationError, PayloadTooLarge) as error:
                status, content = answer(error)
                return jsonify(content), status
            return current_app.ensure_sync(view)(verified, *args, **kwargs)

        return wrapped

    return decorate


def _verify(rules: Rules, seen: Callable[[str], bool] | None) -> Verified:
    given = request.max_content_length
    # One byte more, because werkzeug cuts a chunked body off at the limit without an error.
    request.max_content_length = min(rules.body_max + 1, sys.maxsize if given is None else given)
    try:
        body = request.get_data()
    except RequestEntityTooLarge:
        raise PayloadTooLarge("the body exceeds the size limit") from None
    return rules.verify(body, request.headers, seen)

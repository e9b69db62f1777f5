"""Checks an event that an attempt is to bring about, when it is asked for: what PostgreSQL would
refuse at the settle would cost the whole attempt.

The rules are those of `outbox.emit` in SQL (sql/migrations/0002_functions.sql).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import orjson

from outbox.effects import Emission
from outbox.errors import UsageError
from outbox.store.emit import payload_text, plain_moment, plain_text

HEADERS_BYTES_MAX = 8192
KEY_CHARS_MAX = 1000
TYPE_CHARS_MAX = 200

_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*", re.ASCII)


def emission(
    type: str,  # noqa: A002 (the word of the event envelope)
    payload: object,
    *,
    subject: str | None = None,
    ordering_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    deliver_at: datetime | None = None,
    expires_at: datetime | None = None,
    dedupe_key: str | None = None,
    dedupe_for: timedelta | None = None,
) -> Emission:
    """An event as `outbox.emit` would take it. Raises UsageError or PayloadTooLarge."""
    check_type(type)
    keys = {"subject": subject, "ordering_key": ordering_key, "dedupe_key": dedupe_key}
    for name, value in keys.items():
        if len(_storable(name, value) or "") > KEY_CHARS_MAX:
            raise UsageError(f"{name} has at most {KEY_CHARS_MAX} characters")
    plain_moment("deliver_at", deliver_at)
    plain_moment("expires_at", expires_at)
    if expires_at is not None and expires_at <= (deliver_at or datetime(1, 1, 2, tzinfo=UTC)):
        raise UsageError("expires_at must be after deliver_at")
    text = payload_text(payload)
    if isinstance(payload, str | bytes | bytearray):
        try:
            orjson.loads(text)
        except ValueError as error:
            raise UsageError(f"the payload is no JSON: {error}") from None
    return Emission(
        type=type,
        payload=text,
        subject=subject,
        headers=_headers(headers),
        ordering_key=ordering_key,
        deliver_at=deliver_at,
        expires_at=expires_at,
        dedupe_key=dedupe_key,
        dedupe_for=dedupe_for,
    )


def check_type(name: object) -> None:
    """Raise UsageError unless this is a type that a user's event may have."""
    if not isinstance(name, str) or not _TYPE.fullmatch(name) or len(name) > TYPE_CHARS_MAX:
        raise UsageError(
            f"event type {name!r:.200} is not of the form orders.paid (letters, digits, _ and -,"
            f" joined by dots, at most {TYPE_CHARS_MAX})"
        )
    if name.startswith("outbox."):
        raise UsageError("types that begin with outbox. are reserved")


def _storable(name: str, value: str | None) -> str | None:
    text = plain_text(name, value)
    try:
        (text or "").encode()
    except UnicodeEncodeError:
        raise UsageError(f"{name} must be text that UTF-8 can write") from None
    return text


def _headers(headers: Mapping[str, str] | None) -> Mapping[str, str]:
    found = dict(headers or {})
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise UsageError("headers map texts to texts")
        _storable("headers", name + value)
    if len(json.dumps(found, ensure_ascii=False).encode()) > HEADERS_BYTES_MAX - 64:
        raise UsageError(f"headers must be a JSON object of at most {HEADERS_BYTES_MAX} bytes")
    return found

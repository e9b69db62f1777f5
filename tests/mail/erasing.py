"""Turning the ring, redacting from elsewhere, and looking for what is left."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import psycopg

from outbox.store.redaction import redact
from outbox.store.retention import RetentionConfig
from tests.mail.post import Post
from tests.retention.conftest import tend_at


def tend(post: Post, config: RetentionConfig, day: int) -> None:
    """What a daemon does every minute, some days from now."""
    now = post.engine.now() + timedelta(days=day, minutes=day)
    asyncio.run(tend_at(post.engine.url, now, config))


def redact_elsewhere(url: str, event: int) -> None:
    """Redact in a session of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        redact(connection, [event], "asked")


def traces(post: Post, *secrets: str) -> list[str]:
    """Tables of the schema, and statistics, in which any of these texts stands."""
    tables = post.engine.rows(
        "SELECT c.oid::regclass::text FROM pg_class c WHERE c.relnamespace = 'outbox'::regnamespace"
        " AND c.relkind IN ('r', 'm') UNION ALL SELECT 'pg_stats'"
    )
    found = []
    for (table,) in tables:
        text = "x::text || encode(x.mime, 'escape')" if "email_" in table and (
            "recipient" not in table
        ) else "x::text"  # fmt: skip
        for secret in secrets:
            query = f"SELECT count(*) FROM {table} x WHERE position(%s in {text}) > 0"
            if post.engine.one(query, secret):
                found.append(f"{table}: {secret}")
    return found

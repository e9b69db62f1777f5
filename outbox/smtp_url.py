"""OUTBOX_SMTP_URL: the server that takes the operator's mail, and how connections are kept."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import timedelta
from urllib.parse import parse_qsl, unquote, urlsplit

from outbox.durations import parse_duration
from outbox.errors import UsageError

EXAMPLE = "smtp://user:password@host:587?tls=starttls"
PORTS = {"starttls": 587, "implicit": 465, "none": 25}


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """`tls` is starttls, implicit or none. A worker keeps at most `connections`, each for at most
    `messages` messages and as long as it is idle for less than `idle`."""

    host: str
    port: int
    tls: str = "starttls"
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    connections: int = 20
    messages: int = 500
    idle: timedelta = timedelta(seconds=30)


def parse_smtp_url(text: str) -> SmtpServer:
    """Read `smtp://user:password@host:port?tls=starttls|implicit|none`, with `connections`,
    `messages` and `idle` beside `tls`. Raises ValueError, which quotes nothing that is secret."""
    try:
        parts = urlsplit(text)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise ValueError(f"not an SMTP URL; write {EXAMPLE}") from None
    if parts.scheme != "smtp" or not host or parts.path.strip("/") or parts.fragment:
        raise ValueError(f"not an SMTP URL; write {EXAMPLE}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(options.keys() - {"tls", "connections", "messages", "idle"}):
        raise ValueError(f"an SMTP URL has no option {unknown[0]!r}; options are tls, connections,"
                         " messages and idle")  # fmt: skip
    tls = options.get("tls", "starttls")
    if tls not in PORTS:
        raise ValueError(f"tls is one of {', '.join(PORTS)}")
    return SmtpServer(
        host,
        port or PORTS[tls],
        tls,
        None if parts.username is None else unquote(parts.username),
        None if parts.password is None else unquote(parts.password),
        connections=_number(options, "connections", 20, 1000),
        messages=_number(options, "messages", 500, 1_000_000),
        idle=_idle(options.get("idle", "30s")),
    )


def _number(options: dict[str, str], name: str, default: int, most: int) -> int:
    text = options.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,7}", text) or not 1 <= int(text) <= most:
        raise ValueError(f"{name} is a number from 1 to {most}")
    return int(text)


def _idle(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except UsageError:
        raise ValueError("idle is a duration such as 30s") from None

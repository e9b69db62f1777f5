"""How each kind of setting is read: a text becomes a value, or a ValueError or an error of ours
says what to write. Nothing is read from anywhere here but the files that a value names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from outbox.durations import format_duration, parse_duration
from outbox.secrets import KeyRing
from outbox.smtp_url import parse_smtp_url

Network = IPv4Network | IPv6Network

DATABASE_EXAMPLE = "postgresql://user@host:5432/name"
BROKER_SCHEMES = ("memory", "redis", "rediss", "amqp", "amqps")

TRUE = frozenset({"1", "true", "yes", "on"})
FALSE = frozenset({"0", "false", "no", "off"})


def items(text: str, separator: str = ",") -> list[str]:
    return [item.strip() for item in text.split(separator) if item.strip()]


def boolean(text: str) -> bool:
    if text.strip().lower() in TRUE | FALSE:
        return text.strip().lower() in TRUE
    raise ValueError(f"{text!r} is neither true nor false; write true or false")


def between(least: timedelta, most: timedelta) -> Callable[[str], timedelta]:
    def read(text: str) -> timedelta:
        value = parse_duration(text)
        if not least <= value <= most:
            bounds = f"{format_duration(least)} to {format_duration(most)}"
            raise ValueError(f"{text} is out of range; write a duration from {bounds}")
        return value

    return read


def database_url(text: str) -> str:
    if re.match(r"postgres(ql)?://|\s*\w+\s*=", text):
        return text
    raise ValueError(f"not a libpq URL; write for example {DATABASE_EXAMPLE}")  # it may be secret


def database_urls(text: str) -> str:
    """One URL a line: commas and blanks stand inside libpq's own."""
    urls = [database_url(line) for line in items(text, "\n") or [text]]
    if len(set(urls)) < len(urls):
        raise ValueError("the same database is named twice; write each URL once")
    return "\n".join(urls)


def broker_url(text: str) -> str:
    if text.partition("://")[0] in BROKER_SCHEMES and "://" in text:
        return text
    raise ValueError("not a broker URL; write redis://, rediss://, amqp:// or amqps:// with host "
                     "and port, or memory://")  # fmt: skip


def secret_key(text: str) -> str:
    KeyRing.from_text(text)
    return text


def instance(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text):
        return text
    raise ValueError(f"{text!r} is not a name; write letters, digits, '.', '_' or '-', at most 100")


def networks(text: str) -> tuple[Network, ...]:
    try:
        return tuple(ip_network(item) for item in items(text))
    except ValueError as error:
        raise ValueError(f"{error}; write ranges by comma, for example 10.1.0.0/16") from error


def ports(text: str) -> frozenset[int]:
    found = items(text)
    if all(re.fullmatch(r"[0-9]{1,5}", item) and 1 <= int(item) <= 65535 for item in found):
        return frozenset(map(int, found))
    raise ValueError(f"{text!r} is not a list of ports; write numbers by comma, for example 443")


def existing_file(text: str) -> str:
    if Path(text).is_file() and os.access(text, os.R_OK):
        return text
    raise ValueError(f"{text!r} is not a readable file; write the path of one")


def http_url(text: str) -> str:
    if re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", text):
        return text
    raise ValueError(f"{text!r} is not a URL; write for example https://project.supabase.co")


def one_line(text: str) -> str:
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    raise ValueError("not a key: it holds blanks or other characters than printable ASCII")


def rate(text: str) -> float:
    rate = float(text.removesuffix("/s"))
    if not 1 <= rate <= 100_000:
        raise ValueError(f"{text} is out of range; write a number a second from 1 to 100000")
    return rate


def jwt_secret(text: str) -> str:
    if len(text.encode()) >= 32:
        return text
    raise ValueError("too short for signing tokens; write at least 32 bytes")  # RFC 7518, 3.2


def key_set(text: str) -> str:
    if text.lstrip().startswith("{"):
        return text
    return Path(existing_file(text)).read_text(encoding="utf-8")


def folder(text: str) -> str:
    if Path(text).is_dir():
        return str(Path(text).absolute())
    raise ValueError(f"{text!r} is not a folder; write the path of a folder that exists")


def number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,9}", text.strip()) and least <= int(text) <= most:
            return int(text)
        raise ValueError(f"{text!r} is not a number from {least} to {most}")

    return read


def artifacts_url(text: str) -> str:
    # It is never quoted: somebody may have written credentials into it.
    try:
        parts = urlsplit(text)
        names = set(parse_qs(parts.query, strict_parsing=bool(parts.query)))
    except ValueError:
        raise ValueError("not a URL; write file:///folder or s3://bucket/prefix") from None
    if parts.scheme == "file" and parts.path.startswith("/") and not (parts.netloc or names):
        return text
    if parts.scheme == "s3" and re.fullmatch(r"[A-Za-z0-9._-]{1,255}", parts.netloc):
        if names <= {"endpoint", "region"}:
            return text
        raise ValueError(
            "a bucket's URL knows endpoint and region; credentials belong into"
            " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    raise ValueError("write file:///folder or s3://bucket/prefix?endpoint=https://host")


def smtp_url(text: str) -> str:
    parse_smtp_url(text)
    return text


def modules(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(items(text)))
    for name in names:
        if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(
                f"{name!r} is not the name of a module; write myapp or myapp.jobs, without .py"
            )
    return names


def log_format(text: str) -> str:
    if text in {"json", "console"}:
        return text
    raise ValueError(f"{text!r} is not a log format; write json or console")

"""Shows the request that an attempt would send, without sending it.

Made by the webhook processor itself, so that it is the same to the byte. What changes with every
attempt (timestamp, signature) and what is secret (the values of custom headers) is masked; no key
of the endpoint is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from outbox.errors import DestinationRefused, UsageError
from outbox.work import SigningKey, Work
from processors.egress import Address, EgressPolicy
from processors.http import HttpClient
from processors.webhook import WebhookProcessor, build_body

MASKED = "***"
WHEN_SENT = "(made when it is sent)"
_CHANGING = frozenset({"webhook-timestamp", "webhook-signature"})
_NO_KEY = SigningKey("hmac", bytes(32))


@dataclass(frozen=True, slots=True)
class Preview:
    """A request. `refused` says why it would not be sent; it then has no headers."""

    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    refused: str | None = None


class _Nowhere:
    """A preview connects to nothing."""

    async def resolve(self, host: str, budget_s: float) -> Sequence[Address]:
        raise AssertionError(f"a preview does not resolve {host} in {budget_s} s")


def preview_webhook(work: Work, policy: EgressPolicy) -> Preview:
    """The request that would be sent for `work` now."""
    processor = WebhookProcessor(HttpClient(policy, _Nowhere()), policy, lambda: 0.0)
    endpoint = replace(work.destination, keys=(_NO_KEY,))
    try:
        _, head, body = processor.request(replace(work, endpoint=endpoint))
    except (DestinationRefused, UsageError) as error:
        return Preview("POST", endpoint.url, (), build_body(work), str(error))
    method = head.split(b" ", 1)[0].decode("ascii")
    lines = head.decode("latin-1").split("\r\n")[1:-1]
    secret = {name.lower() for name in endpoint.headers}
    headers = [_masked(*line.partition(": ")[::2], secret) for line in lines]
    headers.append(("content-length", str(len(body))))
    return Preview(method, endpoint.url, tuple(headers), body)


def _masked(name: str, value: str, secret: set[str]) -> tuple[str, str]:
    if name.lower() in _CHANGING:
        return name, WHEN_SENT
    return name, MASKED if name.lower() in secret else value

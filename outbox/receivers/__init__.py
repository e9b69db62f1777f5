"""Ready pieces for applications that receive webhooks: what the frameworks have in common.

Each framework has its own module (`outbox.receivers.starlette`, `.flask`, `.django`) and is
imported only there. All of them read the raw body up to a limit, verify it with `outbox.verify`,
and answer what does not verify with the same statuses and a small JSON object:

* 400: a webhook header is missing or malformed,
* 401: no signature matches, or the timestamp is outside the tolerance,
* 413: the body exceeds the limit,
* 200: the webhook is genuine and `seen` says it was processed before. A sender repeats a delivery
  whose answer it did not get; anything but success would make it repeat again, and give up at last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from outbox.errors import (
    AlreadyProcessed,
    HeaderMalformed,
    HeaderMissing,
    OutboxError,
    PayloadTooLarge,
)
from outbox.signature import TOLERANCE, Headers, Verified, verification_keys, verify

BODY_MAX = 1024 * 1024
"""Bytes of body read by default. Standard Webhooks recommends bodies under 20 kB."""

Secrets = str | Sequence[str] | Callable[[], str | Sequence[str]]
"""One `whsec_` or `whpk_` key, several during a rotation, or a function asked on each request."""

Clock = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class Rules:
    """How one route verifies. Raises UsageError at once for keys that are given and unusable."""

    secrets: Secrets = field(repr=False)
    tolerance: timedelta = TOLERANCE
    body_max: int = BODY_MAX
    now: Clock | None = None

    def __post_init__(self) -> None:
        if not callable(self.secrets):
            verification_keys(self.secrets)

    def check_length(self, length: int) -> None:
        """Raise PayloadTooLarge for a body of `length` bytes that exceeds the limit."""
        if length > self.body_max:
            raise PayloadTooLarge(f"the body exceeds {self.body_max} bytes")

    def check_declared(self, content_length: str | None) -> None:
        """The same for a Content-Length header; one that is no number is left to the server."""
        if content_length is not None and content_length.isascii() and content_length.isdigit():
            # Twenty digits hold any real length; more would make `int` slow or refuse.
            self.check_length(int(content_length[:20]))

    def verify(
        self, body: bytes, headers: Headers, seen: Callable[[str], bool] | None = None
    ) -> Verified:
        """Verify one request. Raises PayloadTooLarge or VerificationError."""
        self.check_length(len(body))
        secrets = self.secrets() if callable(self.secrets) else self.secrets
        return verify(body, headers, secrets, tolerance=self.tolerance, now=self.now, seen=seen)


def answer(error: OutboxError) -> tuple[int, dict[str, str]]:
    """The status and JSON object for a request that is not handed on."""
    if isinstance(error, AlreadyProcessed):
        return 200, {"status": "duplicate"}
    if isinstance(error, PayloadTooLarge):
        return 413, {"error": "body_too_large", "message": str(error)}
    if isinstance(error, HeaderMissing | HeaderMalformed):
        return 400, {"error": "bad_headers", "message": str(error)}
    return 401, {"error": "not_verified", "message": str(error)}

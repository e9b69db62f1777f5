"""Why a request failed: the closed set that the client and the resolver raise.

Messages are written here and in the callers, never taken from the operating system, whose texts
hold the resolved address.
"""

from __future__ import annotations

from enum import StrEnum

from outbox.errors import OutboxError


class Reason(StrEnum):
    """A stable code for each way a request can fail before a whole response is there."""

    DNS_ERROR = "dns_error"
    CONNECTION_REFUSED = "connection_refused"
    CONNECTION_RESET = "connection_reset"
    CONNECTION_CLOSED = "connection_closed"
    NETWORK_UNREACHABLE = "network_unreachable"
    TIMEOUT = "timeout"
    TLS_ERROR = "tls_error"
    RESPONSE_TOO_LARGE = "response_too_large"
    BAD_RESPONSE = "bad_response"
    RESOLVER_DOWN = "resolver_down"
    RESOLVER_BUSY = "resolver_busy"
    LOCAL_LIMIT = "local_limit"


OURS = frozenset({Reason.RESOLVER_DOWN, Reason.RESOLVER_BUSY, Reason.LOCAL_LIMIT})
"""Reasons that lie on our side and must not be charged to the receiver."""


class RequestFailed(OutboxError):
    """No whole response came. `reason` says why, the message says it to a person."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason

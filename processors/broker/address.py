"""Where a broker stands, and how that may be said in a log line or an error.

Promises: `place` and every error made here name scheme, host, port and path alone; user, password
and query never leave `url`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from outbox.errors import BrokerUnavailable, ConfigurationError

_PORTS = {"redis": 6379, "rediss": 6379, "amqp": 5672, "amqps": 5671}
_SCHEMES = (*_PORTS, "memory")
_WANTED = (
    "the broker URL (OUTBOX_BROKER_URL) must be redis://, rediss://, amqp:// or amqps:// with "
    "host and port, or memory://"
)


@dataclass(frozen=True, slots=True)
class Address:
    """A parsed broker URL. `place` may be shown to anyone, `url` to no one."""

    scheme: str
    place: str
    url: str = field(repr=False)
    _secrets: tuple[str, ...] = field(repr=False, default=())

    @classmethod
    def parse(cls, url: str) -> Address:
        """Raises ConfigurationError, without repeating the URL, when it cannot be one of ours."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ConfigurationError(_WANTED) from None  # the cause would quote the URL
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(_WANTED)
        if parts.scheme == "memory":
            return cls("memory", "memory://", url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        where = f"{host or 'localhost'}:{port or _PORTS[parts.scheme]}{parts.path}"
        return cls(parts.scheme, f"{parts.scheme}://{where}", url, _secrets_of(parts))

    def unavailable(self, error: BaseException) -> BrokerUnavailable:
        """The error for a broker that cannot be reached or refuses, in one line."""
        return BrokerUnavailable(
            f"the broker at {self.place} cannot be used ({self.reason(error)}): "
            "check OUTBOX_BROKER_URL and that the server runs"
        )

    def reason(self, error: BaseException) -> str:
        """What went wrong in one line, at most 200 characters, without this address's secrets."""
        text = str(error) or repr(error)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return " ".join(text.split())[:200]


def _secrets_of(parts: SplitResult) -> tuple[str, ...]:
    """The password as written and as meant, and the query, which may hold one; longest first."""
    raw = [parts.password or "", unquote(parts.password or ""), parts.query]
    return tuple(sorted({secret for secret in raw if secret}, key=len, reverse=True))

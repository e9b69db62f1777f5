"""Calling the command line on a test's database, and a receiver to send to."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from outbox.secrets import KeyRing
from tests.admin.helpers import URL

KEY = KeyRing.generate_text(lambda n: bytes(range(n)))


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Outbox = Callable[..., Ran]


def added(outbox: Outbox, *args: object, org: str = "acme") -> Any:
    ran = outbox("endpoints", "add", "--org", org, "--url", URL, "--events", "*", *args, "--json")
    assert ran.code == 0, ran.err
    return ran.document


@dataclass
class Receiver:
    """A real receiver on loopback that answers with `status`."""

    status: int = 200
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/in"

    @property
    def settings(self) -> dict[str, str]:
        return {
            "OUTBOX_EGRESS_ALLOW_HTTP": "true",
            "OUTBOX_EGRESS_ALLOW_CIDRS": "127.0.0.0/8",
            "OUTBOX_EGRESS_PORTS": str(self.port),
        }

"""The postbox: an SMTP server on 127.0.0.1 that keeps books of what it took.

Run as a process of its own (`python -P -m outbox.demo.postbox`), ended by its closed input. It
trusts nothing of ours: messages are read by the standard library, and what is attached is hashed
here.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable
from email import policy
from email.parser import BytesParser
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

from outbox.demo.told import tell

HOST = "127.0.0.1"
PDF = "application/pdf"


def read_letter(content: bytes) -> tuple[str, str | None]:
    """The Message-ID of a letter, and the SHA-256 of the PDF attached to it."""
    letter = BytesParser(policy=policy.default).parsebytes(content)
    attached = [part for part in letter.walk() if part.get_content_type() == PDF]
    bodies = [part.get_payload(decode=True) for part in attached]
    found = [one for one in bodies if isinstance(one, bytes) and one.startswith(b"%PDF-")]
    sha256 = hashlib.sha256(found[0]).hexdigest() if len(found) == 1 else None
    return str(letter["Message-ID"] or "").strip(), sha256


class Postbox:
    """Takes every letter and tells of it before it says so."""

    def __init__(self, tell: Callable[[dict[str, Any]], None]) -> None:
        self._tell = tell

    async def handle_DATA(  # noqa: N802 (aiosmtpd's name)
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        """One letter, whole."""
        content = envelope.content
        assert isinstance(content, bytes)
        self._tell({"letter": read_letter(content)})
        return "250 2.0.0 taken"


async def serve() -> None:
    """Serve until the input is closed."""
    loop = asyncio.get_running_loop()
    box = Postbox(tell)
    server = await loop.create_server(lambda: SMTP(box, enable_SMTPUTF8=True), HOST, 0)
    tell({"port": server.sockets[0].getsockname()[1]})
    await asyncio.to_thread(sys.stdin.buffer.read)
    server.close()


if __name__ == "__main__":
    asyncio.run(serve())

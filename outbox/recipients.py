"""The states of a recipient of an e-mail, and what a server's reply makes of one. Pure.

SMTP answers for each recipient, so a message has no state of its own. The list stands here and in
the CHECK of `outbox.email_recipient`; a test compares the two.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Recipient(StrEnum):
    """What became of one recipient of one message so far."""

    QUEUED = "queued"
    """Frozen, not yet offered to a server."""
    SUPPRESSED = "suppressed"
    """On the organization's suppression list: nothing is sent."""
    SENDING = "sending"
    """Committed before the contents are sent. Who finds it later cannot know what became of it."""
    SENT = "sent"
    """The server took the message for this recipient; its reply is kept."""
    DEFERRED = "deferred"
    """Not now (4yz), or the connection ended before the contents were sent."""
    REJECTED = "rejected"
    """Never (5yz), or not an address."""
    UNKNOWN = "unknown"
    """The connection ended after the contents were sent and before the reply."""
    DELIVERED = "delivered"
    """Reported later: in the mailbox."""
    BOUNCED = "bounced"
    """Reported later: came back."""
    COMPLAINED = "complained"
    """Reported later: the recipient called it spam."""


OWED = frozenset({Recipient.QUEUED, Recipient.SENDING, Recipient.DEFERRED, Recipient.UNKNOWN})
"""Whom the next attempt sends to, but for those who are held. Nobody in any other state
is ever sent to, but that a redrive offers those who were rejected once more."""

REPORTED = (Recipient.DELIVERED, Recipient.BOUNCED, Recipient.COMPLAINED)
"""What others report after the message was sent; a later one in this order replaces an earlier."""

HARD = frozenset({"5.1.1", "5.1.3", "5.1.6", "5.1.10"})
"""Enhanced codes (RFC 3463, 7505) that condemn the address itself: no such mailbox, bad syntax,
moved away, a domain that takes no mail. They feed the suppression list. Policy (5.7.x), size, and
what may be a passing mistake in the name service (5.1.2) do not."""

REPLY_CHARS_MAX = 500

_ENHANCED = re.compile(r"\b([245])\.(\d{1,3})\.(\d{1,3})\b")


def enhanced_code(text: str | None) -> str | None:
    """The enhanced status code in a reply, or None."""
    match = _ENHANCED.search(text or "")
    return None if match is None else ".".join(match.groups())


def judged(code: int, text: str) -> Recipient:
    """What a refusal means: the enhanced code where there is one (RFC 3463), for it says more than
    the digit before it; else the reply's first digit (RFC 5321, 4.2.1)."""
    enhanced = enhanced_code(text[:20])
    first = (enhanced or str(code))[0]
    return Recipient.REJECTED if first == "5" else Recipient.DEFERRED


def readable(text: str) -> str:
    """A reply as it is kept: one line that any database takes, and not endless."""
    line = "".join(c if c.isprintable() else " " for c in text)
    return line.encode("utf-8", "replace").decode()[:REPLY_CHARS_MAX]

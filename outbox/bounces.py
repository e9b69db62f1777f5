"""What others report about messages that were sent: bounces, complaints, arrivals. Pure.

Two forms are read: a delivery status notification (RFC 3464) as a mail server sends it, and JSON
events as providers post them. A message is recognized by its Message-ID, which begins with the id
of its delivery; the recipient by its address.
"""

from __future__ import annotations

import email
import email.policy
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any
from uuid import UUID

from outbox.errors import UsageError
from outbox.recipients import Recipient, enhanced_code, readable

REPORTS_MAX = 1000
"""Reports that one notification or one posted body may hold."""

_MESSAGE_ID = re.compile(r"<?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})@")
_KINDS = {
    "delivered": Recipient.DELIVERED,
    "delivery": Recipient.DELIVERED,
    "bounced": Recipient.BOUNCED,
    "bounce": Recipient.BOUNCED,
    "hard_bounce": Recipient.BOUNCED,
    "failed": Recipient.BOUNCED,
    "complained": Recipient.COMPLAINED,
    "complaint": Recipient.COMPLAINED,
    "spam_complaint": Recipient.COMPLAINED,
}


@dataclass(frozen=True, slots=True)
class Report:
    """What became of one recipient of one message: delivered, bounced or complained. Without an
    address it is the only recipient. `code` is the enhanced status code."""

    delivery_id: UUID
    address: str | None
    state: Recipient
    code: str | None = None
    reply: str | None = None


def delivery_of(message_id: str | None) -> UUID | None:
    """The delivery that a Message-ID of ours names, or None."""
    match = _MESSAGE_ID.match((message_id or "").strip())
    return None if match is None else UUID(match[1])


def read_reports(data: bytes) -> list[Report]:
    """The reports in a notification or in JSON. Raises UsageError for what is neither."""
    if data.lstrip()[:1] in (b"{", b"["):
        try:
            return reports_in_events(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise UsageError(f"the reports are not JSON: {error}") from error
    return reports_in_notification(data)


# -- JSON events ----------------------------------------------------------------------------------


def reports_in_events(document: object) -> list[Report]:
    """The reports in one event or a list of events. Members stand at the top or under `data`:
    `type` (or `event`) such as `bounced` or `email.bounced`, `message_id`, `recipient` (or `to`, or
    `email`), `code` (or `status`), `reply` (or `diagnostic`, `reason`).

    Events of other types are passed over, for providers send many; one of a type that is known and
    without a usable Message-ID is of somebody else's message. Raises UsageError for another form.
    """
    given = document if isinstance(document, list) else [document]
    events = [event for event in given if isinstance(event, dict)]
    if len(given) > REPORTS_MAX or len(events) < len(given):
        raise UsageError(f"reports are JSON objects, at most {REPORTS_MAX} in one list")
    return [report for event in events for report in _of_event(event)]


def _of_event(event: Mapping[str, Any]) -> Iterator[Report]:
    inner = event.get("data")
    members = {**event, **inner} if isinstance(inner, dict) else dict(event)
    kind = event.get("type") or event.get("event") or members.get("event_type")
    state = _KINDS.get(str(kind).rpartition(".")[2].lower())
    delivery_id = delivery_of(_text(members, "message_id", "message-id", "Message-ID"))
    if state is None or delivery_id is None:
        return
    reply = _text(members, "reply", "diagnostic", "reason", "description")
    code = enhanced_code(_text(members, "code", "status")) or enhanced_code(reply)
    given = members.get("recipient") or members.get("to") or members.get("email")
    for address in given if isinstance(given, list) else [given]:
        yield Report(
            delivery_id,
            readable(address) if isinstance(address, str) else None,
            state,
            code,
            None if reply is None else readable(reply),
        )


def _text(members: Mapping[str, Any], *names: str) -> str | None:
    return next((members[name] for name in names if isinstance(members.get(name), str)), None)


# -- notifications (RFC 3464) ---------------------------------------------------------------------

_ACTIONS = {"failed": Recipient.BOUNCED, "delivered": Recipient.DELIVERED}
"""Others (delayed, relayed, expanded) say nothing that is final."""


def reports_in_notification(data: bytes) -> list[Report]:
    """The reports in a delivery status notification, or in a feedback report (RFC 5965). Raises
    UsageError for another message."""
    try:
        message = email.message_from_bytes(data, policy=email.policy.compat32)
        parts = list(message.walk())
        delivery_id = next(filter(None, (_original(part) for part in parts)), None)
    except RecursionError:
        raise UsageError("the parts of this message are nested too deeply") from None
    for part in parts:
        if part.get_content_type() == "message/delivery-status":
            fields = [block for block in part.get_payload() if isinstance(block, Message)]
            if delivery_id is None:
                return []
            return list(_of_fields(delivery_id, fields))[:REPORTS_MAX]
        if part.get_content_type() == "message/feedback-report":
            return [] if delivery_id is None else [_complaint(delivery_id, part)]
    raise UsageError(
        "this is neither JSON nor a delivery status notification (RFC 3464): it has no part"
        " message/delivery-status"
    )


def _original(part: Message) -> UUID | None:
    """Of a part that quotes the message, or its header alone: the delivery it was of."""
    if part.get_content_type() == "message/rfc822":
        inner = part.get_payload()
        quoted = inner[0] if isinstance(inner, list) and inner else None
        return delivery_of(quoted.get("Message-ID")) if isinstance(quoted, Message) else None
    if part.get_content_type() in {"text/rfc822-headers", "message/rfc822-headers"}:
        text = part.get_payload(decode=True)
        header = email.message_from_bytes(text if isinstance(text, bytes) else b"")
        return delivery_of(header.get("Message-ID"))
    return None


def _of_fields(delivery_id: UUID, blocks: list[Message]) -> Iterator[Report]:
    for block in blocks:
        state = _ACTIONS.get(str(block.get("Action", "")).strip().lower())
        # The address as we gave it; Final-Recipient is what it became behind aliases.
        given = block.get("Original-Recipient") or block.get("Final-Recipient")
        if state is None or given is None:
            continue
        diagnostic = str(block.get("Diagnostic-Code", ""))
        reply = readable(diagnostic.partition(";")[2].strip() or diagnostic)
        code = enhanced_code(reply) or enhanced_code(str(block.get("Status", "")))
        yield Report(delivery_id, _address(str(given)), state, code, reply or None)


def _complaint(delivery_id: UUID, part: Message) -> Report:
    inner = part.get_payload()
    fields = inner[0] if isinstance(inner, list) and inner else part
    assert isinstance(fields, Message)
    given = fields.get("Original-Rcpt-To")
    return Report(
        delivery_id, None if given is None else _address(str(given)), Recipient.COMPLAINED
    )


def _address(field: str) -> str:
    """Out of `rfc822; someone@example.com`, or `utf-8; ...`."""
    return readable(field.rpartition(";")[2].strip(" <>"))

"""One message: from a plan and an event to bytes, a sender and recipients.

Promises: the same delivery gives the same Message-ID; nothing in the event's data can add a header,
a recipient or a part; what is no address is a rejected recipient, not a failed message.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime
from functools import lru_cache
from typing import Any

from outbox.errors import OutboxError, UsageError
from outbox.recipients import Recipient, readable
from outbox.store.emails import Draft
from outbox.work import Work
from processors.mail import mime
from processors.mail.addresses import Mailbox, one_line, parse_mailbox
from processors.mail.config import (
    ATTACHMENT_BYTES_MAX,
    RECIPIENTS_MAX,
    Attachment,
    Entry,
    Plan,
    content_type_of,
)
from processors.mail.signing import Signer
from processors.mail.templates import TemplateFailed, Templates, read_template_file

MESSAGE_BYTES_MAX = 10 * 1024 * 1024

Fetch = Callable[[str | None, str], Awaitable[bytes]]
"""The bytes of an artifact of an organization, by its sha256. Raises OutboxError."""


class MessageRefused(OutboxError):
    """No message can be made of this event; `reason` is a short code."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(slots=True)
class _People:
    """Recipients while they are gathered: each address once."""

    draft: list[tuple[str, Recipient, str | None]] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def take(self, texts: Sequence[str]) -> list[Mailbox]:
        found = []
        for text in texts:
            if not text.strip():
                continue  # `{% if ... %}` around an address is how one leaves it out
            try:
                mailbox = parse_mailbox(text)
            except ValueError as error:
                self._add(readable(text)[:254], Recipient.REJECTED, f"not an address: {error}")
                continue
            if self._add(mailbox.address, Recipient.QUEUED, None):
                found.append(mailbox)
        return found

    def _add(self, address: str, state: Recipient, reply: str | None) -> bool:
        if address.lower() in self.seen:
            return False
        self.seen.add(address.lower())
        self.draft.append((address, state, reply))
        if len(self.draft) > RECIPIENTS_MAX:
            raise MessageRefused("too_many_recipients", f"more than {RECIPIENTS_MAX} recipients")
        return True


class Composer:
    """Makes messages. `clock` gives the time that stands in Date."""

    def __init__(
        self,
        templates: Templates,
        fetch: Fetch,
        signer: Signer | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._templates = templates
        self._fetch = fetch
        self._signer = signer
        self._clock = clock

    async def compose(self, plan: Plan, work: Work) -> Draft:
        """The message of a delivery. Raises MessageRefused, or what fetching an artifact raises."""
        try:
            event = event_of(work)
        except (ValueError, RecursionError) as error:
            raise MessageRefused("bad_payload", f"the event cannot be read: {error}") from error
        try:
            return await self._compose(plan, work, event)
        except TemplateFailed as error:
            raise MessageRefused("template_failed", str(error)) from error
        except UsageError as error:
            raise MessageRefused("attachment_failed", str(error)) from error

    async def _compose(self, plan: Plan, work: Work, event: dict[str, Any]) -> Draft:
        sender = self._sender(plan, event)
        people = _People()
        shown = {
            "To": people.take(self._texts(plan.to, event)),
            "Cc": people.take(self._texts(plan.cc, event)),
        }
        hidden = people.take(self._texts(plan.bcc, event))
        # No address of the header may cost the message: who answers nobody's address gets none.
        replies = _People().take(self._texts(plan.reply_to, event))
        if not people.draft:
            raise MessageRefused("no_recipient", "the event gives no recipient")
        message_id = f"<{work.delivery_id}@{sender.domain}>"
        headers = [mime.header_of_mailboxes("From", [sender])]
        headers += [mime.header_of_mailboxes(n, found) for n, found in shown.items() if found]
        if not shown["To"] and not shown["Cc"]:
            headers.append(mime.plain_header("To", "undisclosed-recipients:;"))
        if replies:
            headers.append(mime.header_of_mailboxes("Reply-To", replies))
        headers += self._own_headers(plan, event, message_id)
        body = await self._body(plan, work, event)
        envelope = self._envelope(plan, event, sender)
        data = self._signed(headers, body)
        if len(data) > MESSAGE_BYTES_MAX:
            raise MessageRefused(
                "message_too_large", f"the message is larger than {MESSAGE_BYTES_MAX} bytes"
            )
        everybody = [sender, *shown["To"], *shown["Cc"], *hidden, *replies]
        foreign = not envelope.isascii() or any(not one.address.isascii() for one in everybody)
        return Draft(work.delivery_id, message_id, envelope, foreign, data, tuple(people.draft))

    # -- headers --------------------------------------------------------------------------------

    def _texts(self, entries: Sequence[Entry], event: dict[str, Any]) -> list[str]:
        return [text for entry in entries for text in entry(event)]

    def _sender(self, plan: Plan, event: dict[str, Any]) -> Mailbox:
        text = self._templates.render(plan.sender, event)
        try:
            return _parse_sender(text)
        except ValueError as error:
            raise MessageRefused("bad_sender", f"from is not an address: {error}") from error

    def _envelope(self, plan: Plan, event: dict[str, Any], sender: Mailbox) -> str:
        if plan.return_path is None:
            return sender.address
        try:
            return parse_mailbox(self._templates.render(plan.return_path, event)).address
        except ValueError as error:
            raise MessageRefused("bad_sender", f"return_path is not an address: {error}") from error

    def _own_headers(self, plan: Plan, event: dict[str, Any], message_id: str) -> list[bytes]:
        subject = self._templates.render(plan.subject, event)
        headers = [
            mime.header("Subject", subject[:2000]),
            mime.plain_header("Date", _date(int(self._clock().timestamp()))),
            mime.plain_header("Message-ID", message_id),
            # RFC 3834: nobody's holiday notice answers it.
            mime.plain_header("Auto-Submitted", "auto-generated"),
        ]
        unsubscribe = plan.unsubscribe
        if unsubscribe is not None:
            uris = [
                _uri(self._templates.render(template, event))
                for template in (unsubscribe.url, unsubscribe.mailto)
                if template is not None
            ]
            listed = ",\r\n ".join(f"<{uri}>" for uri in uris)
            headers.append(mime.plain_header("List-Unsubscribe", listed))
            if unsubscribe.one_click:
                one_click = "List-Unsubscribe=One-Click"
                headers.append(mime.plain_header("List-Unsubscribe-Post", one_click))
        return headers

    # -- the body -------------------------------------------------------------------------------

    async def _body(self, plan: Plan, work: Work, event: dict[str, Any]) -> mime.Part:
        boundary = f"=_{work.delivery_id.hex}"
        inline: list[mime.Part] = []
        attached: list[mime.Part] = []
        room = ATTACHMENT_BYTES_MAX
        for one in plan.attachments:
            part, size = await self._attachment(one, work, event, room)
            room -= size
            (attached if one.cid is None else inline).append(part)
        parts = []
        if plan.text is not None:
            parts.append(mime.text_part(self._templates.render(plan.text, event), "plain"))
        if plan.html is not None:
            html = mime.text_part(self._templates.render(plan.html, event), "html")
            if inline:
                html = mime.multipart("related", [html, *inline], f"{boundary}_r")
            parts.append(html)
        elif inline:
            attached = [*inline, *attached]
        body = parts[0]
        if len(parts) > 1:
            body = mime.multipart("alternative", parts, f"{boundary}_a")
        return mime.multipart("mixed", [body, *attached], f"{boundary}_m") if attached else body

    async def _attachment(
        self, one: Attachment, work: Work, event: dict[str, Any], room: int
    ) -> tuple[mime.Part, int]:
        name = None if one.filename is None else self._templates.render(one.filename, event)
        if one.template is not None:
            data = mime.normalized(self._templates.render(one.template, event)).encode()
        elif one.file is not None:
            data = read_template_file(self._templates.folder, one.file, ATTACHMENT_BYTES_MAX)
        elif one.artifact is not None:
            sha256 = self._templates.render(one.artifact, event).strip()
            data = await self._fetch(work.org_id, sha256)
            name = name or _artifact_name(event, sha256)
        else:
            data = one.data or b""
        if len(data) > room:
            raise MessageRefused("message_too_large", "the attachments are larger than 7 MB")
        name = one_line(name or "attachment")
        content_type = content_type_of(name, one.content_type)
        return mime.file_part(data, content_type, name, one.cid), len(data)

    def _signed(self, headers: Sequence[bytes], body: mime.Part) -> bytes:
        lines = [*headers, mime.plain_header("MIME-Version", "1.0"), *body.headers]
        if self._signer is not None:
            at = int(self._clock().timestamp())
            lines = [*self._signer.sign(lines, body.body, at), *lines]
        return mime.Part(tuple(lines), body.body).whole


# An organization has few senders, and each of its messages names one.
_parse_sender = lru_cache(maxsize=1000)(parse_mailbox)


@lru_cache(maxsize=4)
def _date(second: int) -> str:
    return format_datetime(datetime.fromtimestamp(second, UTC))


def event_of(work: Work) -> dict[str, Any]:
    """What templates see. Numbers with a point keep their digits."""
    return {
        "id": work.event_id,
        "type": work.type,
        "timestamp": work.occurred_at,
        "org_id": work.org_id,
        "subject": work.subject,
        "data": json.loads(work.payload, parse_float=Decimal),
    }


def _artifact_name(event: dict[str, Any], sha256: str) -> str:
    """The file's name as the event that tells of it has it."""
    data = event["data"]
    artifact = data.get("artifact") if isinstance(data, dict) else None
    name = artifact.get("filename") if isinstance(artifact, dict) else None
    return name if isinstance(name, str) else f"{sha256[:16]}.pdf"


def _uri(text: str) -> str:
    text = text.strip()
    if not text.isascii() or any(c.isspace() or c in "<>," or not c.isprintable() for c in text):
        raise MessageRefused("bad_unsubscribe", "list_unsubscribe is not a URI; use | urlencode")
    if len(text) > 900:
        raise MessageRefused("bad_unsubscribe", "list_unsubscribe: the URI is too long")
    return text

"""What a subscription of kind `email` asks for, checked and compiled.

    to = "{{ event.data.record.email }}"
    cc = ["Books <books@example.com>", {list = "event.data.record.watchers"}]
    from = "Shop <shop@example.com>"
    subject = "Order {{ event.data.record.id }} is paid"
    text = "Hello {{ event.data.record.name }}"
    html = {file = "paid.html"}

Every text is a template over `event`. One entry of `to` is one address, whatever the event's data
hold: a list of addresses in the data is named as such, `{list = "..."}`.
"""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from outbox.errors import UsageError
from processors.mail.mime import is_content_type
from processors.mail.templates import TemplateFailed, Templates, Text, read_template_file

RECIPIENTS_MAX = 100
ATTACHMENTS_MAX = 20
ATTACHMENT_BYTES_MAX = 7 * 1024 * 1024
"""What base64 makes of it still fits into a message of 10 MB."""

Event = Mapping[str, Any]
Entry = Callable[[Event], Sequence[str]]
"""The addresses that one entry gives for an event; raises TemplateFailed."""

_MEMBERS = {
    *("to", "cc", "bcc", "from", "reply_to", "return_path", "subject", "text", "html"),
    *("attachments", "list_unsubscribe", "on_unknown"),
}
_SOURCES = ("text", "template", "base64", "file", "artifact")
_CID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@[A-Za-z0-9.-]{1,100})?")


@dataclass(frozen=True, slots=True)
class Attachment:
    """One attachment. Exactly one of `template` (rendered as text), `data`, `file` (read when a
    message is made) and `artifact` (a template that names a sha256) is there."""

    filename: Text | None = None
    content_type: str | None = None
    cid: str | None = None
    template: Text | None = None
    data: bytes | None = field(default=None, repr=False)
    file: str | None = None
    artifact: Text | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """RFC 2369 and 8058. `one_click` says that the URL takes a POST."""

    url: Text | None
    mailto: Text | None
    one_click: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """A configuration, compiled."""

    to: tuple[Entry, ...]
    cc: tuple[Entry, ...]
    bcc: tuple[Entry, ...]
    reply_to: tuple[Entry, ...]
    sender: Text
    return_path: Text | None
    subject: Text
    text: Text | None
    html: Text | None
    attachments: tuple[Attachment, ...]
    unsubscribe: Unsubscribe | None
    hold_unknown: bool


def compile_plan(templates: Templates, config: Mapping[str, Any]) -> Plan:
    """Check and compile a configuration. Raises UsageError, one line that names the member."""
    if unknown := sorted(config.keys() - _MEMBERS):
        known = ", ".join(sorted(_MEMBERS))
        raise UsageError(f"an e-mail has no member {unknown[0]!r}; members are {known}")
    for name in ("to", "from", "subject"):
        if name not in config:
            raise UsageError(f"an e-mail needs {name}; members are to, from, subject, text, html")
    if "text" not in config and "html" not in config:
        raise UsageError("an e-mail needs text or html, or both")
    unknown_policy = config.get("on_unknown", "retry")
    if unknown_policy not in {"retry", "hold"}:
        raise UsageError("on_unknown is retry or hold")
    reader = _Reader(templates)
    return Plan(
        to=reader.entries(config, "to"),
        cc=reader.entries(config, "cc"),
        bcc=reader.entries(config, "bcc"),
        reply_to=reader.entries(config, "reply_to"),
        sender=reader.template(config["from"], "from"),
        return_path=reader.optional(config, "return_path"),
        subject=reader.template(config["subject"], "subject"),
        text=reader.body(config, "text"),
        html=reader.body(config, "html"),
        attachments=reader.attachments(config.get("attachments", [])),
        unsubscribe=reader.unsubscribe(config.get("list_unsubscribe")),
        hold_unknown=unknown_policy == "hold",
    )


class _Reader:
    def __init__(self, templates: Templates) -> None:
        self._templates = templates

    def template(self, value: object, what: str) -> Text:
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{what} must be a text")
        return self._templates.compile(value, what)

    def optional(self, config: Mapping[str, Any], name: str) -> Text | None:
        return self.template(config[name], name) if name in config else None

    def body(self, config: Mapping[str, Any], name: str) -> Text | None:
        value, html = config.get(name), name == "html"
        if value is None:
            return None
        if isinstance(value, dict) and list(value) == ["file"] and isinstance(value["file"], str):
            return self._templates.load(value["file"], f"{name}.file", html=html)
        if not isinstance(value, str):
            raise UsageError(f'{name} must be a text, or {{file = "name"}}')
        return self._templates.compile(value, name, html=html)

    # -- addresses ------------------------------------------------------------------------------

    def entries(self, config: Mapping[str, Any], name: str) -> tuple[Entry, ...]:
        value = config.get(name, [])
        values = value if isinstance(value, list) else [value]
        if len(values) > RECIPIENTS_MAX or (name == "to" and not values):
            raise UsageError(f"{name} has 1 to {RECIPIENTS_MAX} entries")
        return tuple(
            self._entry(one, name if one is value else f"{name}[{n}]")
            for n, one in enumerate(values)
        )

    def _entry(self, value: object, what: str) -> Entry:
        if isinstance(value, dict) and list(value) == ["list"] and isinstance(value["list"], str):
            return _listed(self._templates.expression(value["list"], f"{what}.list"), what)
        if not isinstance(value, str):
            raise UsageError(f'{what} must be an address, or {{list = "event.data..."}}')
        template = self.template(value, what)
        return lambda event: [self._templates.render(template, event)]

    # -- attachments ----------------------------------------------------------------------------

    def attachments(self, values: object) -> tuple[Attachment, ...]:
        if not isinstance(values, list) or len(values) > ATTACHMENTS_MAX:
            raise UsageError(f"attachments is a list of at most {ATTACHMENTS_MAX}")
        found = tuple(self._attachment(v, f"attachments[{n}]") for n, v in enumerate(values))
        cids = [one.cid for one in found if one.cid is not None]
        if len(cids) != len(set(cids)):
            raise UsageError("attachments: a cid is given twice")
        return found

    def _attachment(self, value: object, what: str) -> Attachment:
        if not isinstance(value, dict):
            raise UsageError(f"{what} must be a table")
        known = {*_SOURCES, "filename", "content_type", "cid"}
        if unknown := sorted(value.keys() - known):
            raise UsageError(f"{what} has no member {unknown[0]!r}; members are {sorted(known)}")
        sources = [name for name in _SOURCES if name in value]
        if len(sources) != 1 or not all(isinstance(v, str) for v in value.values()):
            raise UsageError(f"{what} needs one of {', '.join(_SOURCES)}, and texts alone")
        if "filename" not in value and sources[0] in {"text", "base64"}:
            raise UsageError(f"{what} needs a filename")
        self._check_form(value, what)
        content_type = value.get("content_type")
        return Attachment(
            filename=self._filename(value, sources[0], what),
            content_type=None if content_type is None else content_type.lower(),
            cid=value.get("cid"),
            **self._source(sources[0], value[sources[0]], what),
        )

    def _check_form(self, value: Mapping[str, str], what: str) -> None:
        if "content_type" in value and not is_content_type(value["content_type"].lower()):
            raise UsageError(f"{what}: the content_type is not a media type such as image/png")
        if "cid" in value and not _CID.fullmatch(value["cid"]):
            raise UsageError(f"{what}: a cid is letters, digits, '.', '_' and '-'")

    def _filename(self, value: Mapping[str, str], source: str, what: str) -> Text | None:
        if "filename" in value:
            return self.template(value["filename"], f"{what}.filename")
        if source == "artifact":
            return None
        name = value[source].rpartition("/")[2].replace("{", "(")
        return self._templates.compile(name, f"{what}.filename")

    def _source(self, source: str, value: str, what: str) -> dict[str, Any]:
        place = f"{what}.{source}"
        if source == "text":
            return {"template": self._templates.compile(value, place)}
        if source == "template":
            return {"template": self._templates.load(value, place, html=value.endswith(".html"))}
        if source == "artifact":
            return {"artifact": self.template(value, place)}
        if source == "file":
            read_template_file(self._templates.folder, value, ATTACHMENT_BYTES_MAX)
            return {"file": value}
        try:
            return {"data": base64.b64decode(value, validate=True)}
        except (binascii.Error, ValueError):
            raise UsageError(f"{place} is not base64") from None

    # -- unsubscribing --------------------------------------------------------------------------

    def unsubscribe(self, value: object) -> Unsubscribe | None:
        if value is None:
            return None
        if isinstance(value, str):
            value = {"url": value}
        known = {"url", "mailto", "one_click"}
        if (
            not isinstance(value, dict)
            or not value.keys() <= known
            or not value.keys()
            & {
                "url",
                "mailto",
            }
        ):
            raise UsageError("list_unsubscribe is a URL, or a table of url, mailto and one_click")
        one_click = value.get("one_click", "url" in value)
        url = self._place(value, "url", "https://", "list_unsubscribe")
        if not isinstance(one_click, bool) or (one_click and url is None):
            raise UsageError("list_unsubscribe: one_click is true or false and needs a url")
        return Unsubscribe(
            url, self._place(value, "mailto", "mailto:", "list_unsubscribe"), one_click
        )

    def _place(self, value: Mapping[str, Any], name: str, start: str, what: str) -> Text | None:
        """A URI whose beginning is the operator's: RFC 8058 asks for https."""
        if name not in value:
            return None
        if not str(value[name]).startswith(start):
            raise UsageError(f"{what}.{name} must begin with {start}")
        return self.template(value[name], f"{what}.{name}")


def _listed(values: Callable[[Event], Any], what: str) -> Entry:
    def entry(event: Event) -> Sequence[str]:
        found = values(event)
        if found is None:
            return []
        if not isinstance(found, list | tuple) or not all(isinstance(v, str) for v in found):
            raise TemplateFailed(f"{what}: the list is not one of texts")
        if len(found) > RECIPIENTS_MAX:
            raise TemplateFailed(f"{what}: the list has more than {RECIPIENTS_MAX} entries")
        return found

    return entry


def content_type_of(filename: str, given: str | None) -> str:
    """The media type of an attachment: as given, else by its name."""
    guessed = mimetypes.guess_type(filename)[0]
    return (
        given
        or (guessed if guessed and is_content_type(guessed) else None)
        or ("application/octet-stream")
    )

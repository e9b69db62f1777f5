"""Mail addresses out of data nobody vouches for. Pure.

What is accepted is what servers deliver to: `local@domain`, or `Name <local@domain>`. Quoted local
parts, comments, address literals, lists in one value and control characters are refused: in data
they are mistakes, or attempts to reach somebody else.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import idna

ADDRESS_BYTES_MAX = 254
LOCAL_BYTES_MAX = 64

_FORM = re.compile(r"(?:(?P<name>[^<>]*)<(?P<in>[^<>]*)>|(?P<bare>[^<>]*))", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.\u0080-\U0010ffff-]+")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class Mailbox:
    """An address as the envelope has it, and the name before it. The domain is in ASCII; a local
    part that is not needs a server with SMTPUTF8."""

    address: str
    name: str = ""

    @property
    def domain(self) -> str:
        """The domain, in ASCII."""
        return self.address.rpartition("@")[2]


def parse_mailbox(text: str) -> Mailbox:
    """Read one address, with or without a name. Raises ValueError, saying what is wrong."""
    if _CONTROL.search(text.strip()):
        raise ValueError("it holds a control character")
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError("it is not one address")
    address = match["in"] if match["in"] is not None else match["bare"]
    name = (match["name"] or "").strip()
    if len(name) > 1 and name[0] == name[-1] == '"':
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    return Mailbox(_address(address.strip()), one_line(name))


def _address(text: str) -> str:
    local, at, domain = text.rpartition("@")
    if not at or not local or not domain:
        raise ValueError("it has no local part or no domain")
    if not local.isascii():
        local = unicodedata.normalize("NFC", local)
    if not _LOCAL.fullmatch(local) or not local.isprintable() or " " in local:
        raise ValueError("its local part holds a character that may not stand there")
    if local[0] == "." or local[-1] == "." or ".." in local:
        raise ValueError("its local part has a dot too many")
    try:
        address = f"{local}@{ascii_domain(domain)}"
        size = len(address.encode())
        local_size = len(local.encode())
    except UnicodeEncodeError:
        raise ValueError("it holds half a character") from None
    if local_size > LOCAL_BYTES_MAX or size > ADDRESS_BYTES_MAX:
        raise ValueError("it is too long")
    return address


def ascii_domain(domain: str) -> str:
    """A domain as servers know it (IDNA 2008). Raises ValueError."""
    try:
        found = domain.lower() if domain.isascii() else idna.encode(domain, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValueError("its domain is not one") from None
    labels = found.split(".")
    if len(found) > 253 or len(labels) < 2 or not all(_LABEL.fullmatch(part) for part in labels):
        raise ValueError("its domain is not one")
    if labels[-1].isdigit():
        raise ValueError("its domain is a number")
    return found


def one_line(text: str) -> str:
    """A text for a header: one line, no control characters, nothing that encodes to nothing."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    plain = "".join(
        c if c.isprintable() or c == "\u200d" else " "
        for c in text.encode("utf-8", "replace").decode()
    )
    return " ".join(plain.split())

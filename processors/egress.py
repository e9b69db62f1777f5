"""The egress guard: which destinations a webhook may go to.

Owns the reading of a destination URL, our own table of address ranges and the verdict on an
address. Every outgoing connection a tenant can influence passes here: `parse_destination` judges
the spelling once, `vetted` judges every address the name stands for. Nothing here opens a socket.

The range table is ours, not `ipaddress.is_global`: that property changes with the interpreter
and holds 6to4, NAT64, site-local and multicast addresses to be global on several of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import idna

from outbox.errors import DestinationRefused
from outbox.settings import Settings

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

URL_CHARS_MAX = 2048
HOST_CHARS_MAX = 253
PORT_BY_SCHEME = {"https": 443, "http": 80}

# IANA special-purpose registers (RFC 6890 and its updates), multicast and the reserved class E.
_IPV4_REFUSED = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Only global unicast is open (RFC 4291, 2.4). This one rule refuses loopback, IPv4-compatible,
# SIIT, link-local, unique local, site-local, multicast and all space not yet allocated.
_IPV6_OPEN = IPv6Network("2000::/3")
_IPV6_REFUSED = tuple(
    IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # Teredo, 6to4, ...
)
_IPV4_MAPPED = IPv6Network("::ffff:0:0/96")
# RFC 6052. Refusing it whole would break networks that reach IPv4 through DNS64.
_NAT64 = IPv6Network("64:ff9b::/96")

_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)", re.IGNORECASE)
# Printable ASCII without what browsers, proxies and libraries read differently.
_TARGET = re.compile(r"[!$%&'()*+,\-./0-9:;=?@A-Z\[\]_a-z~]*")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC_LABEL = re.compile(r"[0-9]+|0x[0-9a-f]*")
_FOREIGN_DOTS = frozenset("\u3002\uff0e\uff61")  # read as dots by some IDNA mappings
_PORT = re.compile(r"[0-9]{1,5}")


class Verdict(StrEnum):
    """What the guard thinks of one address."""

    PUBLIC = "public"
    ALLOWED = "allowed"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """The operator's settings; never a tenant's.

    `allow_cidrs` opens ranges the table refuses. `allow_http` permits plain `http`. `ports` lists
    the permitted ports; empty means 443, and 80 as well where `http` is permitted. `ca_file` names
    a PEM file of authorities to trust beside those of the system.
    """

    allow_cidrs: tuple[Network, ...] = ()
    allow_http: bool = False
    ports: frozenset[int] = frozenset()
    ca_file: str | None = None

    @property
    def open_ports(self) -> frozenset[int]:
        """The ports a destination may name."""
        if self.ports:
            return self.ports
        return frozenset({80, 443}) if self.allow_http else frozenset({443})


def policy_of(settings: Settings) -> EgressPolicy:
    """What the operator allows."""
    return EgressPolicy(
        allow_cidrs=settings.egress_allow_cidrs,
        allow_http=settings.egress_allow_http,
        ports=settings.egress_ports,
        ca_file=settings.ca_file,
    )


@dataclass(frozen=True, slots=True)
class Destination:
    """A URL taken apart once. `host` is lower-case ASCII; `address` is set when it is a literal.

    `host_header` is what `Host` must say; `path_and_query` is the request target.
    """

    scheme: str
    host: str
    port: int
    path_and_query: str
    host_header: str
    address: Address | None = None

    @property
    def key(self) -> tuple[str, str, int]:
        """What two requests must share to share a connection."""
        return (self.scheme, self.host, self.port)


def parse_destination(url: str, policy: EgressPolicy) -> Destination:
    """Take `url` apart under the policy. Raises DestinationRefused with one line that says why."""
    if len(url) > URL_CHARS_MAX:
        raise DestinationRefused(f"the URL is longer than {URL_CHARS_MAX} characters")
    if any(ord(character) <= 0x20 or ord(character) == 0x7F for character in url):
        raise DestinationRefused("the URL holds a space or a control character")
    if "#" in url:
        raise DestinationRefused("the URL has a fragment; remove what begins with #")
    match = _URL.fullmatch(url)
    if match is None:
        raise DestinationRefused("the URL does not start with https:// and a host")
    scheme = match[1].lower()
    if scheme == "http" and not policy.allow_http:
        raise DestinationRefused(
            "plain http is not permitted; use https (or set OUTBOX_EGRESS_ALLOW_HTTP)"
        )
    host, address, port = _parse_authority(match[2], PORT_BY_SCHEME[scheme])
    if port not in policy.open_ports:
        raise DestinationRefused(
            f"port {port} is not permitted; OUTBOX_EGRESS_PORTS lists those that are"
        )
    if address is not None and classify(address, policy) is Verdict.REFUSED:
        raise DestinationRefused(
            "the address in the URL is not public; OUTBOX_EGRESS_ALLOW_CIDRS permits private ranges"
        )
    shown = f"[{host}]" if isinstance(address, IPv6Address) else host
    host_header = shown if port == PORT_BY_SCHEME[scheme] else f"{shown}:{port}"
    return Destination(scheme, host, port, _parse_target(match[3]), host_header, address)


def classify(address: Address, policy: EgressPolicy) -> Verdict:
    """Judge one address by the range table; ranges the operator opened are ALLOWED."""
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return Verdict.REFUSED  # a zone is only ever local
    forms = (address, _embedded(address))
    if any(form in network for form in forms if form for network in policy.allow_cidrs):
        return Verdict.ALLOWED
    judged = forms[1] or address
    return Verdict.PUBLIC if _is_public(judged) else Verdict.REFUSED


def vetted(answers: Sequence[Address], policy: EgressPolicy) -> list[Address]:
    """The addresses to connect to, in the resolver's order, each once.

    One bad answer condemns all of them: a name that mixes public and private addresses is either
    an attack or a mistake. Raises DestinationRefused, which never names an address.
    """
    if any(classify(answer, policy) is Verdict.REFUSED for answer in answers):
        raise DestinationRefused("the destination does not resolve to public addresses only")
    return list(dict.fromkeys(answers))


def _embedded(address: Address) -> IPv4Address | None:
    """The IPv4 address inside an IPv4-mapped or NAT64 address."""
    if isinstance(address, IPv6Address) and (address in _IPV4_MAPPED or address in _NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _IPV4_REFUSED)
    return address in _IPV6_OPEN and not any(address in network for network in _IPV6_REFUSED)


def _parse_authority(text: str, port_default: int) -> tuple[str, Address | None, int]:
    if "@" in text:
        raise DestinationRefused("the URL holds a user name or password; use a header instead")
    if text.startswith("["):
        inside, bracket, rest = text[1:].partition("]")
        if not bracket:
            raise DestinationRefused("the IPv6 address in the URL has no closing bracket")
        literal = _parse_ipv6(inside)
        return literal.compressed, literal, _parse_port(rest, port_default)
    name, colon, digits = text.partition(":")
    host = _parse_host(name)
    return host, _parse_ipv4(host), _parse_port(colon + digits, port_default)


def _parse_port(text: str, default: int) -> int:
    if not text:
        return default
    if not text.startswith(":") or not _PORT.fullmatch(text[1:]):
        raise DestinationRefused("the port in the URL is not a number")
    port = int(text[1:])
    if not 0 < port < 65536:
        raise DestinationRefused("the port in the URL is not between 1 and 65535")
    return port


def _parse_ipv6(text: str) -> IPv6Address:
    if "%" in text:
        raise DestinationRefused("the IPv6 address in the URL names an interface")
    try:
        return IPv6Address(text)
    except ValueError:
        raise DestinationRefused("the host in brackets is not an IPv6 address") from None


def _parse_host(text: str) -> str:
    """The host as lower-case ASCII, by IDNA 2008 (RFC 5891) where it is not ASCII already."""
    host = text.lower()
    if not _FOREIGN_DOTS.isdisjoint(host):
        raise DestinationRefused("the host holds a dot that is not an ASCII dot")
    if not host.isascii() or "xn--" in host:
        try:
            host = idna.encode(host).decode("ascii")
        except UnicodeError:  # the parent of idna.IDNAError
            raise DestinationRefused("the host is not a valid international name") from None
    labels = host.split(".")
    if len(host) > HOST_CHARS_MAX or not all(_LABEL.fullmatch(label) for label in labels):
        raise DestinationRefused("the host in the URL is not a host name")
    return host


def _parse_ipv4(host: str) -> IPv4Address | None:
    """The address a numeric host spells. Anything but a plain dotted quad is refused: `127.1`,
    `0x7f.1` and `2130706433` are addresses to some libraries and names to others."""
    if not _NUMERIC_LABEL.fullmatch(host.rpartition(".")[2]):
        return None
    try:
        return IPv4Address(host)
    except ValueError:
        raise DestinationRefused("the host looks like an IPv4 address but is not one") from None


def _parse_target(text: str) -> str:
    if not _TARGET.fullmatch(text):
        raise DestinationRefused("the path holds a character that must be percent-encoded")
    return text if text.startswith("/") else "/" + text

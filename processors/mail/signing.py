"""DKIM signatures (RFC 6376, 8463): rsa-sha256 and ed25519-sha256.

Signed with `cryptography`, which a signature costs a millisecond; the usual library reckons RSA in
Python and takes 28 ms. That library verifies ours in the tests. Canonical form is relaxed/simple: a
header may be folded anew on the way, the body stays as it is.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from outbox.errors import ConfigurationError
from outbox.settings import Settings
from processors.mail.addresses import ascii_domain

RSA_BITS_MIN = 1024
SIGNED = (
    *("from", "to", "cc", "reply-to", "subject", "date", "message-id", "mime-version"),
    *("content-type", "content-transfer-encoding", "list-unsubscribe", "list-unsubscribe-post"),
    "auto-submitted",
)
"""Signed where they stand; From once more than it stands, so that none can be added."""

_PEM = re.compile(r"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", re.DOTALL)
_SELECTOR = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class _Key:
    selector: str
    key: RSAPrivateKey | Ed25519PrivateKey = field(repr=False)

    @property
    def algorithm(self) -> str:
        return "rsa-sha256" if isinstance(self.key, RSAPrivateKey) else "ed25519-sha256"

    def sign(self, text: bytes) -> bytes:
        if isinstance(self.key, RSAPrivateKey):
            return self.key.sign(text, PKCS1v15(), SHA256())
        return self.key.sign(hashlib.sha256(text).digest())  # RFC 8463, 3


class Signer:
    """Signs messages of one domain with one or several keys."""

    def __init__(self, domain: str, keys: Sequence[_Key]) -> None:
        self._domain = domain
        self._keys = keys

    def sign(self, headers: Sequence[bytes], body: bytes, at: int) -> list[bytes]:
        """The DKIM-Signature headers for these headers and this body; `at` is unix time."""
        body_hash = base64.b64encode(hashlib.sha256(_simple(body)).digest()).decode()
        named = [(line.partition(b":")[0].decode().lower(), line) for line in headers]
        names = [name for wanted in SIGNED for name, _ in named if name == wanted]
        canonical = [_relaxed(line) for name in dict.fromkeys(names) for n, line in reversed(named)
                     if n == name]  # fmt: skip
        return [self._signed(key, [*names, "from"], canonical, body_hash, at) for key in self._keys]

    def _signed(
        self, key: _Key, names: Sequence[str], canonical: Sequence[bytes], body_hash: str, at: int
    ) -> bytes:
        line = (
            f"DKIM-Signature: v=1; a={key.algorithm}; c=relaxed/simple; d={self._domain};\r\n"
            f" s={key.selector}; t={at};\r\n h={_folded(names)};\r\n bh={body_hash};\r\n b="
        ).encode()
        text = b"\r\n".join([*canonical, _relaxed(line)])
        signature = base64.b64encode(key.sign(text))
        return line + b"\r\n ".join(signature[i : i + 70] for i in range(0, len(signature), 70))


def _folded(names: Sequence[str]) -> str:
    rows = [":".join(names[i : i + 5]) for i in range(0, len(names), 5)]
    return ":\r\n  ".join(rows)


def _relaxed(line: bytes) -> bytes:
    """RFC 6376, 3.4.2."""
    name, _, value = line.partition(b":")
    return name.strip().lower() + b":" + b" ".join(value.split())


def _simple(body: bytes) -> bytes:
    """RFC 6376, 3.4.3: one line break at the end."""
    return body.rstrip(b"\r\n") + b"\r\n"


def signer_of(settings: Settings) -> Signer | None:
    """The signer that the settings describe; None where they ask for none. Raises
    ConfigurationError."""
    given = (settings.dkim_domain, settings.dkim_selector, settings.dkim_key)
    if not any(given):
        return None
    if not all(given):
        raise ConfigurationError(
            "to sign e-mail set all of OUTBOX_DKIM_DOMAIN, OUTBOX_DKIM_SELECTOR and OUTBOX_DKIM_KEY"
        )
    domain, selectors, pem = (str(value) for value in given)
    try:
        domain = ascii_domain(domain)
    except ValueError:
        raise ConfigurationError(f"OUTBOX_DKIM_DOMAIN: {domain!r} is not a domain") from None
    names = [name.strip() for name in selectors.split(",")]
    blocks = _PEM.findall(pem)
    if len(blocks) != len(names) or not all(_SELECTOR.fullmatch(name) for name in names):
        raise ConfigurationError(
            "OUTBOX_DKIM_KEY holds one private key in PEM for each name in OUTBOX_DKIM_SELECTOR, in"
            f" the same order; there are {len(blocks)} keys and {len(names)} names"
        )
    return Signer(domain, [_Key(n, _key(block)) for n, block in zip(names, blocks, strict=True)])


def _key(pem: str) -> RSAPrivateKey | Ed25519PrivateKey:
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # what it says may quote the key
    if isinstance(key, Ed25519PrivateKey):
        return key
    if isinstance(key, RSAPrivateKey) and key.key_size >= RSA_BITS_MIN:
        return key
    raise ConfigurationError(
        "OUTBOX_DKIM_KEY: not a private key that signs e-mail; write an RSA (of 1024 bits or more)"
        " or Ed25519 key in PEM, unencrypted, or @file"
    )

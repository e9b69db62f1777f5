"""Secrets at rest: AES-256-GCM under the keys of OUTBOX_SECRET_KEY.

Owns the sealed format and the key ring. A sealed value is

    version (1 byte, 0x01) | key id (4 bytes) | nonce (12 bytes) | ciphertext and tag

The header and the context (organization, table, row, field) are authenticated with it, so a value
copied into another row or another organization does not open. Keys never appear in a message, a
representation or a log line; the key id is a truncated SHA-256 of the key.

`cryptography` is loaded when a value is first sealed or opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

from outbox.errors import ConfigurationError, KeyMissing

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_LENGTH = 32
KEYS_MAX = 16
_VERSION = b"\x01"
_KEY_ID_END = 5
_NONCE_END = 17
_TAG_LENGTH = 16
_HOW = "set it to base64 of 32 random bytes, for example from: openssl rand -base64 32"


def secret_context(
    org_id: str | None, row_id: str | UUID, field: str, *, table: str = "secret"
) -> str:
    """Name the place a secret belongs to. JSON keeps the parts, and a missing organization,
    apart from each other whatever characters they hold."""
    return json.dumps([org_id, table, str(row_id), field], separators=(",", ":"))


class KeyRing:
    """The keys in force: the first seals, all open.

    Threads may share one. `random_bytes` draws nonces: it must be cryptographically random, since
    one nonce used twice under a key breaks AES-GCM (NIST SP 800-38D, section 8).
    """

    __slots__ = ("_ciphers", "_first", "_keys", "_random_bytes")

    def __init__(
        self, keys: Sequence[bytes], *, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        """Raises KeyMissing without keys, ConfigurationError for a key of another length."""
        if not keys:
            raise KeyMissing(f"OUTBOX_SECRET_KEY is not set; {_HOW}")
        if len(keys) > KEYS_MAX:
            raise ConfigurationError(f"OUTBOX_SECRET_KEY holds more than {KEYS_MAX} keys")
        self._keys: dict[bytes, bytes] = {}
        for number, key in enumerate(keys, start=1):
            self._add(number, key)
        self._first = _key_id(keys[0])
        self._ciphers: dict[bytes, AESGCM] = {}
        self._random_bytes = random_bytes

    def _add(self, number: int, key: bytes) -> None:
        if len(key) != KEY_LENGTH:
            raise ConfigurationError(f"key {number} in OUTBOX_SECRET_KEY is not usable; {_HOW}")
        if self._keys.setdefault(_key_id(key), key) != key:
            raise ConfigurationError(f"key {number} in OUTBOX_SECRET_KEY collides; make another")

    @classmethod
    def from_text(
        cls, text: str | None, *, random_bytes: Callable[[int], bytes] = os.urandom
    ) -> KeyRing:
        """Read OUTBOX_SECRET_KEY: base64 of 32 bytes, several by comma, the first encrypts."""
        items = [item.strip() for item in (text or "").split(",") if item.strip()]
        keys = [_parse_key(number, item) for number, item in enumerate(items, start=1)]
        return cls(keys, random_bytes=random_bytes)

    @staticmethod
    def generate_text(random_bytes: Callable[[int], bytes] = os.urandom) -> str:
        """Make a new key as it is written in OUTBOX_SECRET_KEY."""
        return b64encode(random_bytes(KEY_LENGTH)).decode()

    def seal(self, plaintext: bytes, *, context: str) -> bytes:
        """Encrypt for one place; `context` comes from `secret_context`."""
        header = _VERSION + self._first
        nonce = self._random_bytes(_NONCE_END - _KEY_ID_END)
        sealed = self._cipher(self._first).encrypt(nonce, plaintext, header + context.encode())
        return header + nonce + sealed

    def open(self, sealed: bytes, *, context: str) -> bytes:
        """Decrypt what was sealed for the same context.

        Raises KeyMissing if the key is not in the ring, ConfigurationError if the value was
        changed, was sealed for another place, or has a format this program does not know.
        """
        from cryptography.exceptions import InvalidTag

        sealed = bytes(sealed)
        key_id = self._check(sealed)
        header, nonce = sealed[:_KEY_ID_END], sealed[_KEY_ID_END:_NONCE_END]
        try:
            return self._cipher(key_id).decrypt(
                nonce, sealed[_NONCE_END:], header + context.encode()
            )
        except InvalidTag:
            raise ConfigurationError(
                "a stored secret does not open: it was altered or moved from another row; "
                "set it again"
            ) from None

    def reseal(self, sealed: bytes, *, context: str) -> bytes:
        """Move a value to the first key; one that is there already comes back unchanged.

        It is opened in either case, so a rotation also finds what no longer opens.
        """
        plaintext = self.open(sealed, context=context)
        return bytes(sealed) if self.is_current(sealed) else self.seal(plaintext, context=context)

    def is_current(self, sealed: bytes) -> bool:
        """True if the value is sealed with the first key."""
        return bytes(sealed[:_KEY_ID_END]) == _VERSION + self._first

    def _check(self, sealed: bytes) -> bytes:
        if len(sealed) < _NONCE_END + _TAG_LENGTH:
            raise ConfigurationError("a stored secret is too short to be one; set it again")
        if sealed[:1] != _VERSION:
            raise ConfigurationError("a stored secret has a format of a newer version; upgrade")
        key_id = sealed[1:_KEY_ID_END]
        if key_id not in self._keys:
            raise KeyMissing(
                f"no key in OUTBOX_SECRET_KEY opens a secret sealed with key {key_id.hex()}; "
                "add the former key after a comma"
            )
        return key_id

    def _cipher(self, key_id: bytes) -> AESGCM:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        cipher = self._ciphers.get(key_id)
        if cipher is None:
            cipher = self._ciphers[key_id] = AESGCM(self._keys[key_id])
        return cipher

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyRing is not pickled: its keys stay in this process")

    def __repr__(self) -> str:
        return f"KeyRing({len(self._keys)} keys)"


def _key_id(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()[: _KEY_ID_END - 1]


def _parse_key(number: int, text: str) -> bytes:
    # The cause is dropped in both cases: it could quote key material.
    try:
        key = b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (Base64Error, ValueError):
        key = b""
    if len(key) != KEY_LENGTH:
        raise ConfigurationError(f"key {number} in OUTBOX_SECRET_KEY is not usable; {_HOW}")
    return key

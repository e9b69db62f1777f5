"""Signing and verifying webhooks after Standard Webhooks 1.0.0: `v1` and `v1a`.

Owns the key formats (`whsec_`, `whsk_`, `whpk_`), the signed content
`{webhook-id}.{webhook-timestamp}.{raw body}` and every rule of verification. Promises senders one
header value for all keys of a rotation, and receivers that whatever a stranger puts into a request
ends as a `VerificationError` with a one-line message, never as another exception.

HMAC needs the standard library alone; `cryptography` is loaded when an ed25519 key is first used.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import b64decode, b64encode
from binascii import b2a_base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from outbox.errors import (
    AlreadyProcessed,
    HeaderMalformed,
    HeaderMissing,
    SignatureMismatch,
    TimestampTooNew,
    TimestampTooOld,
    UsageError,
    VerificationError,
)
from outbox.work import SigningKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

HEADER_ID = "webhook-id"
HEADER_TIMESTAMP = "webhook-timestamp"
HEADER_SIGNATURE = "webhook-signature"
TOLERANCE = timedelta(minutes=5)
"""How far the timestamp may lie in the past or the future (every Standard Webhooks library)."""

SECRET_LENGTH = 32
"""Bytes in a generated HMAC secret; the specification asks for 24 to 64."""

SIGNATURES_MAX = 32
"""Signatures looked at in one header. A request must not buy unbounded ed25519 work."""

_SEED_LENGTH = 32
# A dot would let bytes move between id, timestamp and body under the same signature.
_ID = re.compile(r"[!-\-/-~]{1,256}")
# Eleven digits reach the year 5138, which `datetime` still holds.
_TIMESTAMP = re.compile(r"[0-9]{1,11}")
_BASE64 = re.compile(r"[A-Za-z0-9+/]*={0,2}")


class Headers(Protocol):
    """What `verify` reads: any mapping of header names, or a WSGI environ."""

    def items(self) -> Iterable[tuple[str, Any]]: ...


@dataclass(frozen=True, slots=True)
class Verified:
    """A request that verified: its stable id, the time of this attempt (UTC), the raw body."""

    id: str
    timestamp: datetime
    body: bytes

    def json(self) -> Any:
        """Decode the body. Raises HeaderMalformed's parent, VerificationError, if it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise VerificationError("the verified body is not JSON") from error


# --- keys ---------------------------------------------------------------------------------------


def generate_hmac_secret(random_bytes: Callable[[int], bytes]) -> bytes:
    """Draw a new HMAC secret of 32 bytes from `random_bytes` (such as `secrets.token_bytes`)."""
    return random_bytes(SECRET_LENGTH)


def format_secret(secret: bytes) -> str:
    """Write an HMAC secret as `whsec_` and base64."""
    return "whsec_" + b64encode(secret).decode()


def parse_secret(text: str) -> bytes:
    """Read an HMAC secret, with or without `whsec_` and padding. Raises UsageError."""
    body = text.strip().removeprefix("whsec_")
    if not body:
        raise UsageError("the webhook secret is empty; give the whsec_... of the endpoint")
    return _decode(body, "the webhook secret is not base64; give the whsec_... of the endpoint")


def generate_ed25519_seed(random_bytes: Callable[[int], bytes]) -> bytes:
    """Draw the 32-byte seed of a new ed25519 key."""
    return random_bytes(_SEED_LENGTH)


def public_key(seed: bytes) -> bytes:
    """Derive the 32-byte public key of an ed25519 seed."""
    return _private_key(seed).public_key().public_bytes_raw()


def format_private_key(seed: bytes) -> str:
    """Write an ed25519 key as `whsk_` and base64 of seed and public key (64 bytes)."""
    return "whsk_" + b64encode(seed + public_key(seed)).decode()


def parse_private_key(text: str) -> bytes:
    """Read a `whsk_` key and return its seed. Raises UsageError, also when its halves differ."""
    wrong = "the private key is not whsk_ and base64 of 64 bytes"
    raw = _decode(_strip(text, "whsk_", wrong), wrong)
    if len(raw) != 2 * _SEED_LENGTH:
        raise UsageError(wrong)
    seed = raw[:_SEED_LENGTH]
    if not hmac.compare_digest(public_key(seed), raw[_SEED_LENGTH:]):
        raise UsageError("the two halves of the whsk_ key do not belong together")
    return seed


def format_public_key(public: bytes) -> str:
    """Write an ed25519 public key as `whpk_` and base64 (32 bytes)."""
    return "whpk_" + b64encode(public).decode()


def parse_public_key(text: str) -> bytes:
    """Read a `whpk_` public key. Raises UsageError."""
    wrong = "the public key is not whpk_ and base64 of 32 bytes"
    raw = _decode(_strip(text, "whpk_", wrong), wrong)
    if len(raw) != _SEED_LENGTH:
        raise UsageError(wrong)
    return raw


def _strip(text: str, prefix: str, wrong: str) -> str:
    text = text.strip()
    if not text.startswith(prefix):
        raise UsageError(wrong)
    return text.removeprefix(prefix)


def _decode(text: str, wrong: str) -> bytes:
    """Base64 with or without padding. The cause is dropped: it could quote key material."""
    bare = text.rstrip("=")
    if _BASE64.fullmatch(text) is None or not bare or len(bare) % 4 == 1:
        raise UsageError(wrong)
    return b64decode(bare + "=" * (-len(bare) % 4))


# --- signing ------------------------------------------------------------------------------------


def sign(keys: Sequence[SigningKey], message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of `webhook-signature`: one signature per key, in the order given.

    `timestamp` is the time of this attempt in whole Unix seconds. Raises UsageError without keys,
    for a key of unknown kind, and for an id with a dot or anything but visible ASCII.
    """
    if not keys:
        raise UsageError("the endpoint has no signing key; rotate its secret")
    if _ID.fullmatch(message_id) is None:
        raise UsageError(f"webhook-id {message_id!r} must be visible ASCII without a dot")
    head = f"{message_id}.{timestamp}.".encode()
    return " ".join([_sign_one(key, head, body) for key in keys])


def _sign_one(key: SigningKey, head: bytes, body: bytes) -> str:
    if key.kind == "hmac":
        return "v1," + _hmac(key.material, head, body).decode()
    if key.kind == "ed25519":
        return "v1a," + b64encode(_private_key(key.material).sign(head + body)).decode()
    raise UsageError(f"unknown signing key kind {key.kind!r}; use hmac or ed25519")


def _hmac(secret: bytes, head: bytes, body: bytes) -> bytes:
    """Base64 of the HMAC-SHA256."""
    state = _hmac_state(secret).copy()
    state.update(head)
    state.update(body)
    return b2a_base64(state.digest(), newline=False)


# Setting up the key costs more than hashing a small body, and an endpoint's key rarely changes.
@lru_cache(maxsize=4096)
def _hmac_state(secret: bytes) -> hmac.HMAC:
    if not secret:
        raise UsageError("the webhook secret is empty")
    return hmac.new(secret, digestmod="sha256")


@lru_cache(maxsize=4096)
def _private_key(seed: bytes) -> Ed25519PrivateKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if len(seed) != _SEED_LENGTH:
        raise UsageError("an ed25519 seed has 32 bytes")
    return Ed25519PrivateKey.from_private_bytes(seed)


@lru_cache(maxsize=4096)
def _public_key(raw: bytes) -> Ed25519PublicKey:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    return Ed25519PublicKey.from_public_bytes(raw)


# --- verifying ----------------------------------------------------------------------------------


def verify(
    payload: bytes | str,
    headers: Headers,
    secret_or_public_key: str | Sequence[str],
    *,
    tolerance: timedelta = TOLERANCE,
    now: Callable[[], datetime] | None = None,
    seen: Callable[[str], bool] | None = None,
) -> Verified:
    """Verify a webhook and return its id, time and raw body.

    `payload` is the body exactly as received: parsing and writing it again changes bytes.
    `headers` is any mapping of header names (case does not matter) or a WSGI environ.
    `secret_or_public_key` is a `whsec_` secret or a `whpk_` public key, or several while a key is
    rotated; any match is enough. `seen` is asked last, and only about genuine requests: it returns
    True for an id that was already *processed*. Mark an id after the work is done, best in the
    same transaction; an id marked before would swallow the retry of work that failed.

    Raises VerificationError (HeaderMissing, HeaderMalformed, TimestampTooOld, TimestampTooNew,
    SignatureMismatch, AlreadyProcessed), or UsageError when the keys given are unusable.
    """
    keys = verification_keys(secret_or_public_key)
    body = _raw(payload)
    message_id, timestamp_text, signatures = _read_headers(headers)
    timestamp = _read_timestamp(timestamp_text, tolerance, now)
    head = f"{message_id}.{timestamp_text}.".encode()
    if not _any_match(keys, signatures, head, body):
        raise SignatureMismatch("no signature matches; check the secret and that the body is raw")
    if seen is not None and seen(message_id):
        raise AlreadyProcessed(f"webhook {message_id} was already processed")
    return Verified(message_id, timestamp, body)


def verification_keys(texts: str | Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """Read the keys a receiver holds as pairs of scheme and material. Raises UsageError."""
    keys = tuple(_verification_key(text) for text in ([texts] if isinstance(texts, str) else texts))
    if not keys:
        raise UsageError("give at least one whsec_ secret or whpk_ public key")
    return keys


def _verification_key(text: str) -> tuple[str, bytes]:
    text = text.strip()
    if text.startswith("whsk_"):
        raise UsageError("whsk_ is the sender's private key; a receiver needs whpk_")
    if text.startswith("whpk_"):
        return "v1a", parse_public_key(text)
    return "v1", parse_secret(text)


def _raw(payload: bytes | str) -> bytes:
    if isinstance(payload, str):
        # surrogatepass cannot fail; what it writes for a broken text matches no signature.
        return payload.encode("utf-8", "surrogatepass")
    if isinstance(payload, bytes | bytearray | memoryview):
        return bytes(payload)
    raise UsageError("give verify the raw body bytes as received, not the parsed content")


def _read_headers(headers: Headers) -> tuple[str, str, str]:
    found: dict[str, str] = {}
    for name, value in headers.items():
        known = _NAMES.get(name) or _NAMES.get(name.lower())
        if known is None:
            continue
        if known in found:
            raise HeaderMalformed(f"header {known} stands there more than once")
        found[known] = value.decode("latin-1") if isinstance(value, bytes) else str(value)
    for known in (HEADER_ID, HEADER_TIMESTAMP, HEADER_SIGNATURE):
        if not found.get(known):
            raise HeaderMissing(f"header {known} is missing")
    if _ID.fullmatch(found[HEADER_ID]) is None:
        raise HeaderMalformed("header webhook-id must be visible ASCII without a dot")
    return found[HEADER_ID], found[HEADER_TIMESTAMP], found[HEADER_SIGNATURE]


# WSGI environ keys have one spelling; accepting `webhook_id` in general would let one name
# stand for another.
_NAMES = {name: name for name in (HEADER_ID, HEADER_TIMESTAMP, HEADER_SIGNATURE)} | {
    "HTTP_" + name.upper().replace("-", "_"): name
    for name in (HEADER_ID, HEADER_TIMESTAMP, HEADER_SIGNATURE)
}


def _read_timestamp(
    text: str, tolerance: timedelta, now: Callable[[], datetime] | None
) -> datetime:
    if _TIMESTAMP.fullmatch(text) is None:
        raise HeaderMalformed("header webhook-timestamp must be whole Unix seconds")
    timestamp = datetime.fromtimestamp(int(text), UTC)
    age = (datetime.now(UTC) if now is None else now()) - timestamp
    if age > tolerance:
        raise TimestampTooOld(
            f"the timestamp is {int(age.total_seconds())} s old; check the clocks"
        )
    if -age > tolerance:
        ahead_s = int(-age.total_seconds())
        raise TimestampTooNew(f"the timestamp lies {ahead_s} s in the future; check the clocks")
    return timestamp


def _any_match(
    keys: Sequence[tuple[str, bytes]], signatures: str, head: bytes, body: bytes
) -> bool:
    """True if any signature matches any key of its own scheme; unknown schemes are passed over."""
    given = [entry.partition(",")[::2] for entry in signatures.split()[:SIGNATURES_MAX]]
    for scheme, key in keys:
        candidates = [text for version, text in given if version == scheme]
        if scheme == "v1" and candidates:
            # Read as text: equal base64 is equal bytes, and nothing needs decoding.
            expected = _hmac(key, head, body)
            matches = [hmac.compare_digest(expected, _raw(text)) for text in candidates]
        else:
            matches = [_ed25519_matches(key, text, head + body) for text in candidates]
        if any(matches):
            return True
    return False


def _ed25519_matches(raw: bytes, text: str, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        _public_key(raw).verify(_decode(text, "not base64"), content)
    except (InvalidSignature, UsageError, ValueError):
        return False
    return True

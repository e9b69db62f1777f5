"""Who a client is: JSON Web Tokens, verified.

A token must be signed by the secret (HS256, HS384, HS512) or by a key of the set (RS, ES and EdDSA,
by `kid`), name a role and say when it expires. The algorithm is taken from the key, never from the
token alone: an asymmetric public key cannot pass for a shared secret, `none` is no algorithm.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from jwt.types import Options

from outbox.errors import ConfigurationError
from outbox.realtime.joining import (
    TOKEN_FORGED,
    TOKEN_INCOMPLETE,
    TOKEN_MALFORMED,
    Refusal,
    expired,
)

SECRET_BYTES_MIN = 32
"""RFC 7518, 3.2: a key for HS256 is at least as long as its hash."""
TOKEN_BYTES_MAX = 16_384
_SHARED = frozenset({"HS256", "HS384", "HS512"})
_BY_TYPE = {
    "RSA": frozenset({"RS256", "RS384", "RS512"}),
    "EC": frozenset({"ES256", "ES384", "ES512"}),
    "OKP": frozenset({"EdDSA"}),
    "oct": _SHARED,
}
_OURS: Options = {"verify_exp": False, "verify_nbf": True, "verify_iat": False, "verify_aud": False,
         "verify_iss": False, "verify_sub": False, "verify_jti": False}  # fmt: skip


class TokenRefused(Exception):
    """A token does not say who the client is."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says. `text` is all of it, as JSON."""

    role: str
    exp: float
    sub: str
    text: str


@dataclass(frozen=True, slots=True)
class _Key:
    material: Any
    algorithms: frozenset[str]


class Verifier:
    """Verifies tokens by a shared secret, a key set, or both."""

    def __init__(self, secret: str | None, jwks: str | None) -> None:
        """`jwks` is the JSON of a key set. Raises ConfigurationError."""
        if secret is None and jwks is None:
            raise ConfigurationError(
                "no key to verify tokens with; set OUTBOX_JWT_SECRET, or OUTBOX_JWKS to a key set"
            )
        self._secret = None if secret is None else _Key(secret, _SHARED)
        self._by_id = {} if jwks is None else read_key_set(jwks)

    def verify(self, token: str, now: float) -> Claims:
        """What the token says. Raises TokenRefused."""
        try:
            if len(token) > TOKEN_BYTES_MAX:
                raise TokenRefused(TOKEN_MALFORMED)
            header = jwt.get_unverified_header(token)
            key = self._key(header)
            if key is None:
                raise TokenRefused(TOKEN_FORGED)
            claims = jwt.decode(
                token, key.material, algorithms=sorted(key.algorithms), options=_OURS
            )
        except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError, jwt.InvalidKeyError) as error:
            raise TokenRefused(TOKEN_FORGED) from error
        except (jwt.InvalidTokenError, ValueError, TypeError) as error:
            raise TokenRefused(TOKEN_MALFORMED) from error
        return _read_claims(claims, now)

    def _key(self, header: Mapping[str, Any]) -> _Key | None:
        named = self._by_id.get(str(header.get("kid")))
        for key in (named, self._secret):
            if key is not None and header.get("alg") in key.algorithms:
                return key
        return None


def _read_claims(claims: Mapping[str, Any], now: float) -> Claims:
    role, exp, sub = claims.get("role"), claims.get("exp"), claims.get("sub")
    if not isinstance(role, str) or not role or not _is_number(exp):
        raise TokenRefused(TOKEN_INCOMPLETE)
    assert isinstance(exp, int | float)
    if exp <= now:
        raise TokenRefused(expired(int(now - exp)))
    if "iat" in claims and not _is_number(claims["iat"]):
        raise TokenRefused(TOKEN_MALFORMED)
    subject = sub if isinstance(sub, str) else "" if sub is None else json.dumps(sub)
    return Claims(role, exp, subject, json.dumps(claims))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_key_set(text: str) -> dict[str, _Key]:
    """Keys by id, of a JSON Web Key Set. Raises ConfigurationError."""
    try:
        keys = json.loads(text)["keys"]
        return {str(key["kid"]): _Key(jwt.PyJWK(key).key, _BY_TYPE[key["kty"]]) for key in keys}
    except (ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
        raise ConfigurationError(
            "OUTBOX_JWKS is no key set; write a file or JSON of the form"
            ' {"keys": [{"kid": ..., "kty": ..., ...}]}'
        ) from error

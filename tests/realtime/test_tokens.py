"""Whose word is taken: tokens signed, forged, expired, half empty."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from outbox.errors import ConfigurationError
from outbox.realtime.channel import Channel
from outbox.realtime.joining import TOKEN_FORGED, TOKEN_INCOMPLETE, TOKEN_MALFORMED
from outbox.realtime.tokens import TokenRefused, Verifier
from tests.realtime.scene import SECRET

NOW = 1_800_000_000.0
GOOD: dict[str, Any] = {"role": "authenticated", "exp": NOW + 60, "sub": "someone"}
OTHER = "another secret, which is as long as the longest hash asks, 64 bytes"

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def jwk(algorithm: Any, key: Any, kid: str) -> dict[str, Any]:
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


KEY_SET = json.dumps(
    {
        "keys": [
            jwk(jwt.algorithms.RSAAlgorithm, RSA, "r"),
            {**jwk(jwt.algorithms.ECAlgorithm, EC, "e"), "alg": "ES256"},
            jwk(jwt.algorithms.OKPAlgorithm, ED, "o"),
            {"kty": "oct", "kid": "s", "k": base64.urlsafe_b64encode(OTHER.encode()).decode()},
        ]
    }
)
BOTH = Verifier(SECRET, KEY_SET)


def signed(
    key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any
) -> str:
    claims = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return jwt.encode(claims, key, algorithm, headers={"kid": kid} if kid else None)


@pytest.mark.parametrize(
    "token",
    [
        signed(),
        signed(algorithm="HS512"),
        signed(RSA, "RS256", "r"),
        signed(RSA, "RS512", "r"),
        signed(EC, "ES256", "e"),
        signed(ED, "EdDSA", "o"),
        signed(OTHER, "HS256", "s"),
        signed(kid="unknown"),  # the secret's own, under whatever name
    ],
)
def test_a_token_of_a_known_key_is_believed(token: str) -> None:
    claims = BOTH.verify(token, NOW)
    assert (claims.role, claims.sub, claims.exp) == ("authenticated", "someone", NOW + 60)
    assert json.loads(claims.text) == GOOD


def unsigned(algorithm: str, kid: str | None = None) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    header = {"alg": algorithm, "typ": "JWT", **({"kid": kid} if kid else {})}
    return f"{part(header)}.{part(GOOD)}."


def by_public_key() -> str:
    """HS256 with the public key as the secret: what it looks like if the token may choose."""
    import hashlib
    import hmac

    head = unsigned("HS256", "r").rsplit(".", 1)[0]
    mac = hmac.new(PEM, head.encode(), hashlib.sha256).digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"


def tampered() -> str:
    head, _, mac = signed().split(".")
    body = base64.urlsafe_b64encode(json.dumps({**GOOD, "sub": "other"}).encode()).decode()
    return f"{head}.{body.rstrip('=')}.{mac}"


@pytest.mark.parametrize(
    "token",
    [
        signed(OTHER),
        signed(RSA, "RS256"),
        signed(RSA, "RS256", "e"),
        signed(EC, "ES256", "r"),
        unsigned("none"),
        unsigned("None", "r"),
        unsigned("HS256"),
        by_public_key(),
        tampered(),
    ],
)
def test_a_token_of_no_known_key_is_not(token: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        BOTH.verify(token, NOW)
    assert refused.value.refusal in {TOKEN_FORGED, TOKEN_MALFORMED}


@pytest.mark.parametrize("token", ["", "a", "a.b.c", "sb_publishable_x", "é.é.é", "x" * 20_000])
def test_what_is_no_token_is_called_that(token: str) -> None:
    with pytest.raises(TokenRefused) as refused:
        BOTH.verify(token, NOW)
    assert refused.value.refusal == TOKEN_MALFORMED


@pytest.mark.parametrize(
    "changes",
    [{"role": None}, {"role": ""}, {"role": 5}, {"exp": None}],
)
def test_role_and_expiry_are_needed(changes: dict[str, Any]) -> None:
    with pytest.raises(TokenRefused) as refused:
        BOTH.verify(signed(**changes), NOW)
    assert refused.value.refusal == TOKEN_INCOMPLETE


def test_an_expired_token_says_since_when() -> None:
    with pytest.raises(TokenRefused) as refused:
        BOTH.verify(signed(exp=NOW - 5), NOW)
    assert refused.value.refusal.reason == "InvalidJWTToken: Token has expired 5 seconds ago"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Verifier(None, None), "set OUTBOX_JWT_SECRET, or OUTBOX_JWKS"),
        (lambda: Verifier(None, "{}"), "OUTBOX_JWKS is no key set"),
        (lambda: Verifier(None, '{"keys": [{"kty": "RSA"}]}'), "OUTBOX_JWKS is no key set"),
        (lambda: Verifier(None, '{"keys": [{"kty": "X", "kid": "1"}]}'), "no key set"),
    ],
)
def test_keys_that_are_none_are_told(make: Callable[[], Verifier], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        make()


def test_a_token_is_looked_at_again_where_the_inbox_was_full() -> None:
    """A client that floods its channel at that moment would keep it for ever."""

    async def run() -> None:
        channel = Channel.__new__(Channel)
        channel.inbox = asyncio.Queue(1)
        channel.inbox.put_nowait(None)
        channel._look_at_token()
        assert channel._timer is not None
        channel._timer.cancel()

    asyncio.run(run())

"""Tokens as a login service would give them to the shop's users: JWT (RFC 7519) by HS256."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from typing import Any

LASTS_S = 3600


def sign(secret: str, user: str, lasts_s: float = LASTS_S) -> str:
    """A token of a user who has signed in, good for so many seconds."""
    claims = {"role": "authenticated", "sub": user, "exp": int(time.time() + lasts_s)}
    signed = f"{_part({'alg': 'HS256', 'typ': 'JWT'})}.{_part(claims)}"
    signature = hmac.digest(secret.encode(), signed.encode(), hashlib.sha256)
    return f"{signed}.{_text(signature)}"


def _part(value: dict[str, Any]) -> str:
    return _text(json.dumps(value).encode())


def _text(value: bytes) -> str:
    return urlsafe_b64encode(value).rstrip(b"=").decode()

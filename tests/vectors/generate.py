"""Builds `signatures.json`, the one file of signature vectors that every verifier's tests read.

Write it anew with `python -m tests.vectors.generate`; a test fails when the file differs. The
vectors `published_v1` and `published_v1a` come from the test suites of standard-webhooks and svix;
their expected signatures are literals in `tests/unit/test_signature.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from outbox.signature import parse_private_key, parse_secret, sign
from outbox.work import SigningKey

PATH = Path(__file__).with_name("signatures.json")

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = "whsec_b3V0Ym94IHRlc3Qgc2VjcmV0LCBub3QgcmVhbCEhISE="
UNPADDED = {
    "unpadded_31": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaS",
    "unpadded_34": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwBr",
}
PRIVATE = (
    "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
)
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
NOW = 1614265330
BODY = '{"test": 2432232314}'


def build() -> dict[str, Any]:
    """The whole file as data."""
    return {
        "private_key": PRIVATE,
        "public_key": PUBLIC,
        "now": NOW,
        "tolerance_s": 300,
        "sign": _signed(),
        "accept": _accepted(),
        "refuse": _refused(),
    }


def text() -> str:
    """The file as it is stored."""
    return json.dumps(build(), indent=2, ensure_ascii=False) + "\n"


def _key(written: str) -> SigningKey:
    if written.startswith("whsk_"):
        return SigningKey("ed25519", parse_private_key(written))
    return SigningKey("hmac", parse_secret(written))


def _sign(*keys: str, timestamp: int = NOW, body: str = BODY) -> str:
    return sign([_key(key) for key in keys], ID, timestamp, body.encode())


def _signed() -> list[dict[str, Any]]:
    cases: list[tuple[str, list[str], str]] = [
        ("published_v1", [SECRET], BODY),
        ("published_v1a", [PRIVATE], BODY),
        ("rotation", [SECRET, OTHER_SECRET, PRIVATE], BODY),
        ("empty_body", [SECRET, PRIVATE], ""),
        ("beyond_ascii", [SECRET, PRIVATE], '{"name": "Zoë — 東京 🙂"}'),
        *((name, [secret], BODY) for name, secret in UNPADDED.items()),
    ]
    return [
        {
            "name": name,
            "keys": keys,
            "id": ID,
            "timestamp": NOW,
            "body": body,
            "signature": _sign(*keys, body=body),
        }
        for name, keys, body in cases
    ]


def _case(
    name: str, keys: list[str], signature: str | None, error: str | None = None, **changed: Any
) -> dict[str, Any]:
    headers = {
        "webhook-id": changed.get("id", ID),
        "webhook-timestamp": changed.get("timestamp", str(NOW)),
        "webhook-signature": signature,
    }
    case: dict[str, Any] = {
        "name": name,
        "keys": keys,
        "headers": {header: value for header, value in headers.items() if value is not None},
        "body": changed.get("body", BODY),
    }
    return case if error is None else case | {"error": error}


def _at(offset_s: int) -> dict[str, str]:
    return {"timestamp": str(NOW + offset_s)}


def _accepted() -> list[dict[str, Any]]:
    right = _sign(SECRET)
    wrong = right.replace("E=", "A=")
    return [
        _case("v1", [SECRET], right),
        _case("v1a", [PUBLIC], _sign(PRIVATE)),
        _case("secret_without_prefix", [SECRET.removeprefix("whsec_")], right),
        _case("one_right_of_four", [SECRET], f"{wrong} v2,{right[3:]} {right} v1,"),
        _case("unknown_schemes_beside", [SECRET], f"v9,abc nonsense , {right} v1b,{right[3:]}"),
        _case("sender_rotates", [OTHER_SECRET], _sign(SECRET, OTHER_SECRET, PRIVATE)),
        _case("receiver_rotates", [OTHER_SECRET, SECRET], right),
        _case("either_scheme", [PUBLIC], _sign(SECRET, PRIVATE)),
        _case("five_minutes_old", [SECRET], _sign(SECRET, timestamp=NOW - 300), **_at(-300)),
        _case("five_minutes_ahead", [SECRET], _sign(SECRET, timestamp=NOW + 300), **_at(300)),
        *(_case(name, [secret], _sign(secret)) for name, secret in UNPADDED.items()),
    ]


def _refused() -> list[dict[str, Any]]:
    right, right_a = _sign(SECRET), _sign(PRIVATE)
    mismatch, malformed, missing = "SignatureMismatch", "HeaderMalformed", "HeaderMissing"
    return [
        _case("altered", [SECRET], right.replace("E=", "A="), mismatch),
        _case("truncated", [SECRET], right[:-7] + "awdd", mismatch),
        _case("without_its_padding", [SECRET], right.rstrip("="), mismatch),
        _case("right_digest_under_v2", [SECRET], right.replace("v1,", "v2,"), mismatch),
        _case("without_a_comma", [SECRET], right.replace(",", ""), mismatch),
        _case("only_spaces", [SECRET], "   ", mismatch),
        _case("not_base64", [SECRET], "v1,ä☃", mismatch),
        _case("not_base64_v1a", [PUBLIC], "v1a,ä☃ v1a, v1a,A v1a,AAAA", mismatch),
        _case("altered_v1a", [PUBLIC], right_a.replace("v1a,h", "v1a,i"), mismatch),
        _case("hmac_under_v1a", [PUBLIC], "v1a," + right[3:], mismatch),
        _case("ed25519_under_v1", [SECRET], "v1," + right_a[4:], mismatch),
        _case("other_secret", [OTHER_SECRET], right, mismatch),
        _case("other_scheme", [PUBLIC], right, mismatch),
        _case("altered_body", [SECRET], right, mismatch, body=BODY + " "),
        _case("altered_id", [SECRET], right, mismatch, id=ID + "k"),
        _case("altered_timestamp", [SECRET], right, mismatch, **_at(1)),
        _case("leading_zero", [SECRET], right, mismatch, timestamp=f"0{NOW}"),
        _case(
            "too_old", [SECRET], _sign(SECRET, timestamp=NOW - 301), "TimestampTooOld", **_at(-301)
        ),
        _case(
            "too_new", [SECRET], _sign(SECRET, timestamp=NOW + 301), "TimestampTooNew", **_at(301)
        ),
        *(
            _case(f"timestamp_{name}", [SECRET], right, malformed, timestamp=written)
            for name, written in {
                "word": "hello",
                "fraction": f"{NOW}.0",
                "negative": f"-{NOW}",
                "signed": f"+{NOW}",
                "spaced": f" {NOW}",
                "grouped": "1_614_265_330",
                "other_digits": "١٦١٤٢٦٥٣٣٠",
                "huge": "9" * 400,
            }.items()
        ),
        _case("id_with_a_dot", [SECRET], right, malformed, id=f"{ID}.1"),
        _case("id_too_long", [SECRET], right, malformed, id="m" * 257),
        _case("no_id", [SECRET], right, missing, id=None),
        _case("no_timestamp", [SECRET], right, missing, timestamp=None),
        _case("no_signature", [SECRET], None, missing),
        _case("empty_id", [SECRET], right, missing, id=""),
        _case("empty_timestamp", [SECRET], right, missing, timestamp=""),
        _case("empty_signature", [SECRET], "", missing),
        *(
            _case(f"{name}_secret", [secret], right, "UsageError")
            for name, secret in {
                "empty": "",
                "bare_prefix": "whsec_",
                "only_padding": "whsec_====",
                "blank": "  ",
                "undecodable": "whsec_***",
                "impossible_length": "whsec_AAAAA",
            }.items()
        ),
        _case("private_key_at_the_receiver", [PRIVATE], right_a, "UsageError"),
        _case("short_public_key", ["whpk_AAAA"], right_a, "UsageError"),
        _case("no_key", [], right, "UsageError"),
    ]


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")

"""Standard Webhooks signatures: the vectors, the independent package both ways, and strangers."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook

from outbox import errors, signature
from outbox.errors import UsageError, VerificationError
from outbox.signature import Verified, sign, verify
from outbox.work import SigningKey
from tests.vectors import generate

VECTORS: dict[str, Any] = json.loads(generate.PATH.read_text(encoding="utf-8"))
NOW = datetime.fromtimestamp(VECTORS["now"], UTC)
HMAC = SigningKey("hmac", b"k" * 32)
WHSEC = signature.format_secret(HMAC.material)
SEED = bytes(range(32))
ED25519 = SigningKey("ed25519", SEED)
WHPK = signature.format_public_key(signature.public_key(SEED))

ids = st.from_regex(r"[!-\-/-~]{1,60}", fullmatch=True)
secrets = st.binary(min_size=1, max_size=80)
bodies = st.binary(max_size=300)


def by_name(cases: list[dict[str, Any]]) -> Any:
    return [pytest.param(case, id=case["name"]) for case in cases]


def signing_key(written: str) -> SigningKey:
    if written.startswith("whsk_"):
        return SigningKey("ed25519", signature.parse_private_key(written))
    return SigningKey("hmac", signature.parse_secret(written))


def headers(message_id: str, timestamp: int, signatures: str) -> dict[str, str]:
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": signatures,
    }


def signed(body: bytes = b"{}", *keys: SigningKey) -> dict[str, str]:
    return headers("msg_1", VECTORS["now"], sign(keys or (HMAC,), "msg_1", VECTORS["now"], body))


# --- vectors ------------------------------------------------------------------------------------


def test_the_vector_file_is_what_the_generator_writes() -> None:
    assert generate.PATH.read_text(encoding="utf-8") == generate.text()


def test_the_published_vectors_come_out() -> None:
    """Literals of standard-webhooks `test_sign_function`, svix `test_asymmetric_key_signing`."""
    published = {case["name"]: case["signature"] for case in VECTORS["sign"]}
    assert published["published_v1"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert published["published_v1a"] == (
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
    )


@pytest.mark.parametrize("case", by_name(VECTORS["sign"]))
def test_signs_as_the_vectors_say(case: dict[str, Any]) -> None:
    keys = [signing_key(written) for written in case["keys"]]
    assert sign(keys, case["id"], case["timestamp"], case["body"].encode()) == case["signature"]


@pytest.mark.parametrize("case", by_name(VECTORS["accept"]))
def test_accepts_what_the_vectors_accept(case: dict[str, Any]) -> None:
    verified = verify(case["body"], case["headers"], case["keys"], now=lambda: NOW)
    stamp = datetime.fromtimestamp(int(case["headers"]["webhook-timestamp"]), UTC)
    assert verified == Verified(case["headers"]["webhook-id"], stamp, case["body"].encode())


@pytest.mark.parametrize("case", by_name(VECTORS["refuse"]))
def test_refuses_what_the_vectors_refuse(case: dict[str, Any]) -> None:
    with pytest.raises(getattr(errors, case["error"])) as caught:
        verify(case["body"], case["headers"], case["keys"], now=lambda: NOW)
    assert "\n" not in str(caught.value)
    for key in case["keys"]:
        assert len(key) < 10 or key not in str(caught.value)


# --- the independent package --------------------------------------------------------------------


@given(secrets, ids, st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_the_independent_package_verifies_what_we_sign(
    secret: bytes, message_id: str, body: str
) -> None:
    stamp = int(datetime.now(UTC).timestamp())
    made = sign([SigningKey("hmac", secret)], message_id, stamp, body.encode())
    peer = Webhook(signature.format_secret(secret))
    peer.verify(body, headers(message_id, stamp, made), json_parse=False)


@given(secrets, ids, st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_we_verify_what_the_independent_package_signs(
    secret: bytes, message_id: str, body: str
) -> None:
    made = Webhook(secret).sign(message_id, NOW, body)
    given_headers = headers(message_id, VECTORS["now"], made)
    verified = verify(body, given_headers, signature.format_secret(secret), now=lambda: NOW)
    assert verified.body == body.encode()


def test_the_independent_package_finds_its_signature_in_a_rotation() -> None:
    stamp = int(datetime.now(UTC).timestamp())
    made = sign([SigningKey("hmac", b"new" * 8), HMAC, ED25519], "msg_1", stamp, b"{}")
    assert Webhook(WHSEC).verify(b"{}", headers("msg_1", stamp, made)) == {}


# --- signing and verifying ----------------------------------------------------------------------


@given(st.lists(st.sampled_from([HMAC, ED25519]), min_size=1, max_size=4), ids, bodies)
def test_what_is_signed_verifies_with_each_key(
    keys: list[SigningKey], message_id: str, body: bytes
) -> None:
    made = headers(message_id, VECTORS["now"], sign(keys, message_id, VECTORS["now"], body))
    for key in keys:
        written = WHSEC if key is HMAC else WHPK
        assert verify(body, made, written, now=lambda: NOW).body == body


@given(bodies, bodies, st.sampled_from([(HMAC, WHSEC), (ED25519, WHPK)]))
def test_another_body_never_verifies(
    body: bytes, other: bytes, pair: tuple[SigningKey, str]
) -> None:
    assume(body != other)
    with pytest.raises(errors.SignatureMismatch):
        verify(other, signed(body, pair[0]), pair[1], now=lambda: NOW)


@given(
    st.dictionaries(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "x"]),
        st.text(max_size=60) | st.sampled_from(["1614265330", "v1,", "v1a,AAAA", "msg_1"]),
    ),
    st.binary(max_size=50) | st.text(max_size=50),
    st.sampled_from([WHSEC, WHPK]),
)
def test_whatever_a_stranger_sends_ends_as_a_verification_error(
    stranger: dict[str, str], body: bytes | str, key: str
) -> None:
    with pytest.raises(VerificationError) as caught:
        verify(body, stranger, key, now=lambda: NOW)
    assert str(caught.value).isprintable()


def test_a_dot_cannot_move_bytes_between_id_timestamp_and_body() -> None:
    """`a` + `.1614265330.` + `7.x` and `a.1614265330` + `.7.` + `x` are the same signed bytes."""
    made = sign([HMAC], "a", VECTORS["now"], b"1614265330.x")
    moved = headers(f"a.{VECTORS['now']}", VECTORS["now"], made)
    with pytest.raises(errors.HeaderMalformed):
        verify(b"x", moved, WHSEC, now=lambda: NOW)


@pytest.mark.parametrize("message_id", ["", "a.b", "a b", "a\r\nx: y", "ä", "m" * 257])
def test_an_id_that_could_confuse_is_not_signed(message_id: str) -> None:
    with pytest.raises(UsageError, match="webhook-id"):
        sign([HMAC], message_id, 1, b"")


@pytest.mark.parametrize(
    "keys",
    [[], [SigningKey("rsa", b"k")], [SigningKey("hmac", b"")], [SigningKey("ed25519", b"short")]],
)
def test_an_unusable_key_is_not_signed_with(keys: list[SigningKey]) -> None:
    with pytest.raises(UsageError):
        sign(keys, "msg_1", 1, b"")


def test_signing_with_one_key_does_not_change_the_next_signature() -> None:
    first = sign([HMAC], "msg_1", 1, b"body")
    sign([HMAC], "msg_2", 2, b"other")
    assert sign([HMAC], "msg_1", 1, b"body") == first


def test_the_tolerance_and_the_clock_are_arguments() -> None:
    late = NOW + timedelta(minutes=20)
    with pytest.raises(errors.TimestampTooOld, match="1200 s old"):
        verify(b"{}", signed(), WHSEC, now=lambda: late)
    verified = verify(b"{}", signed(), WHSEC, now=lambda: late, tolerance=timedelta(minutes=20))
    assert verified.timestamp == NOW


def test_a_fraction_beyond_the_tolerance_is_refused_both_ways() -> None:
    over = timedelta(minutes=5, microseconds=1)
    with pytest.raises(errors.TimestampTooOld):
        verify(b"{}", signed(), WHSEC, now=lambda: NOW + over)
    with pytest.raises(errors.TimestampTooNew):
        verify(b"{}", signed(), WHSEC, now=lambda: NOW - over)


def test_the_number_of_signatures_looked_at_is_bounded() -> None:
    made = signed()
    made["webhook-signature"] = "v1,x " * signature.SIGNATURES_MAX + made["webhook-signature"]
    with pytest.raises(errors.SignatureMismatch):
        verify(b"{}", made, WHSEC, now=lambda: NOW)


@pytest.mark.parametrize("broken", [chr(0xD800), chr(0xDC80)], ids=["high", "low"])
def test_text_that_no_encoding_holds_is_a_mismatch(broken: str) -> None:
    with pytest.raises(errors.SignatureMismatch):
        verify(broken, signed(), WHSEC, now=lambda: NOW)
    for scheme, key in (("v1", WHSEC), ("v1a", WHPK)):
        given_headers = signed() | {"webhook-signature": f"{scheme},{broken}"}
        with pytest.raises(errors.SignatureMismatch):
            verify(b"{}", given_headers, key, now=lambda: NOW)


def test_the_parsed_content_is_refused_with_advice() -> None:
    wrong: Any = {"type": "orders.updated"}
    with pytest.raises(UsageError, match="raw body"):
        verify(wrong, signed(), WHSEC, now=lambda: NOW)


# --- headers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spell",
    [str.upper, str.title, lambda name: "HTTP_" + name.upper().replace("-", "_")],
    ids=["upper", "title", "environ"],
)
def test_header_names_are_found_however_a_framework_spells_them(spell: Any) -> None:
    given_headers: dict[str, Any] = {spell(name): value for name, value in signed().items()}
    given_headers |= {"wsgi.version": (1, 0), "Host": "example.com"}
    assert verify(b"{}", given_headers, WHSEC, now=lambda: NOW).id == "msg_1"


def test_an_underscore_does_not_stand_for_a_hyphen() -> None:
    given_headers = {name.replace("-", "_"): value for name, value in signed().items()}
    with pytest.raises(errors.HeaderMissing):
        verify(b"{}", given_headers, WHSEC, now=lambda: NOW)


def test_a_header_that_stands_twice_is_refused() -> None:
    with pytest.raises(errors.HeaderMalformed, match="more than once"):
        verify(b"{}", signed() | {"Webhook-Id": "msg_2"}, WHSEC, now=lambda: NOW)


def test_values_that_are_bytes_or_numbers_are_read() -> None:
    given_headers: dict[str, Any] = signed()
    given_headers["webhook-id"] = b"msg_1"
    given_headers["webhook-timestamp"] = VECTORS["now"]
    assert verify(b"{}", given_headers, WHSEC, now=lambda: NOW).id == "msg_1"


# --- replay protection and the body -------------------------------------------------------------


def test_seen_is_asked_about_genuine_requests_only() -> None:
    asked: list[str] = []

    def seen(message_id: str) -> bool:
        asked.append(message_id)
        return False

    with pytest.raises(errors.SignatureMismatch):
        verify(b"forged", signed(), WHSEC, now=lambda: NOW, seen=seen)
    assert asked == []
    verify(b"{}", signed(), WHSEC, now=lambda: NOW, seen=seen)
    assert asked == ["msg_1"]


def test_what_was_processed_before_is_told_apart() -> None:
    with pytest.raises(errors.AlreadyProcessed, match="msg_1"):
        verify(b"{}", signed(), WHSEC, now=lambda: NOW, seen=lambda _id: True)


def test_the_body_decodes_as_json() -> None:
    body = b'{"type": "orders.updated"}'
    verified = verify(body, signed(body), WHSEC, now=lambda: NOW)
    assert verified.json() == {"type": "orders.updated"}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\xff", b"[" * 200_000])
def test_a_body_that_is_no_json_is_a_verification_error(body: bytes) -> None:
    verified = verify(body, signed(body), WHSEC, now=lambda: NOW)
    with pytest.raises(VerificationError, match="not JSON"):
        verified.json()


# --- keys ---------------------------------------------------------------------------------------


@given(secrets)
def test_secrets_survive_being_written_with_or_without_padding(secret: bytes) -> None:
    written = signature.format_secret(secret)
    assert signature.parse_secret(written) == secret
    assert signature.parse_secret(written.rstrip("=")) == secret


@given(st.binary(min_size=32, max_size=32))
def test_ed25519_keys_survive_being_written(seed: bytes) -> None:
    public = signature.public_key(seed)
    assert signature.parse_private_key(signature.format_private_key(seed)) == seed
    assert signature.parse_public_key(signature.format_public_key(public)) == public


def test_generated_keys_have_the_length_the_specification_asks_for() -> None:
    assert 24 <= len(signature.generate_hmac_secret(lambda n: b"r" * n)) <= 64
    assert len(signature.generate_ed25519_seed(lambda n: b"r" * n)) == 32


def test_a_private_key_whose_halves_differ_is_refused() -> None:
    forged = "whsk_" + base64.b64encode(SEED + b"\0" * 32).decode()
    with pytest.raises(UsageError, match="do not belong together"):
        signature.parse_private_key(forged)


@pytest.mark.parametrize("text", ["", " ", "whsec_"])
def test_an_empty_secret_is_named_as_such(text: str) -> None:
    with pytest.raises(UsageError, match="is empty"):
        signature.parse_secret(text)


@pytest.mark.parametrize("text", ["", "whsk_", "whsk_AAAA", "whpk_AAAA", WHSEC, "whsk_*"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        signature.parse_private_key(text)
    with pytest.raises(UsageError):
        signature.parse_public_key(text)

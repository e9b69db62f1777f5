"""Secrets at rest: what is sealed opens at its own place, with its own key, and nowhere else."""

from __future__ import annotations

import os
import pickle
import traceback
from base64 import b64encode
from collections.abc import Iterator
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from outbox.errors import ConfigurationError, KeyMissing, OutboxError
from outbox.secrets import KeyRing, secret_context

KEY = bytes(range(32))
OTHER = bytes(range(32, 64))
CONTEXT = secret_context("acme", "ep_1", "hmac")

parts = st.none() | st.text(max_size=20)


def text(*keys: bytes) -> str:
    return ",".join(b64encode(key).decode() for key in keys)


@given(st.binary(max_size=500), st.text(max_size=50))
def test_what_is_sealed_opens_at_the_same_place(plaintext: bytes, row_id: str) -> None:
    ring, context = KeyRing.from_text(text(KEY)), secret_context("acme", row_id, "hmac")
    sealed = ring.seal(plaintext, context=context)
    assert ring.open(sealed, context=context) == plaintext
    assert len(plaintext) < 4 or plaintext not in sealed


@given(parts, st.text(max_size=20), st.text(max_size=20), parts, st.text(max_size=20), st.text())
def test_two_places_never_share_a_context(
    org: str | None, row: str, field: str, org_2: str | None, row_2: str, field_2: str
) -> None:
    assume((org, row, field) != (org_2, row_2, field_2))
    assert secret_context(org, row, field) != secret_context(org_2, row_2, field_2)


def test_the_context_tells_apart_what_joined_text_would_not() -> None:
    contexts = {
        secret_context(None, "1", "f"),
        secret_context("null", "1", "f"),
        secret_context("None", "1", "f"),
        secret_context("", "1", "f"),
        secret_context('a","b', "1", "f"),
        secret_context("a", 'b","1', "f"),
        secret_context("a", "1", "f", table="endpoint"),
        secret_context("a", "1", "f"),
    }
    assert len(contexts) == 8
    row_id = UUID(int=7)
    assert secret_context("a", row_id, "f") == secret_context("a", str(row_id), "f")


def test_a_value_moved_to_another_place_does_not_open() -> None:
    ring = KeyRing.from_text(text(KEY))
    sealed = ring.seal(b"secret", context=CONTEXT)
    for other in (
        secret_context("rival", "ep_1", "hmac"),
        secret_context("acme", "ep_2", "hmac"),
        secret_context("acme", "ep_1", "authorization"),
    ):
        with pytest.raises(ConfigurationError, match="does not open"):
            ring.open(sealed, context=other)


@given(st.integers(min_value=0), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, mask: int) -> None:
    ring = KeyRing.from_text(text(KEY))
    sealed = bytearray(ring.seal(b"a secret", context=CONTEXT))
    sealed[position % len(sealed)] ^= mask
    with pytest.raises(ConfigurationError):
        ring.open(bytes(sealed), context=CONTEXT)


@given(st.binary(max_size=80))
def test_arbitrary_bytes_do_not_open_and_do_not_crash(sealed: bytes) -> None:
    with pytest.raises(ConfigurationError):
        KeyRing.from_text(text(KEY)).open(sealed, context=CONTEXT)


def test_the_header_is_authenticated_too() -> None:
    """Two rings that hold different keys under one id cannot be confused by a rewritten header."""
    ring = KeyRing.from_text(text(KEY, OTHER))
    sealed = ring.seal(b"a secret", context=CONTEXT)
    other_header = KeyRing.from_text(text(OTHER)).seal(b"", context=CONTEXT)[:5]
    with pytest.raises(ConfigurationError, match="does not open"):
        ring.open(other_header + sealed[5:], context=CONTEXT)


def test_nonces_come_from_the_source_given() -> None:
    nonces: Iterator[bytes] = iter([b"n" * 12, b"m" * 12])
    ring = KeyRing.from_text(text(KEY), random_bytes=lambda _n: next(nonces))
    first, second = (ring.seal(b"same", context=CONTEXT) for _ in range(2))
    assert (first[5:17], second[5:17]) == (b"n" * 12, b"m" * 12)
    assert first[17:] != second[17:]


def test_the_first_key_seals_and_all_open() -> None:
    old, both = KeyRing.from_text(text(KEY)), KeyRing.from_text(text(OTHER, KEY))
    sealed = old.seal(b"secret", context=CONTEXT)
    assert both.open(sealed, context=CONTEXT) == b"secret"
    assert not both.is_current(sealed)
    assert both.is_current(both.seal(b"secret", context=CONTEXT))


def test_reseal_moves_a_value_to_the_first_key_once() -> None:
    sealed = KeyRing.from_text(text(KEY)).seal(b"secret", context=CONTEXT)
    both = KeyRing.from_text(text(OTHER, KEY))
    moved = both.reseal(sealed, context=CONTEXT)
    assert moved != sealed
    assert both.reseal(moved, context=CONTEXT) == moved
    assert KeyRing.from_text(text(OTHER)).open(moved, context=CONTEXT) == b"secret"


def test_a_former_key_that_was_taken_away_is_asked_for_by_its_id() -> None:
    sealed = KeyRing.from_text(text(KEY)).seal(b"secret", context=CONTEXT)
    with pytest.raises(KeyMissing, match=sealed[1:5].hex()):
        KeyRing.from_text(text(OTHER)).open(sealed, context=CONTEXT)


@pytest.mark.parametrize("written", [None, "", "  ", ","])
def test_without_a_key_the_message_says_how_to_make_one(written: str | None) -> None:
    with pytest.raises(KeyMissing, match="openssl rand"):
        KeyRing.from_text(written)


@pytest.mark.parametrize(
    "written",
    ["secret-in-clear!", b64encode(b"x" * 31).decode(), b64encode(b"x" * 33).decode(), "ä" * 43],
)
def test_a_key_of_another_form_is_refused_without_being_shown(written: str) -> None:
    with pytest.raises(ConfigurationError, match="key 2 in OUTBOX_SECRET_KEY") as caught:
        KeyRing.from_text(f"{text(KEY)},{written}")
    shown = "".join(traceback.format_exception(caught.value, chain=True))
    assert caught.value.__cause__ is None
    assert written not in str(caught.value)
    assert text(KEY) not in shown


def test_the_same_key_twice_is_one_key_and_too_many_are_refused() -> None:
    assert repr(KeyRing.from_text(text(KEY, KEY))) == "KeyRing(1 keys)"
    with pytest.raises(ConfigurationError, match="more than"):
        KeyRing([bytes([n]) * 32 for n in range(17)])
    with pytest.raises(ConfigurationError, match="key 2"):
        KeyRing([KEY, b"short"])


def test_keys_stay_out_of_representations_and_pickles() -> None:
    ring = KeyRing.from_text(text(KEY))
    for shown in (repr(ring), str(ring), f"{ring!r}"):
        assert text(KEY) not in shown
        assert repr(KEY) not in shown
    with pytest.raises(TypeError):
        pickle.dumps(ring)


def test_a_generated_key_makes_a_ring() -> None:
    written = KeyRing.generate_text(os.urandom)
    assert KeyRing.from_text(written).open(
        KeyRing.from_text(f" {written} ,").seal(b"x", context=CONTEXT), context=CONTEXT
    ) == b"x"  # fmt: skip
    assert KeyRing.generate_text() != written


def test_every_error_is_one_line() -> None:
    ring = KeyRing.from_text(text(KEY))
    for sealed in (b"", b"\x02" + bytes(40), b"\x01" + bytes(40), ring.seal(b"", context="x")):
        with pytest.raises(OutboxError) as caught:
            ring.open(sealed, context=CONTEXT)
        assert "\n" not in str(caught.value)

"""The cache of opened endpoints."""

from __future__ import annotations

import pytest

from outbox.addressbook import ENTRIES_MAX, AddressBook, open_endpoint
from outbox.errors import ConfigurationError, KeyMissing
from outbox.secrets import KeyRing, secret_context
from outbox.store.attempts import StoredEndpoint, StoredKey
from outbox.store.endpoints import headers_context, key_context

RING = KeyRing([bytes(range(32))])


class Clock:
    """A clock that the test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def stored(number: int, *keys: StoredKey, revision: int = 1) -> StoredEndpoint:
    url = "https://hooks.example.com/in"
    return StoredEndpoint(number, "acme", url, None, 15.0, True, revision, keys)


def key(number: int, expires_in_s: float | None = None, org: str = "acme") -> StoredKey:
    sealed = RING.seal(b"s" * 32, context=key_context(org, number))
    return StoredKey(number, "hmac", sealed, expires_in_s)


def test_an_endpoint_is_loaded_once_and_again_when_its_revision_rises() -> None:
    book = AddressBook(RING, Clock())
    assert book.missing({(1, 1)}) == {1}
    book.add(stored(1, key(7)))
    assert book.missing({(1, 1)}) == set()
    assert book.missing({(1, 2)}) == {1}
    book.add(stored(1, key(7), revision=2))
    assert book.missing({(1, 1), (1, 2)}) == set()


def test_an_endpoint_is_loaded_again_when_a_key_ran_out() -> None:
    clock = Clock()
    book = AddressBook(RING, clock)
    book.add(stored(1, key(8), key(7, expires_in_s=60.0)))
    clock.now += 59.0
    found = book.find(1, 1)
    assert found is not None
    assert len(found.keys) == 2
    clock.now += 1.0
    assert book.find(1, 1) is None


def test_a_full_book_keeps_what_was_just_asked_for() -> None:
    """A batch finds some endpoints here and loads others: loading must not drop the first."""
    book = AddressBook(RING, Clock())
    for number in range(ENTRIES_MAX):
        book.add(stored(number))
    wanted = {(0, 1), (ENTRIES_MAX, 1), (ENTRIES_MAX + 1, 1)}
    for number in book.missing(wanted):
        book.add(stored(number))
    assert all(book.find(number, revision) is not None for number, revision in wanted)
    assert book.find(1, 1) is None, "the book grows without bound"


def test_what_is_sealed_is_opened_with_its_own_context() -> None:
    sealed = RING.seal(b'{"x-a": "b"}', context=headers_context("acme", 1))
    endpoint = open_endpoint(
        StoredEndpoint(1, "acme", "https://a.example/x", sealed, 2.5, False, 1, (key(7),)), RING
    )
    assert endpoint.headers == {"x-a": "b"}
    assert endpoint.keys[0].material == b"s" * 32
    assert endpoint.timeout.total_seconds() == 2.5


def test_a_secret_moved_from_another_row_or_organization_does_not_open() -> None:
    """I14: what lies in the wrong row signs nothing."""
    for wrong in (StoredKey(8, "hmac", key(7).sealed, None), key(7, org="other")):
        with pytest.raises(ConfigurationError):
            open_endpoint(stored(1, wrong), RING)


def test_without_a_key_nothing_is_opened() -> None:
    with pytest.raises(KeyMissing, match="OUTBOX_SECRET_KEY"):
        open_endpoint(stored(1), None)


def test_the_contexts_of_worker_and_store_are_the_same() -> None:
    assert key_context("acme", 7) == secret_context("acme", "7", "secret")

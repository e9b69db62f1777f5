"""The demo's counting: neither the database nor the receivers are believed alone."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import pytest

from outbox.demo.ledger import Account, Books, Latency, Receipt, Report, balance, percentile
from outbox.demo.receiver import Mailbox
from outbox.demo.view import sparkline
from outbox.errors import OutboxError

HEALTHY = frozenset({"/a"})
GOOD = Receipt("/a", first_at=10.5, accepted=1, verified=True)
BOOKS = Books(
    events=3,
    matched=frozenset({"x"}),
    committed_at={"x": 10.0},
    live=frozenset(),
    dead=frozenset(),
)


def test_delivered_is_what_both_sides_say() -> None:
    account = balance(BOOKS, {"x": GOOD}, HEALTHY)
    assert account == Account(1, 1, 0, 0, 0, 0, 1, Latency(500.0, 500.0))


@pytest.mark.parametrize(
    ("books", "receipts"),
    [
        (BOOKS, {}),
        (BOOKS, {"x": replace(GOOD, accepted=0)}),
        (replace(BOOKS, committed_at={}), {"x": GOOD}),
    ],
    ids=["the receiver never saw it", "the receiver refused it", "the journal does not say so"],
)
def test_what_one_side_alone_claims_is_lost(books: Books, receipts: dict[str, Receipt]) -> None:
    account = balance(books, receipts, HEALTHY)
    assert (account.delivered, account.lost) == (0, 1)


def test_live_and_dead_deliveries_are_not_lost() -> None:
    for name in ("live", "dead"):
        account = balance(
            replace(BOOKS, committed_at={}, **{name: frozenset({"x"})}),  # type: ignore[arg-type]
            {},
            HEALTHY,
        )
        assert account.lost == 0


def test_an_id_answered_twice_is_a_duplicate_and_an_unverified_one_counts_against_it() -> None:
    twice = replace(GOOD, accepted=2, verified=False)
    account = balance(BOOKS, {"x": twice}, HEALTHY)
    assert (account.delivered, account.duplicates, account.signatures_verified) == (1, 1, 0)


def test_only_healthy_receivers_count_for_the_latency() -> None:
    assert balance(BOOKS, {"x": replace(GOOD, path="/b")}, HEALTHY).latency_ms == Latency(
        None, None
    )


@pytest.mark.parametrize("wrong", ["phantoms", "forged"])
def test_what_is_wrong_apart_from_losses_fails_too(wrong: str) -> None:
    report = Report(1, 1, balance(BOOKS, {"x": GOOD}, HEALTHY), 1.0)
    report.check()
    with pytest.raises(OutboxError):
        replace(report, **{wrong: 1}).check()  # type: ignore[arg-type]
    unfinished = replace(report.account, unfinished=1)
    with pytest.raises(OutboxError, match="did not end"):
        replace(report, account=unfinished).check()


def test_a_receiver_refuses_what_does_not_verify_and_remembers_it() -> None:
    box = Mailbox(lambda body, _headers: body == b"good", "steady", 0.0)
    response = box.receive(b"bad", {"webhook-id": "x"})
    assert response is not None
    assert response.startswith(b"HTTP/1.1 401 ")
    assert (box.forged, box.accepted, box.seen["x"].verified) == (1, 0, 0)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(n) for n in range(1, 101)]
    assert (percentile(values, 0.50), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([3.0], 0.99) == 3.0
    assert percentile([], 0.5) is None


def test_the_sparkline_rises_with_its_values() -> None:
    assert sparkline(deque([0.0, 4.0, 8.0])) == "▁▅█"
    assert sparkline(deque()) == ""

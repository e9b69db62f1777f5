"""The demo's broadcasts: journal, table and screens are held against each other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from outbox.demo.channels import Channels
from outbox.demo.hearing import Broadcasts, Hearing, listen
from outbox.demo.screens import Screen
from outbox.demo.tokens import sign
from outbox.realtime.tokens import Verifier
from tests.realtime.scene import WITHIN_S, Scene, awaited, token

ROW = ("x", "orders:acme", True)
BOOKS = Broadcasts({"x": "acme"}, frozenset({"x"}), messages=[ROW])
HEARD = {("acme", "x"): 10.5}
TRIED = {"refused": 1, "admitted": 0, "cuts": 0}


def found(
    books: Broadcasts = BOOKS, heard: dict[tuple[str, str], float] = HEARD, **counts: int
) -> Hearing:
    return listen(books, heard, TRIED | counts, {"x": 10.0})


def test_a_broadcast_is_settled_written_and_heard() -> None:
    hearing = found()
    assert hearing == Hearing(settled=1, received=1, refused=1, waits_ms=[500.0])
    assert hearing.complaint is None
    assert hearing.document() == {"settled": 1, "received": 1, "of_another_organization": 0}


@pytest.mark.parametrize(
    "books",
    [
        replace(BOOKS, messages=[]),
        replace(BOOKS, messages=[ROW, ROW]),
        replace(BOOKS, messages=[("x", "orders:globex", True)]),
        replace(BOOKS, messages=[("x", "orders:acme", False)]),
        replace(BOOKS, settled=frozenset()),
    ],
    ids=["no row", "two rows", "on another's topic", "for everybody", "not settled"],
)
def test_what_is_not_one_private_message_of_its_organization_is_lost(books: Broadcasts) -> None:
    assert found(books).lost == 1
    assert found(replace(books, owed=frozenset({"x"}))).lost == 0


def test_what_a_screen_did_not_hear_is_wrong_unless_it_was_cut_off() -> None:
    """Realtime sends at most once, over a connection that stands it must."""
    assert found(heard={}).complaint == "1 broadcasts did not reach their screen"
    assert found(heard={}).lost == 0
    assert found(heard={}, cuts=1).complaint is None


@pytest.mark.parametrize("heard", [("globex", "x"), ("acme", "unknown")])
def test_what_is_heard_by_another_organization_is_wrong(heard: tuple[str, str]) -> None:
    hearing = found(heard=HEARD | {heard: 11.0})
    assert (hearing.received, hearing.crossed) == (1, 1)
    assert hearing.complaint == "1 broadcasts were heard by another organization"
    assert found(admitted=1).complaint is not None


def test_tokens_are_those_that_the_server_verifies() -> None:
    secret = "s" * 48
    claims = Verifier(secret, None).verify(sign(secret, "ada"), time.time())
    assert (claims.role, claims.sub) == ("authenticated", "ada")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not condition():
            await asyncio.sleep(0.005)


@awaited
async def test_a_screen_notes_what_it_hears_and_which_channels_let_it_in(shared: Scene) -> None:
    """The one is a member of acme alone, the other of both: its second join should be refused."""
    names = {"alice": "acme", "both": "acme"}
    screens = {
        name: Screen(org, f"orders:{org}", ["orders:globex"], token(name))
        for name, org in names.items()
    }
    watching = [
        asyncio.create_task(one.watch(f"{shared.ws}/websocket")) for one in screens.values()
    ]
    try:
        for one in screens.values():
            await asyncio.wait_for(one.ready.wait(), WITHIN_S)
        shared.send("orders:globex")
        shared.send("orders:acme")
        alice, both = screens["alice"], screens["both"]
        assert (alice.refused, alice.admitted, both.refused, both.admitted) == (1, 0, 0, 1)
        await until(lambda: len(both.heard) == 2 and len(alice.heard) == 1)
        assert alice.heard[0][:2] == both.heard[1][:2]
        for session in list(shared.server.sessions):
            session.hang_up(1012)
        await until(lambda: alice.cuts == both.cuts == 1)
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)


@awaited
async def test_the_wait_for_screens_ends_when_nothing_more_comes() -> None:
    channels = Channels(None, None, heard=dict(HEARD))  # type: ignore[arg-type]
    await channels.until_heard({("acme", "x")})
    await channels.until_heard({("acme", "x"), ("acme", "y")}, still_s=0.0)

"""Counts what became of every broadcast, from PostgreSQL and from the screens.

Three books are held against each other: what the journal settled, which messages stand in
`realtime.messages`, and what each organization's screen heard. A message that is not in the table
is lost. From there on Realtime delivers at most once: what a screen did not hear is told, and is
wrong only if no connection was cut. What the screen of another organization heard is always wrong.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from outbox.demo.scene import topic_of

Heard = tuple[str, str]
"""The organization of a screen, and the id of a message."""
Row = tuple[str, str, bool]
"""The id, the topic and `private` of a row of `realtime.messages`."""


@dataclass(frozen=True, slots=True)
class Broadcasts:
    """What PostgreSQL says of broadcasts: the organization of each delivery, which are settled and
    which still owed, and the messages of the table."""

    matched: Mapping[str, str]
    settled: frozenset[str] = frozenset()
    owed: frozenset[str] = frozenset()
    messages: Sequence[Row] = ()

    @property
    def written(self) -> frozenset[str]:
        """Settled deliveries that are exactly one private message of their organization."""
        times = Counter(key for key, _, _ in self.messages)
        return frozenset(
            key
            for key, topic, private in self.messages
            if key in self.settled and times[key] == 1 and private
            if (org := self.matched.get(key)) is not None and topic == topic_of(org)
        )

    @property
    def wanted(self) -> frozenset[Heard]:
        """What the screens should hear."""
        return frozenset((self.matched[key], key) for key in self.written)


@dataclass(frozen=True, slots=True)
class Hearing:
    """The count of broadcasts. `crossed` were heard by the screen of another organization;
    `unheard` were written and not heard by their own; `refused` and `admitted` are the screens'
    joins of other organizations' channels; `cuts` are connections that were lost."""

    settled: int = 0
    lost: int = 0
    received: int = 0
    unheard: int = 0
    crossed: int = 0
    refused: int = 0
    admitted: int = 0
    cuts: int = 0
    waits_ms: Sequence[float] = ()

    @property
    def complaint(self) -> str | None:
        """What is wrong apart from losses; None if nothing is."""
        if self.crossed:
            return f"{self.crossed} broadcasts were heard by another organization"
        if self.admitted:
            return f"{self.admitted} joins of another organization's channel were let in"
        if self.unheard and not self.cuts:
            return f"{self.unheard} broadcasts did not reach their screen"
        return None

    def document(self) -> dict[str, Any]:
        """Its part of `--json`."""
        return {
            "settled": self.settled,
            "received": self.received,
            "of_another_organization": self.crossed,
        }


def listen(
    books: Broadcasts,
    heard: Mapping[Heard, float],
    counts: Mapping[str, int],
    committed_at: Mapping[str, float],
) -> Hearing:
    """Hold the books against what was heard. Times are unix times."""
    wanted = books.wanted
    received = wanted & heard.keys()
    crossed: Collection[Heard] = [one for one in heard if books.matched.get(one[1]) != one[0]]
    return Hearing(
        settled=len(books.settled),
        lost=len(books.matched.keys() - books.written - books.owed),
        received=len(received),
        unheard=len(wanted - received),
        crossed=len(crossed),
        waits_ms=[(heard[one] - committed_at[one[1]]) * 1000 for one in received],
        **counts,
    )

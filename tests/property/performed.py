"""The machine with e-mail, documents and broadcasts: what no endpoint gets.

The real processors perform; their workers die before and after what cannot be undone, servers
refuse some of the recipients, connections break after the contents.
"""

from __future__ import annotations

from datetime import timedelta

from hypothesis import strategies as st
from hypothesis.stateful import rule

from outbox.outcome import Kind
from outbox.store.attempts import Settlement
from processors.pdf import RENDERED
from tests.property.machine import ORGS, fates, processes, some
from tests.property.model import Lease
from tests.property.operators import Operated, deaths
from tests.property.papers import CAST, MAIL, PAPER, End, PapersWorld, Server
from tests.property.world import Fate

replies = st.sampled_from(["ok", "ok", "later", "never"])


class Performed(Operated):
    """And kinds other than webhooks."""

    kind = PapersWorld
    world: PapersWorld

    def configure(self, concurrency: int, rate: float | None, delays: tuple[float, ...]) -> None:
        """Webhooks beside, mail of two policies, documents whose followers are mailed and told."""
        world, orders = self.world, ("orders.*", RENDERED)
        for org in ORGS:
            lane = world.endpoint(org, concurrency, None)
            world.subscribe(lane, patterns=("orders.*",), delays_s=delays)
            world.own(org, 1000, None, "pdf", PAPER, patterns=("orders.paid",), delays_s=delays)
            world.own(org, 1000, None, "broadcast", CAST, patterns=orders, delays_s=delays)
        world.own("a", concurrency, rate, "email", MAIL, patterns=orders, delays_s=delays)
        held = world.own("a", 1000, None, "email", MAIL, patterns=("orders.*",), delays_s=delays)
        world.held.add(held.id)

    @rule(
        which=some,
        replies=st.tuples(replies, replies),
        end=st.sampled_from([End.GOOD, *End]),
        fate=fates,
        who=processes,
    )
    def perform(self, which: int, replies: tuple[str, str], end: End, fate: Fate, who: int) -> None:
        """I3, I11: an attempt that dies, or whose settle does, or comes too late."""
        if not any(map(self.world.performs, self.running)):
            self.traffic(2, "a", 1000, 0)
        leases = list(filter(self.world.performs, self.running))
        if leases:
            self.end(leases[which % len(leases)], Server(replies, end), fate, who)

    @rule(replies=st.tuples(replies, replies), end=st.sampled_from([*End, End.LOST]))
    def tried_again(self, replies: tuple[str, str], end: End) -> None:
        """Attempts that end so, and those after them, with which nothing goes wrong."""
        self.traffic(1, "a", 1000, 0)
        for how in ((replies, end), ()):
            for lease in list(filter(self.world.performs, self.running)):
                self.end(lease, Server(*how), Fate.DONE, 0)
            self.world.pass_time(timedelta(hours=3))
            self.world.expire()
            self.sent += self.world.lease_due(1000)
            if self.sent:
                self.take(0, len(self.sent), False, Fate.DONE, 0)

    def end(self, lease: Lease, server: Server, fate: Fate, who: int) -> None:
        """Make an attempt, and settle it if its worker lives."""
        ended = self.world.attempt(lease, server)
        if ended is not None:
            self.world.settle([ended], fate, who)
        if ended is None or fate is Fate.DONE:
            del self.running[lease]
            self.past.append(lease)

    def judged(self, lease: Lease, kind: Kind, after_s: int | None, jitter: float) -> Settlement:
        if kind is Kind.DELIVERED and self.world.performs(lease):
            ended = self.world.attempt(lease, Server())
            assert ended is not None
            return ended
        return super().judged(lease, kind, after_s, jitter)

    @rule(dies=deaths)
    def broadcast(self, dies: int | None) -> None:
        """I11: the daemon dies before or after a statement."""
        self.world.broadcast(dies)

"""Name resolution on the event loop that a hostile name server cannot fill.

Owns one c-ares channel. Lookups are asynchronous sockets of c-ares, not threads of a pool, so a
name server that never answers costs one table entry and not a thread. Equal names in flight
share one lookup, the number in flight is bounded, each has its time budget. Names are taken as
written (no search domains); the hosts file is honoured.

Promises to tell three things apart: the name does not exist (the receiver's fault), its name
server does not answer (theirs too), our own resolver does not answer (ours, not charged).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from socket import SOCK_STREAM
from typing import Any, Protocol

import pycares
from pycares import errno

from processors.egress import Address
from processors.failures import Reason, RequestFailed

LOOKUP_BUDGET_S = 5.0
LOOKUPS_MAX = 1024
# A local resolver that restarts refuses for a moment; c-ares gives up on the spot.
AGAIN_MAX = 2
AGAIN_S = 0.03
TICK_S = 0.1

_ARES_ENOSERVER = 26  # ares.h: no name server configured; pycares does not name it
# c-ares could not hand the question to any server at all.
_NO_SERVER = frozenset(
    {_ARES_ENOSERVER, errno.ARES_ECONNREFUSED, errno.ARES_EFILE, errno.ARES_ENOMEM}
)
# The lookup ended on our side; nothing is known about the name.
_CUT_OFF = frozenset({errno.ARES_ECANCELLED, errno.ARES_EDESTRUCTION})


class Resolver(Protocol):
    """Turns a host name into addresses."""

    async def resolve(self, host: str, budget_s: float) -> Sequence[Address]:
        """All addresses of `host` within `budget_s` seconds. Raises RequestFailed with
        `dns_error`, `timeout`, `resolver_down` or `resolver_busy`."""


@dataclass(slots=True)
class _Lookup:
    """One question in flight. `answers` is set once; `started` is in loop time."""

    host: str
    answers: asyncio.Future[Sequence[Address]]
    started: float
    again: int = AGAIN_MAX
    probe: asyncio.TimerHandle | None = None


class CaresResolver:
    """A Resolver over c-ares with the system's name servers, or `servers` (`host:port`).

    Use it on one event loop; `close()` when done.
    """

    def __init__(
        self,
        servers: Sequence[str] | None = None,
        *,
        budget_s: float = LOOKUP_BUDGET_S,
        lookups_max: int = LOOKUPS_MAX,
    ) -> None:
        self._budget_s = budget_s
        self._lookups_max = lookups_max
        self._lookups: dict[str, _Lookup] = {}
        self._asked = 0
        self._answered_at = float("-inf")
        self._probing = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watched: set[int] = set()
        self._ticker: asyncio.TimerHandle | None = None
        # No `lookups` here: pycares 5.2 frees that string before c-ares copies it, and a channel
        # then skips DNS at random. Files before DNS is what c-ares takes from the system.
        # Half a budget a try leaves room for a second try, one lost datagram being common.
        self._channel = pycares.Channel(
            flags=pycares.ARES_FLAG_NOSEARCH,
            timeout=budget_s / 2,
            tries=2,
            servers=servers,
            sock_state_cb=self._watch,
        )

    async def resolve(self, host: str, budget_s: float) -> Sequence[Address]:
        """See `Resolver.resolve`; never longer than the resolver's own budget."""
        assert not self._closed, "the resolver is closed"
        loop = self._loop = asyncio.get_running_loop()
        lookup = self._lookups.get(host) or self._ask(host, loop)
        try:
            async with asyncio.timeout(min(budget_s, self._budget_s)):
                # Shielded: others may wait for the same name with more time left.
                return await asyncio.shield(lookup.answers)
        except TimeoutError:
            raise self._silence(lookup) from None

    def close(self) -> None:
        """Give up all lookups and free the channel. Idempotent. Call it while the loop lives."""
        if self._ticker is not None:
            self._ticker.cancel()
        for number in list(self._watched):
            self._watch(number, readable=False, writable=False)
        self._closed = True
        self._channel.close()

    def _ask(self, host: str, loop: asyncio.AbstractEventLoop) -> _Lookup:
        if self._asked >= self._lookups_max:
            raise RequestFailed(Reason.RESOLVER_BUSY, "too many name lookups are in flight")
        lookup = _Lookup(host, loop.create_future(), loop.time())
        # Nobody may be left waiting when the answer is an error; that is not a lost exception.
        lookup.answers.add_done_callback(_retrieve)
        self._put(lookup, loop)
        lookup.probe = loop.call_later(self._budget_s / 2, self._probe, loop)
        self._lookups[host] = lookup
        self._asked += 1
        if self._ticker is None:
            self._ticker = loop.call_later(TICK_S, self._tick, loop)
        return lookup

    def _watch(self, number: int, readable: bool, writable: bool) -> None:
        """c-ares says what it waits for on one of its sockets; nothing before it closes it."""
        if self._closed or self._loop is None or self._loop.is_closed():
            return  # the channel is being freed, perhaps on another thread
        process = self._channel.process_fd
        self._loop.remove_reader(number)
        self._loop.remove_writer(number)
        self._watched.discard(number)
        if readable:
            self._loop.add_reader(number, process, number, pycares.ARES_SOCKET_BAD)
        if writable:
            self._loop.add_writer(number, process, pycares.ARES_SOCKET_BAD, number)
        if readable or writable:
            self._watched.add(number)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let c-ares see its own timeouts, as long as something is in flight."""
        self._channel.process_fd(pycares.ARES_SOCKET_BAD, pycares.ARES_SOCKET_BAD)
        busy = self._asked > 0 or self._probing
        self._ticker = loop.call_later(TICK_S, self._tick, loop) if busy else None

    def _put(self, lookup: _Lookup, loop: asyncio.AbstractEventLoop) -> None:
        """Hand the question to c-ares, which may answer on the spot."""
        if self._closed:
            self._answered(lookup, loop, None, errno.ARES_EDESTRUCTION)
            return
        back = partial(_call_in_loop, loop, partial(self._answered, lookup, loop))
        self._channel.getaddrinfo(lookup.host, None, type=SOCK_STREAM, callback=back)

    def _answered(
        self, lookup: _Lookup, loop: asyncio.AbstractEventLoop, result: Any, code: int | None
    ) -> None:
        """c-ares is done with a lookup, well or badly."""
        if code in _NO_SERVER and lookup.again > 0 and not self._closed:
            lookup.again -= 1
            loop.call_later(AGAIN_S, self._put, lookup, loop)
            return
        self._asked -= 1
        self._lookups.pop(lookup.host, None)
        if lookup.probe is not None:
            lookup.probe.cancel()
        self._note_sign_of_life(code, loop)
        if lookup.answers.done():
            return
        failure = self._failure(lookup, code)
        if failure is None:
            lookup.answers.set_result([_address(node.addr) for node in result.nodes])
        else:
            lookup.answers.set_exception(failure)

    def _failure(self, lookup: _Lookup, code: int | None) -> RequestFailed | None:
        if code is None or code == errno.ARES_SUCCESS:
            return None
        if code == errno.ARES_ETIMEOUT:
            return self._silence(lookup)
        if code in _NO_SERVER or code in _CUT_OFF:
            return RequestFailed(Reason.RESOLVER_DOWN, "our name resolver cannot be reached")
        if code in {errno.ARES_ENOTFOUND, errno.ARES_ENODATA}:
            return RequestFailed(Reason.DNS_ERROR, "the host name has no address")
        return RequestFailed(Reason.DNS_ERROR, "the host name cannot be resolved")

    def _silence(self, lookup: _Lookup) -> RequestFailed:
        """Whose silence is it? If our resolver answered anything since, it is the name's."""
        if self._answered_at >= lookup.started:
            return RequestFailed(Reason.TIMEOUT, "the name server of the host does not answer")
        return RequestFailed(Reason.RESOLVER_DOWN, "our name resolver does not answer")

    def _probe(self, loop: asyncio.AbstractEventLoop) -> None:
        """Ask for the root, which every recursive resolver has at hand, to see if ours lives."""
        if self._probing or self._closed:
            return
        self._probing = True
        back = partial(_call_in_loop, loop, partial(self._probed, loop))
        self._channel.query(".", pycares.QUERY_TYPE_NS, callback=back)

    def _probed(self, loop: asyncio.AbstractEventLoop, _result: Any, code: int | None) -> None:
        self._probing = False
        self._note_sign_of_life(code, loop)

    def _note_sign_of_life(self, code: int | None, loop: asyncio.AbstractEventLoop) -> None:
        """Any answer, also "no such name" or "refused", shows that the resolver is there."""
        if code not in _NO_SERVER and code not in _CUT_OFF and code != errno.ARES_ETIMEOUT:
            self._answered_at = loop.time()


def _retrieve(answers: asyncio.Future[Sequence[Address]]) -> None:
    if not answers.cancelled():
        answers.exception()


def _call_in_loop(
    loop: asyncio.AbstractEventLoop,
    callback: Callable[[Any, int | None], None],
    result: Any,
    code: int | None,
) -> None:
    """c-ares calls back in the midst of its own work, and when it is freed on another thread,
    possibly after the loop has ended."""
    try:
        loop.call_soon_threadsafe(callback, result, code)
    except RuntimeError:  # the loop is closed: nobody waits any more
        return


def _address(numbers: Sequence[Any]) -> Address:
    """The address in a c-ares node: `(address, port)` or `(address, port, flow, scope)`."""
    text = numbers[0].decode("ascii") if isinstance(numbers[0], bytes) else numbers[0]
    if len(numbers) == 2:
        return IPv4Address(text)
    return IPv6Address(f"{text}%{numbers[3]}" if numbers[3] else text)

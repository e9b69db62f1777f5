"""The resolver tells a missing name, a silent name server and our own silent resolver apart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

import pytest

from processors.failures import OURS, Reason, RequestFailed
from processors.resolver import AGAIN_MAX, CaresResolver
from tests.net.conftest import Run
from tests.net.peers import NXDOMAIN, REFUSED, SERVFAIL, A, Answers, Dns, free_port, naming


@asynccontextmanager
async def resolving(
    answers: Answers, budget_s: float = 2.0
) -> AsyncIterator[tuple[CaresResolver, Dns]]:
    async with naming(answers) as dns:
        resolver = CaresResolver([dns.address], budget_s=budget_s)
        try:
            yield resolver, dns
        finally:
            resolver.close()


async def failure_of(resolver: CaresResolver, host: str, budget_s: float = 2.0) -> Reason:
    with pytest.raises(RequestFailed) as caught:
        await resolver.resolve(host, budget_s)
    return caught.value.reason


def test_both_families_are_answered(run: Run) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: ["192.0.2.1", "2001:db8::1"]) as (resolver, _):
            found = await resolver.resolve("both.test", 2.0)
            assert set(found) == {ip_address("192.0.2.1"), ip_address("2001:db8::1")}

    run(main())


def test_localhost_comes_from_the_hosts_file(run: Run) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: None) as (resolver, dns):
            found = await resolver.resolve("localhost", 2.0)
            assert all(address.is_loopback for address in found)
            assert dns.asked == []

    run(main())


def test_names_are_taken_as_written(run: Run) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: NXDOMAIN) as (resolver, dns):
            assert await failure_of(resolver, "short") is Reason.DNS_ERROR
            assert {name for name, _ in dns.asked} == {"short"}

    run(main())


@pytest.mark.parametrize("code", [NXDOMAIN, SERVFAIL, REFUSED, []])
def test_a_name_without_address_is_a_dns_error(run: Run, code: int | list[str]) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: code) as (resolver, _):
            assert await failure_of(resolver, "gone.test") is Reason.DNS_ERROR

    run(main())


def test_a_silent_name_server_behind_a_live_resolver_is_a_timeout(run: Run) -> None:
    async def main() -> None:
        answers: Answers = lambda name, _kind: [] if name == "" else None  # noqa: E731
        async with resolving(answers, budget_s=0.4) as (resolver, _):
            reason = await failure_of(resolver, "silent.test")
            assert reason is Reason.TIMEOUT
            assert reason not in OURS

    run(main())


def test_a_resolver_that_never_answers_is_our_own_fault(run: Run) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: None, budget_s=0.4) as (resolver, _):
            reason = await failure_of(resolver, "any.test")
            assert reason is Reason.RESOLVER_DOWN
            assert reason in OURS

    run(main())


def test_a_resolver_that_is_not_there_is_our_own_fault(run: Run) -> None:
    async def main() -> None:
        resolver = CaresResolver([f"127.0.0.1:{free_port()}"], budget_s=2.0)
        try:
            assert await failure_of(resolver, "any.test") is Reason.RESOLVER_DOWN
        finally:
            resolver.close()

    run(main())


def test_the_callers_budget_ends_the_wait(run: Run) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: None, budget_s=60.0) as (resolver, _):
            assert await failure_of(resolver, "any.test", 0.02) is Reason.RESOLVER_DOWN

    run(main())


def test_fifty_silent_names_do_not_delay_another(run: Run) -> None:
    async def main() -> None:
        answers: Answers = lambda name, kind: ["192.0.2.1"] if name == "good.test" else None  # noqa: E731
        async with resolving(answers, budget_s=5.0) as (resolver, _):
            stuck = [
                asyncio.create_task(resolver.resolve(f"n{number}.evil.test", 5.0))
                for number in range(50)
            ]
            await asyncio.sleep(0)
            found = await resolver.resolve("good.test", 5.0)
            assert found == [ip_address("192.0.2.1")]
            assert not any(task.done() for task in stuck)
            for task in stuck:
                task.cancel()
            await asyncio.gather(*stuck, return_exceptions=True)

    run(main())


def test_lookups_in_flight_are_bounded(run: Run) -> None:
    async def main() -> None:
        async with naming(lambda _name, _kind: None) as dns:
            resolver = CaresResolver([dns.address], budget_s=60.0, lookups_max=2)
            for number in range(2):
                await failure_of(resolver, f"n{number}.test", 0.01)
            assert await failure_of(resolver, "n2.test") is Reason.RESOLVER_BUSY
            resolver.close()

    run(main())


def test_equal_names_share_one_lookup(run: Run) -> None:
    async def main() -> None:
        async with resolving(lambda _name, _kind: ["192.0.2.1"]) as (resolver, dns):
            found = await asyncio.gather(*[resolver.resolve("one.test", 2.0) for _ in range(50)])
            assert all(addresses == found[0] for addresses in found)
            assert dns.count("one.test", A) == 1

    run(main())


def test_one_caller_giving_up_leaves_the_others_their_answer(run: Run) -> None:
    async def main() -> None:
        asked = asyncio.Event()

        def answers(_name: str, _kind: int) -> list[str] | None:
            asked.set()
            return ["192.0.2.1"]

        async with resolving(answers) as (resolver, _):
            first = asyncio.create_task(resolver.resolve("one.test", 2.0))
            second = asyncio.create_task(resolver.resolve("one.test", 2.0))
            await asyncio.sleep(0)
            first.cancel()
            assert await second == [ip_address("192.0.2.1")]
            assert asked.is_set()

    run(main())


def test_an_answer_after_the_loop_has_ended_disturbs_nobody() -> None:
    async def main() -> CaresResolver:
        resolver = CaresResolver([f"127.0.0.1:{free_port()}"], budget_s=0.2)
        asyncio.create_task(resolver.resolve("any.test", 5.0)).cancel()
        resolver._ask("late.test", asyncio.get_running_loop())
        return resolver

    asyncio.run(main()).close()


def test_a_resolver_that_comes_back_at_once_is_asked_again(run: Run) -> None:
    async def main() -> None:
        port = free_port()
        resolver = CaresResolver([f"127.0.0.1:{port}"], budget_s=5.0)
        refused = asyncio.create_task(resolver.resolve("back.test", 5.0))
        while not any(lookup.again < AGAIN_MAX for lookup in resolver._lookups.values()):
            await asyncio.sleep(0)
        async with naming(lambda _name, _kind: ["192.0.2.1"], port):
            assert await refused == [ip_address("192.0.2.1")]
        resolver.close()

    run(main())

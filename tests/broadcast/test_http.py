"""Broadcasts over http: batches with stable ids, what is refused, what is skipped in silence."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from outbox.broadcast import Broadcaster
from outbox.outcome import Kind, Outcome
from outbox.store.broadcasts import Message
from outbox.store.connect import connect_hot
from processors.broadcast import RealtimeRest, base_of
from tests.broadcast.conftest import Station
from tests.engine.mortal import Died
from tests.net.peers import Peer, client_of, serving

Answer = Callable[[str, Any], int]


def message(event: str = "orders.updated", *, private: bool = False, **payload: Any) -> Message:
    return Message(
        uuid4(), 1, "5s", None, "orders:acme", event, json.dumps(payload), private, False, None, 1
    )


class Said(list[tuple[str, Any]]):
    """Requests as (path, document), answered by a rule."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    async def script(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            head, _, body = request.partition(b"\r\n\r\n")
            path = head.split(b" ")[1].decode()
            assert b"authorization: Bearer key" in head
            assert b"apikey: key" in head
            self.append((path, json.loads(body)))
            status = self.answer(*self[-1])
            await peer.say(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}" % status)

    @property
    def batches(self) -> list[list[str]]:
        """The ids in each batch."""
        return [[m["id"] for m in document["messages"]] for _, document in self
                if "messages" in document]  # fmt: skip


def sending(
    answer: Answer, messages: Sequence[Message], *, rate: float = 100_000
) -> tuple[Said, list[Outcome]]:
    said = Said(answer)

    async def run() -> list[Outcome]:
        async with serving(said.script) as server, client_of(server) as client:
            url = f"http://127.0.0.1:{server.port}"
            return await RealtimeRest(client, url, "key", rate).send(messages)

    return said, asyncio.run(run())


def kinds(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    return [(outcome.kind.value, outcome.reason) for outcome in outcomes]


def test_a_batch_carries_the_ids_of_its_deliveries() -> None:
    messages = [message(n=n) for n in range(3)]
    said, outcomes = sending(lambda _path, _document: 202, messages)
    assert kinds(outcomes) == [("delivered", "broadcast")] * 3
    assert said == [
        (
            "/realtime/v1/api/broadcast",
            {
                "messages": [
                    {
                        "topic": "orders:acme",
                        "event": "orders.updated",
                        "payload": {"n": n},
                        "private": False,
                        "id": str(one.id),
                    }
                    for n, one in enumerate(messages)
                ]
            },
        )
    ]


def test_one_bad_message_does_not_sink_the_batch() -> None:
    """The server refuses the whole of it: halved until the bad one stands alone."""
    messages = [message(bad=n == 5) for n in range(8)]

    def answer(_path: str, document: Any) -> int:
        return 422 if any(m["payload"]["bad"] for m in document["messages"]) else 202

    said, outcomes = sending(answer, messages)
    assert [o.kind is Kind.REJECTED for o in outcomes] == [n == 5 for n in range(8)]
    assert len(said) == 7
    delivered = [m.id for m, o in zip(messages, outcomes, strict=True) if o.kind is Kind.DELIVERED]
    assert len(delivered) == 7


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (429, ("throttled", "http_429")),
        (401, ("retry", "http_401")),
        (403, ("retry", "http_403")),
        (500, ("retry", "http_500")),
        (413, ("rejected", "http_413")),
    ],
)
def test_what_the_server_says_decides(status: int, expected: tuple[str, str]) -> None:
    _, outcomes = sending(lambda _path, _document: status, [message()])
    assert kinds(outcomes) == [expected]
    assert (outcomes[0].after is not None) == (status == 429)


def test_nobody_listening_is_tried_again() -> None:
    async def run() -> list[Outcome]:
        async with serving(Said(lambda _p, _d: 202).script) as server:
            port = server.port
        async with client_of(server) as client:
            return await RealtimeRest(client, f"http://127.0.0.1:{port}", "key", 10).send(
                [message()]
            )

    [outcome] = asyncio.run(run())
    assert outcome.kind is Kind.RETRY


def test_a_private_message_that_may_not_be_sent_is_found_out() -> None:
    """A batch would be answered with 202 and skip it: the first goes where the server tells."""
    messages = [message("a/b", private=True), message(private=True), message(private=True)]
    said, outcomes = sending(lambda path, _d: 403 if "/events/" in path else 202, messages)
    assert kinds(outcomes) == [("retry", "http_403")] * 3
    assert [path for path, _ in said] == [
        "/realtime/v1/api/broadcast/orders%3Aacme/events/a%2Fb?private=true"
    ]


@pytest.mark.parametrize(("probe", "batched"), [(202, 2), (404, 3)])
def test_who_may_send_privately_is_asked_once(probe: int, batched: int) -> None:
    """A server that is too old to be asked gets the batch."""
    messages = [message(private=True) for _ in range(3)]
    said, outcomes = sending(lambda path, _d: probe if "/events/" in path else 202, messages)
    assert kinds(outcomes) == [("delivered", "broadcast")] * 3
    assert [len(ids) for ids in said.batches] == [batched]


def test_a_rate_is_kept_by_waiting_and_what_has_no_time_costs_nothing() -> None:
    slept: list[float] = []

    async def run() -> list[Outcome]:
        said = Said(lambda _p, _d: 202)
        now = [0.0]

        async def sleep(seconds: float) -> None:
            slept.append(round(seconds, 3))
            now[0] += seconds

        async with serving(said.script) as server, client_of(server) as client:
            url = f"http://127.0.0.1:{server.port}"
            offset = asyncio.get_running_loop().time()
            rest = RealtimeRest(client, url, "key", 2.0, clock=lambda: offset + now[0], sleep=sleep)
            return await rest.send([message() for _ in range(30)])

    outcomes = asyncio.run(run())
    assert slept == [0.0, *[1.0] * 9]
    assert [o.kind for o in outcomes] == [Kind.DELIVERED] * 20 + [Kind.INTERNAL] * 10


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://p.supabase.co", "https://p.supabase.co/realtime/v1"),
        ("http://127.0.0.1:4000/", "http://127.0.0.1:4000"),
        ("https://a.example/realtime/v1/", "https://a.example/realtime/v1"),
    ],
)
def test_a_url_may_say_where_the_server_stands(url: str, base: str) -> None:
    assert base_of(url) == base


# -- through the engine ----------------------------------------------------------------------------


class Recorded:
    """A transport that remembers, and answers by a rule."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.sent: list[UUID] = []

    async def send(self, messages: Sequence[Message]) -> list[Outcome]:
        self.sent += [m.id for m in messages]
        return [self.outcome] * len(messages)


def test_leased_sent_and_settled(station: Station) -> None:
    """No request inside a transaction; the order is that of events."""
    station.subscribe_broadcast(transport="http")
    station.emit(7)
    transport = Recorded(Outcome(Kind.DELIVERED, "broadcast"))
    station.broadcast(transport, http_max=3)
    assert len(transport.sent) == 7
    by_event = station.rows(
        "SELECT delivery_id FROM outbox.journal WHERE fact = 'delivered' ORDER BY event_id"
    )
    assert [row[0] for row in by_event] == transport.sent
    assert station.states() == {}
    station.check()


def test_a_server_that_does_not_answer_keeps_no_row_waiting(station: Station) -> None:
    for transport in ("http", "sql"):
        station.subscribe_broadcast(transport=transport)
    asked, answered = asyncio.Event(), asyncio.Event()

    class Stuck(Recorded):
        async def send(self, messages: Sequence[Message]) -> list[Outcome]:
            asked.set()
            await answered.wait()
            return await super().send(messages)

    async def run() -> None:
        caster = Broadcaster(http=Stuck(Outcome(Kind.DELIVERED, "broadcast")))
        connections = [await connect_hot(station.url, name) for name in ("sql", "http")]
        over_http = asyncio.create_task(caster.serve_http(connections[1]))
        station.emit()
        station.route(10)
        caster.ring()
        await asyncio.wait_for(asked.wait(), 20)
        over_sql = asyncio.create_task(caster.serve(connections[0]))
        async with asyncio.timeout(20):
            while not station.messages():
                await asyncio.sleep(0.01)
            answered.set()
            while station.states():
                await asyncio.sleep(0.01)
        for task in (over_http, over_sql):
            task.cancel()
        await asyncio.wait([over_http, over_sql])
        for connection in connections:
            await connection.raw.close()

    asyncio.run(run())
    station.check()


def test_what_failed_follows_its_policy(station: Station) -> None:
    station.subscribe_broadcast(transport="http", retry="5s")
    station.emit(2)
    station.broadcast(Recorded(Outcome(Kind.RETRY, "http_500")))
    assert station.states() == {"scheduled": 2}
    station.run("UPDATE outbox.delivery SET due_at = now()")
    station.broadcast(Recorded(Outcome(Kind.RETRY, "http_500")))
    assert station.rows("SELECT DISTINCT reason FROM outbox.dead_letter") == [("http_500",)]
    station.check()


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def send(self, messages: Sequence[Message]) -> list[Outcome]:
        raise self.error


def test_a_transport_that_breaks_costs_no_attempt_and_stops_nothing(station: Station) -> None:
    """A defect of ours: without this the daemon's broadcasts would end until it starts again."""
    station.subscribe_broadcast(transport="http", retry="5s")
    station.emit(2)
    station.broadcast(Raises(RuntimeError("broken")))
    assert station.states() == {"scheduled": 2}
    assert station.rows(
        "SELECT DISTINCT charged, reason FROM outbox.journal WHERE fact <> 'routed'"
    ) == [(False, "processor_error")]
    station.run("UPDATE outbox.delivery SET due_at = now()")
    station.broadcast(Recorded(Outcome(Kind.DELIVERED, "broadcast")))
    assert station.states() == {}
    station.check()


def test_a_daemon_that_died_with_them_leaves_leases_that_end(station: Station) -> None:
    station.subscribe_broadcast(transport="http")
    station.emit()

    with pytest.raises(Died):
        station.broadcast(Raises(Died()))
    assert station.states() == {"leased": 1}
    expired = station.expire(station.now().replace(year=2100))
    assert (expired.started, expired.unstarted) == (1, 0)
    station.check()

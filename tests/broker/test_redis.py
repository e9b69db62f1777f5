"""What the Redis courier promises beyond the common: round trips, the bell, faults."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import structlog
import trustme
from dramatiq import Message
from dramatiq.brokers.redis import RedisBroker

from outbox.embedded import EmbeddedRedis
from outbox.errors import BrokerUnavailable
from processors.broker import Batch, Courier, open_broker, over_redis
from processors.broker.courier import IDS_PER_MESSAGE
from tests.broker.helpers import Receiver, new_ids, proxy_to, wait_until


@pytest.fixture
def courier(redis_url: str) -> Iterator[Courier]:
    opened = open_broker(redis_url)
    yield opened
    opened.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as opened:
        yield opened


def test_a_send_is_one_round_trip(redis_server: EmbeddedRedis) -> None:
    with proxy_to(redis_server.port) as proxy:
        url = redis_server.url.replace(f":{redis_server.port}/", f":{proxy.port}/")
        courier = open_broker(url)
        courier.send([Batch(1, new_ids(1))])  # connects
        proxy.hold(b"EXEC")
        # No reply passes before the last command: a sender that waited for one would time out.
        courier.send([Batch(token, new_ids(2 * IDS_PER_MESSAGE + 1)) for token in range(5)])
        assert proxy.later == b""
        courier.close()


def test_messages_lie_as_dramatiq_itself_would_lay_them(
    courier: Courier, client: redis.Redis, redis_url: str
) -> None:
    ids = new_ids(2)
    courier.send([Batch(5, ids)])
    stock = RedisBroker(url=redis_url, namespace="stock", middleware=[])  # type: ignore[no-untyped-call]
    ours = Message.decode(str(next(iter(client.hvals("outbox:deliver.msgs")))).encode())
    stock.enqueue(ours)
    for suffix in ("", ".msgs"):
        assert client.type(f"outbox:deliver{suffix}") == client.type(f"stock:deliver{suffix}")
    [theirs_id] = client.lrange("stock:deliver", 0, -1)
    [ours_id] = client.lrange("outbox:deliver", 0, -1)
    theirs = Message.decode(str(client.hget("stock:deliver.msgs", str(theirs_id))).encode())
    assert theirs.options.keys() == ours.options.keys()
    assert ours.options["redis_message_id"] == ours_id
    stock.client.close()


def test_a_sleeping_consumer_is_woken_by_the_bell_not_by_its_poll(
    courier: Courier, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_redis, "POLL_S", 300.0)
    monkeypatch.setattr(over_redis, "_SOCKET_TIMEOUT_S", 400.0)
    receiver = Receiver()
    consumer = courier.consume(receiver)
    for token in range(1, 6):
        wait_until(lambda: client.info("clients")["blocked_clients"] == 1)
        courier.send([Batch(token, ids := new_ids(60))])
        receiver.wait_for(token, ids)
    assert consumer.stop()


def test_one_send_wakes_several_sleeping_consumers(
    courier: Courier, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_redis, "POLL_S", 300.0)
    monkeypatch.setattr(over_redis, "_SOCKET_TIMEOUT_S", 400.0)
    receiver = Receiver()
    receiver.open.clear()
    consumers = [courier.consume(receiver, threads=1) for _ in range(3)]
    wait_until(lambda: client.info("clients")["blocked_clients"] == 3)
    courier.send([Batch(1, new_ids(3 * IDS_PER_MESSAGE))])
    receiver.wait_entered(3)
    receiver.open.set()
    wait_until(lambda: client.info("clients")["blocked_clients"] == 3)
    assert [consumer.stop() for consumer in consumers] == [True] * 3


def test_the_bell_stays_short_and_expires(courier: Courier, client: redis.Redis) -> None:
    for token in range(30):
        courier.send([Batch(token, new_ids(51))])
    assert 1 <= client.llen("outbox:deliver.bell") <= 8
    assert 0 < client.ttl("outbox:deliver.bell") <= 10


def test_nothing_stays_behind_in_redis(courier: Courier, client: redis.Redis) -> None:
    receiver = Receiver()
    receiver.fails = lambda token: token % 2 == 0
    consumer = courier.consume(receiver)
    for token in range(20):
        courier.send([Batch(token, ids := new_ids(60))])
        receiver.wait_for(token, ids)
    consumer.stop()
    left = {str(key) for key in client.scan_iter()}
    assert left <= {"outbox:__heartbeats__", "outbox:deliver.bell"}


def test_two_namespaces_never_meet(redis_url: str) -> None:
    first, second = open_broker(redis_url, namespace="a"), open_broker(redis_url, namespace="b")
    at_first, at_second = Receiver(), Receiver()
    consumers = [first.consume(at_first), second.consume(at_second)]
    first.send([Batch(1, ids_a := new_ids(60))])
    second.send([Batch(2, ids_b := new_ids(60))])
    at_first.wait_for(1, ids_a)
    at_second.wait_for(2, ids_b)
    assert [consumer.stop() for consumer in consumers] == [True, True]
    assert {token for token, _ in at_first.calls} == {1}
    assert {token for token, _ in at_second.calls} == {2}
    first.close()
    second.close()


def test_after_a_flush_new_sends_arrive(courier: Courier, client: redis.Redis) -> None:
    receiver = Receiver()
    receiver.open.clear()
    consumer = courier.consume(receiver, threads=1)
    courier.send([Batch(1, new_ids(200))])
    receiver.wait_entered(1)
    client.flushall()
    client.script_flush()
    receiver.open.set()
    courier.send([Batch(2, ids := new_ids(200))])
    receiver.wait_for(2, ids)
    assert consumer.alive
    assert courier.depth() == 0
    assert consumer.stop()


def test_a_restart_of_redis_is_survived_with_a_log_line_a_change(
    redis_server: EmbeddedRedis, courier: Courier
) -> None:
    receiver = Receiver()
    with structlog.testing.capture_logs() as lines:
        consumer = courier.consume(receiver)
        wait_until(lambda: consumer.connected)
        redis_server.crash()
        wait_until(lambda: not consumer.connected)
        with pytest.raises(BrokerUnavailable) as refused:
            courier.send([Batch(1, new_ids(1))])
        assert str(refused.value).startswith("the broker at redis://127.0.0.1:")
        assert "\n" not in str(refused.value)
        redis_server.start()
        wait_until(lambda: consumer.connected)
        courier.send([Batch(2, ids := new_ids(120))])
        receiver.wait_for(2, ids)
        assert consumer.alive
        assert consumer.stop()
    events = [line["event"] for line in lines]
    assert events == ["broker_connected", "broker_unreachable", "broker_connected"]
    assert redis_server.password not in f"{lines}{refused.getrepr(chain=True)}"


def test_a_message_accepted_while_redis_was_away_does_not_hurt(
    redis_server: EmbeddedRedis, courier: Courier
) -> None:
    receiver = Receiver()
    receiver.open.clear()
    consumer = courier.consume(receiver, threads=2)
    courier.send([Batch(1, lost := new_ids(2 * IDS_PER_MESSAGE))])
    receiver.wait_entered(2)
    redis_server.crash()
    receiver.open.set()
    receiver.wait_for(1, lost)
    redis_server.start()
    wait_until(lambda: consumer.connected)
    courier.send([Batch(2, ids := new_ids(300))])
    receiver.wait_for(2, ids)
    assert consumer.stop()


def test_a_consumer_started_without_redis_waits_for_it(redis_server: EmbeddedRedis) -> None:
    courier = open_broker(redis_server.url)
    redis_server.stop()
    receiver = Receiver()
    consumer = courier.consume(receiver)
    assert consumer.alive
    redis_server.start()
    wait_until(lambda: consumer.connected)
    courier.send([Batch(1, ids := new_ids(1))])
    receiver.wait_for(1, ids)
    assert consumer.stop()
    courier.close()


def test_a_stop_returns_though_redis_is_down(redis_server: EmbeddedRedis, courier: Courier) -> None:
    consumer = courier.consume(Receiver())
    wait_until(lambda: consumer.connected)
    redis_server.crash()
    assert consumer.stop()


def test_tls_is_verified(redis_server: EmbeddedRedis, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with proxy_to(redis_server.port, tls=context) as proxy:
        url = f"rediss://:{redis_server.password}@127.0.0.1:{proxy.port}/0"
        stranger = open_broker(url)
        with pytest.raises(BrokerUnavailable, match="certificate verify failed") as refused:
            stranger.send([Batch(1, new_ids(1))])
        assert redis_server.password not in str(refused.value)
        trusting = open_broker(f"{url}?ssl_ca_certs={tmp_path / 'ca.pem'}")
        receiver = Receiver()
        consumer = trusting.consume(receiver)
        trusting.send([Batch(1, ids := new_ids(70))])
        receiver.wait_for(1, ids)
        assert consumer.stop()
        trusting.close()
        stranger.close()

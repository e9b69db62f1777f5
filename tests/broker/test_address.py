"""What `open_broker` refuses, and what its errors never say."""

from __future__ import annotations

import subprocess
import sys
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outbox.errors import BrokerUnavailable, ConfigurationError
from processors.broker import Batch, open_broker
from processors.broker.address import Address
from tests.broker.helpers import new_ids

SECRET = "s3cret-Tr0ub4dor"


@pytest.mark.parametrize(
    "url",
    [
        "",
        SECRET,
        f"user:{SECRET}@host",
        f"http://u:{SECRET}@host/",
        f"redis://u:{SECRET}@host:notaport/0",
        f"redis://u:{SECRET}@host:99999/0",
        f"redis://u:{SECRET}@host:6379/zero",
        f"redis://u:{SECRET}@host:6379/0?nonsense={SECRET}",
        f"redis://u:{SECRET}@host:6379/0?socket_timeout={SECRET}",
        f"rediss://u:{SECRET}@[host/0",
        f"amqp://u:{SECRET}@host:notaport",
        f"amqp://u:{SECRET}@host?heartbeat={SECRET}",
        f"amqps://u:{SECRET}@host?ssl_options={SECRET}",
    ],
)
def test_a_url_that_cannot_work_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        open_broker(url).consume(lambda token, ids: None)
    assert SECRET not in str(refused.getrepr(chain=True, showlocals=False, style="value"))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("namespace", ["", "1st", "a b", "a:b", "x" * 64, "a.DQ"])
def test_a_namespace_that_no_queue_can_bear_is_refused(namespace: str) -> None:
    with pytest.raises(ConfigurationError, match="namespace"):
        open_broker("memory://", namespace=namespace)


@given(password=st.text(st.characters(codec="utf-8"), min_size=4).filter(lambda p: "*" not in p))
def test_a_client_that_quotes_the_password_is_not_repeated(password: str) -> None:
    quoted = quote(password, safe="")
    address = Address.parse(f"redis://user:{quoted}@127.0.0.1:6379/0?x={quoted}")
    told = str(address.unavailable(ValueError(f"<{password}> and\n<{quoted}>")))
    assert "(<***> and <***>)" in told
    assert "\n" not in told
    assert address.place == "redis://127.0.0.1:6379/0"
    assert repr(address) == f"Address(scheme='redis', place='{address.place}')"


def test_an_unreachable_redis_is_one_line_without_the_password() -> None:
    courier = open_broker(f"redis://user:{SECRET}@127.0.0.1:1/0")
    for ask in (courier.depth, lambda: courier.send([Batch(1, new_ids(1))])):
        with pytest.raises(BrokerUnavailable) as refused:
            ask()
        told = str(refused.value)
        assert told.startswith("the broker at redis://127.0.0.1:1/0 cannot be used (")
        assert "\n" not in told
        assert SECRET not in str(refused.getrepr(chain=True, style="value"))
    courier.close()


def test_an_unreachable_rabbitmq_is_one_line_without_the_password() -> None:
    courier = open_broker(f"amqp://user:{SECRET}@127.0.0.1:1/%2F")
    with pytest.raises(BrokerUnavailable) as refused:
        courier.send([Batch(1, new_ids(1))])
    courier.close()
    assert "\n" not in str(refused.value)
    assert SECRET not in str(refused.getrepr(chain=True, style="value"))


def test_opening_connects_to_nothing_and_importing_loads_no_client() -> None:
    script = (
        "import sys, dramatiq.broker, processors.broker as b\n"
        "assert not {'redis', 'pika'} & sys.modules.keys(), 'a client was imported'\n"
        "b.open_broker('redis://127.0.0.1:1/0'); b.open_broker('amqp://127.0.0.1:1')\n"
        "assert dramatiq.broker.global_broker is None\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

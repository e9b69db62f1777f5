"""Each peer is here and is what it should be: one clear line for each that is not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pika
import psycopg
import redis

from outbox.embedded import EmbeddedPostgres


def test_a_second_major_version_of_postgresql_is_here(
    postgres: EmbeddedPostgres, peer_database: str
) -> None:
    with psycopg.connect(peer_database) as connection:
        assert connection.info.server_version // 10_000 != postgres.version
        assert connection.info.server_version >= 140_000


def test_a_redis_server_is_here(peer_redis_url: str) -> None:
    with redis.Redis.from_url(peer_redis_url) as client:
        assert client.ping()


def test_a_rabbitmq_server_is_here(peer_amqp_url: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(peer_amqp_url))
    connection.close()


def test_nginx_is_here(nginx_program: Path) -> None:
    assert subprocess.run([nginx_program, "-v"], check=False, capture_output=True).returncode == 0

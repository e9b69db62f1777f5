"""`outbox subscriptions add` for destinations that are no endpoint."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tests.cli.helpers import Outbox


@pytest.fixture(autouse=True)
def _database(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTBOX_DATABASE_URL", database)


BROADCAST = ("subscriptions", "add", "--kind", "broadcast", "--events", "orders.*")


def test_a_broadcast_needs_events_and_no_more(outbox: Outbox, database: str) -> None:
    added = outbox(*BROADCAST, "--json").json
    assert (added["kind"], added["endpoint"], added["org"], added["all_orgs"]) == (
        "broadcast", None, None, True,
    )  # fmt: skip
    assert added["config"] == {
        "prefix": "orders", "transport": "sql", "include": [], "private": True,
    }  # fmt: skip
    assert added["retry"] == "exp:base=1s,factor=2,cap=1m,attempts=12"
    listed = outbox("subscriptions", "list", "--json").json
    assert [row["id"] for row in listed] == [added["id"]]
    paused = outbox("subscriptions", "pause", str(added["id"]), "--json").json
    assert paused["state"] == "paused"
    with psycopg.connect(database) as connection:
        query = "SELECT count(*) FROM outbox.subscription_revision"
        assert connection.execute(query).fetchone() == (2,)


def test_options_and_a_file_say_the_same(outbox: Outbox, tmp_path: Path) -> None:
    options = ("--topic", "feed:{org_id}", "--include", "a,b", "--public", "--event-name", "x",
               "--coalesce", "250ms", "--org", "acme")  # fmt: skip
    by_options = outbox(*BROADCAST, *options, "--json").json
    path = tmp_path / "broadcast.toml"
    path.write_text(
        'topic = "feed:{org_id}"\ninclude = ["a", "b"]\nprivate = false\nevent_name = "x"\n'
        'coalesce = "250ms"\n'
    )
    by_file = outbox(*BROADCAST, "--config", str(path), "--org", "acme", "--json").json
    assert by_file["config"] == by_options["config"]
    assert by_file["config"]["coalesce_s"] == 0.25
    assert (by_file["org"], by_file["all_orgs"]) == ("acme", False)


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("--topic", "orders"), 2, "is not of the form orders:{org_id}"),
        (("--topic", "a:b:{org_id}"), 2, "is not of the form orders:{org_id}"),
        (("--topic", "orders:{org_id}:{type}"), 2, "is not of the form orders:{org_id}"),
        (("--transport", "http"), 2, "OUTBOX_REALTIME_URL"),
        (("--coalesce", "2h"), 2, "at most 1h"),
        (("--event-name", "x" * 256), 2, "1 to 255 bytes"),
        (("--endpoint", "1"), 2, "neither --endpoint"),
        (("--config", "/nowhere"), 2, "cannot read /nowhere"),
        (("--config", __file__), 2, "is not TOML"),
    ],
)
def test_a_mistake_is_one_line(outbox: Outbox, args: tuple[str, ...], code: int, says: str) -> None:
    ran = outbox(*BROADCAST, *args)
    assert (ran.code, ran.out) == (code, "")
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--kind", "fax", "--org", "a"), "there is no kind 'fax'"),
        (("--kind", "fax"), "either --org or --all-orgs"),
        (("--kind", "fax", "--org", "a", "--topic", "x:{org_id}"), "--topic is for broadcasts"),
        ((), "give --endpoint"),
        (("--endpoint", "1", "--concurrency", "3"), "give --endpoint"),
        (("--endpoint", "1", "--topic", "x:{org_id}"), "give --endpoint"),
    ],
)
def test_each_kind_has_its_own_options(outbox: Outbox, args: tuple[str, ...], says: str) -> None:
    ran = outbox("subscriptions", "add", "--events", "*", *args)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err

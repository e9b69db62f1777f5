"""`outbox adopt --release` and `outbox uninstall`: what they say and what they do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import psycopg
import pytest

from outbox.store.migrate import migrate
from tests.cli.helpers import Outbox


@pytest.fixture
def copied(make_database: Callable[[str | None], str]) -> str:
    """The copy of a database that owes three deliveries."""
    original = make_database(None)
    migrate(original)
    with psycopg.connect(original) as connection:
        connection.execute(
            "WITH s AS (INSERT INTO outbox.subscription (kind, lane, org_id, patterns, retry)"
            " VALUES ('pdf', 1, 'acme', '{*}', '1s') RETURNING id)"
            " INSERT INTO outbox.delivery (id, event_id, event_slot, subscription_id, revision,"
            " lane, org_id, state, due_at) SELECT gen_random_uuid(), n, 0, s.id, 1, 1, 'acme',"
            " 'scheduled', clock_timestamp() FROM s, generate_series(1, 3) n"
        )
    return make_database(original.rpartition("/")[2])


@pytest.mark.parametrize("as_json", [True, False])
def test_what_adopt_held_is_released_by_name(outbox: Outbox, copied: str, as_json: bool) -> None:
    adopted = outbox("adopt", "--instance", "staging", OUTBOX_DATABASE_URL=copied)
    assert adopted.code == 0
    assert "3 deliveries are held; to send them all the same: outbox adopt --release" in adopted.err
    args = ("adopt", "--release", "--instance", "staging", *(["--json"] if as_json else []))
    released = outbox(*args, OUTBOX_DATABASE_URL=copied)
    assert released.code == 0
    if as_json:
        assert released.json == {"released": 3}
    else:
        assert released.err == "released 3 deliveries\n"


def test_uninstall_says_what_is_owed_and_changes_nothing_until_told(
    outbox: Outbox, copied: str
) -> None:
    first = outbox("uninstall", OUTBOX_DATABASE_URL=copied)
    assert "would remove 3 deliveries still owed" in first.out
    assert "outbox uninstall --yes" in first.err
    done = outbox("uninstall", "--yes", OUTBOX_DATABASE_URL=copied)
    assert "removed 3 deliveries still owed" in done.out
    # The database that it was copied from uses them.
    assert "kept the roles outbox_owner" in done.err
    assert outbox("uninstall", OUTBOX_DATABASE_URL=copied).code == 2


def test_an_upgrade_that_finds_the_tables_locked_says_so(
    outbox: Outbox, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from outbox.store import migrate as module
    from outbox.store.statements import Migration, migrations

    more = Migration(99, "more", 1, "CREATE TABLE outbox.more ()")
    monkeypatch.setattr(module, "migrations", lambda: (*migrations(), more))
    with psycopg.connect(database, application_name="report") as long:
        long.execute("SELECT count(*) FROM outbox.delivery")
        patient = partial(module.migrate, pause=lambda _s: long.rollback())
        monkeypatch.setattr(module, "migrate", patient)
        done = outbox("migrate", OUTBOX_DATABASE_URL=database)
    assert done.code == 0, done.err
    assert done.out == "applied 0099_more\n"
    assert "waiting: the transaction of process" in done.err
    assert "(report)" in done.err

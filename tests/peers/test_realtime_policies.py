"""What only a PostgreSQL with ICU can have: collations for which different names are equal."""

from __future__ import annotations

import json

import psycopg
import pytest

from outbox.store.migrate import migrate
from outbox.store.realtime import require_shim


@pytest.mark.parametrize(("user_type", "org_type"), [("text", "blind"), ("blind", "text")])
def test_a_collation_that_takes_names_for_equal_lets_nobody_into_another_organization(
    peer_database: str, user_type: str, org_type: str
) -> None:
    migrate(peer_database)
    require_shim(peer_database, install=True)
    with psycopg.connect(peer_database, autocommit=True) as connection:
        connection.execute(
            "CREATE COLLATION blind"
            " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
        )
        types = {"text": "text", "blind": "text COLLATE blind"}
        connection.execute(
            f"CREATE TABLE m (who {types[user_type]}, org {types[org_type]});"
            " GRANT SELECT ON m TO authenticated; INSERT INTO m VALUES ('alice', 'acme');"
            " SELECT outbox.install_realtime_policies('orders', 'm', 'who', 'org')".encode()
        )
        found = []
        for who, org in (("alice", "acme"), ("ALICE", "acme"), ("alice", "ACME")):
            with connection.transaction(force_rollback=True):
                connection.execute("SELECT realtime.send('{}', 'e', %s)", [f"orders:{org}"])
                claims = json.dumps({"sub": who})
                connection.execute("SELECT set_config('request.jwt.claims', %s, true)", [claims])
                connection.execute("SET LOCAL ROLE authenticated")
                rows = connection.execute("SELECT 1 FROM realtime.messages").fetchall()
                found.append((who, org, len(rows)))
        assert found == [("alice", "acme", 1), ("ALICE", "acme", 0), ("alice", "ACME", 0)]

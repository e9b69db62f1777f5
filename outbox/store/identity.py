"""Knows which installation a database belongs to, so that a copy never sends to real customers.

The newest epoch in `outbox.installation` holds the instance's name, the cluster's system identifier
and the database's oid. A restored, branched or templated copy differs in one of them: a daemon
refuses it until `adopt` opens an epoch of its own and holds everything the copy would still send.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg

from outbox.errors import SchemaMismatch, UsageError, WrongInstance
from outbox.store.connect import connect, translated
from outbox.store.statements import statement


class _Identity(NamedTuple):
    instance: str
    system_identifier: str
    database_oid: int
    here_system_identifier: str
    here_database_oid: int


@dataclass(frozen=True, slots=True)
class Adopted:
    """What `adopt` did: the new epoch, and how many live deliveries it held."""

    epoch: int
    held: int


def check_identity(connection: psycopg.Connection[Any], instance: str) -> None:
    """Raise WrongInstance if this database is a copy or belongs to another instance."""
    _judge(_read(connection), instance)


def broker_namespace(connection: psycopg.Connection[Any]) -> str:
    """The namespace of this installation's messages in a broker: no two installations share one,
    so that a copy of a database, or another database, never takes messages it cannot use."""
    row = connection.execute(
        "SELECT 'outbox-' || left(translate(salt::text, '-', ''), 12) FROM outbox.installation"
        " ORDER BY epoch DESC LIMIT 1"
    ).fetchone()
    assert row is not None
    return str(row[0])


def adopt(url: str, instance: str) -> Adopted:
    """Make a copied database an installation of its own, named `instance`.

    Everything it still owes is held with the reason `adopted`, also what is not routed yet; new
    events get delivery ids that the original never uses. All or nothing. Raises UsageError where
    the database already is this instance's own, because holding its deliveries would stop it.
    """
    with connect(url) as connection:
        connection.execute(statement("config_lock"))
        identity = _read(connection)
        if _difference(identity, instance) is None:
            raise UsageError(
                f"this database already belongs to instance {instance!r}: there is nothing to adopt"
            )
        epoch = _number(connection, "adopt_epoch", {"instance": instance})
        held = _number(connection, "adopt_hold", {"now": None})
    return Adopted(epoch, held)


def release_adopted(url: str) -> int:
    """Let go what `adopt` held; returns how many deliveries. Their age stood still meanwhile."""
    with connect(url) as connection:
        connection.execute(statement("config_lock"))
        return _number(connection, "adopt_release", {"now": None})


def _number(connection: psycopg.Connection[Any], name: str, params: dict[str, Any]) -> int:
    row = connection.execute(statement(name), params).fetchone()
    assert row is not None
    return int(row[0])


def _read(connection: psycopg.Connection[Any]) -> _Identity:
    with translated():
        return _identity(connection.execute(statement("identity")).fetchone())


def _identity(row: tuple[Any, ...] | None) -> _Identity:
    if row is None:
        raise SchemaMismatch("the schema outbox names no installation; run: outbox migrate")
    return _Identity(*row)


def _difference(identity: _Identity, instance: str) -> str | None:
    if identity.instance != instance:
        return f"belongs to instance {identity.instance!r}, and OUTBOX_INSTANCE is {instance!r}"
    if identity.system_identifier != identity.here_system_identifier:
        return f"was copied from another PostgreSQL cluster (instance {identity.instance!r})"
    if identity.database_oid != identity.here_database_oid:
        return f"is a copy of another database of this cluster (instance {identity.instance!r})"
    return None


def _judge(identity: _Identity, instance: str) -> None:
    difference = _difference(identity, instance)
    if difference is not None:
        raise WrongInstance(
            f"this database {difference}; nothing is sent from it. If it is to be an installation"
            " of its own, give it a name in OUTBOX_INSTANCE and run: outbox adopt"
        )

"""`outbox watch`, `outbox unwatch`, `outbox watches`: which tables are captured."""

from __future__ import annotations

from dataclasses import asdict

import click

from outbox.commands.base import (
    Names,
    Wiring,
    json_option,
    pass_wiring,
    print_json,
    print_rows,
    say,
)
from outbox.errors import UsageError

OPERATIONS = ("insert", "update", "delete", "truncate")


@click.command()
@click.argument("table", metavar="SCHEMA.TABLE")
@click.option("--org-column", metavar="COL", help="Column that holds the organization.")
@click.option("--type-prefix", metavar="P", help="Event types begin with P; default: the table.")
@click.option(
    "--subject-column",
    "subject_columns",
    metavar="COL",
    multiple=True,
    help="Column that names the subject, repeatable; default: the primary key.",
)
@click.option(
    "--on",
    "operations",
    type=Names(),
    default=OPERATIONS,
    metavar="OPERATION,..",
    help="Operations to capture; default: insert,update,delete,truncate.",
)
@click.option("--include", type=Names(), metavar="COL,..", help="Capture only these columns.")
@click.option("--exclude", type=Names(), metavar="COL,..", help="Capture all but these columns.")
@click.option("--when", "condition", metavar="SQL", help="Capture only rows for which this holds.")
@click.option("--old/--no-old", default=True, show_default=True, help="Keep the old record.")
@click.option(
    "--broadcast",
    type=click.Choice(["direct"]),
    help="Broadcast the changes from the transactions themselves, and capture nothing: no hop, no"
    " retry, two transaction ids a row. With --org-column, --topic and --include alone.",
)
@click.option(
    "--topic", metavar="PREFIX:{org_id}", help="With --broadcast.  [default: orders:{org_id}]"
)
@json_option
@pass_wiring
def watch(
    wiring: Wiring,
    table: str,
    org_column: str | None,
    type_prefix: str | None,
    subject_columns: tuple[str, ...],
    operations: tuple[str, ...],
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...] | None,
    condition: str | None,
    old: bool,
    broadcast: str | None,
    topic: str | None,
    as_json: bool,
) -> None:
    """Capture each change of a table as an event, in the transaction that makes it.

    The same call again changes nothing; another one replaces the options.
    """
    from outbox.store import watching
    from outbox.store.connect import connect

    for option, text in (("--org-column", org_column), ("--type-prefix", type_prefix)):
        if text == "":  # an unset shell variable must not take the organization off a table
            raise UsageError(f"{option} is empty; leave it out, or name what it stands for")
    if unknown := [name for name in operations if name not in OPERATIONS]:
        raise UsageError(f"--on {unknown[0]!r} is no operation; write {','.join(OPERATIONS)}")
    if broadcast is not None:
        given = (
            type_prefix,
            subject_columns,
            exclude,
            condition,
            operations != OPERATIONS,
            not old,
        )
        if any(given):
            raise UsageError("--broadcast direct takes --org-column, --topic and --include alone")
        _broadcast(wiring, table, org_column, topic, include or (), as_json)
        return
    if topic is not None:
        raise UsageError("--topic goes with --broadcast direct")
    with connect(wiring.database) as connection:
        changed = watching.watch(
            connection,
            table,
            org_column=org_column,
            type_prefix=type_prefix,
            subject_columns=subject_columns or None,
            operations=operations,
            include=include,
            exclude=exclude,
            condition=condition,
            old=old,
        )
    if as_json:
        print_json({"table": table, "changed": changed})
        return
    say(f"watching {table}" if changed else f"already watching {table}: nothing changed")
    if org_column is None:
        say("without --org-column its events reach only subscriptions made with --all-orgs")


def _broadcast(
    wiring: Wiring,
    table: str,
    org_column: str | None,
    topic: str | None,
    include: tuple[str, ...],
    as_json: bool,
) -> None:
    from outbox.store.connect import connect
    from outbox.store.watching import broadcast_direct

    prefix, colon, rest = (topic or "orders:{org_id}").partition(":")
    if colon != ":" or rest != "{org_id}":
        raise UsageError(f"--topic {topic!r} is not of the form orders:{{org_id}}")
    if org_column is None:
        raise UsageError("--broadcast direct needs --org-column: each topic is an organization's")
    with connect(wiring.database) as connection:
        broadcast_direct(
            connection, table, org_column=org_column, topic_prefix=prefix, include=include
        )
    if as_json:
        print_json({"table": table, "broadcast": "direct", "topic": f"{prefix}:{{org_id}}"})
    else:
        say(f"broadcasting {table} to {prefix}:{{org_id}}, directly")


@click.command()
@click.argument("table", metavar="SCHEMA.TABLE", required=False)
@click.option("--gone", is_flag=True, help="Clean up after watched tables that were dropped.")
@json_option
@pass_wiring
def unwatch(wiring: Wiring, table: str | None, gone: bool, as_json: bool) -> None:
    """Stop capturing a table; nothing of ours stays on it."""
    from outbox.store import watching
    from outbox.store.connect import connect

    if (table is None) is not gone:
        raise UsageError("name one table, or write --gone")
    with connect(wiring.database) as connection:
        if table is None:
            forgotten = watching.forget(connection)
            print_json({"forgotten": forgotten}) if as_json else say(f"removed {forgotten}")
            return
        changed = watching.unwatch(connection, table)
    if as_json:
        print_json({"table": table, "changed": changed})
    else:
        say(f"no longer watching {table}" if changed else f"{table} was not watched")


@click.command()
@json_option
@pass_wiring
def watches(wiring: Wiring, as_json: bool) -> None:
    """List the captured tables with their options and what is wrong with them."""
    from outbox.store import watching
    from outbox.store.connect import connect

    with connect(wiring.database) as connection:
        found = [asdict(watch) for watch in watching.watches(connection)]
    if as_json:
        print_json(found)
        return
    rows = [
        {
            "table": f"{row['schema']}.{row['table']}" if row["table"] else "(dropped)",
            "options": " ".join(f"{k}={v}" for k, v in row["options"].items() if v is not None),
            "problems": "; ".join(row["problems"]) or None,
        }
        for row in found
    ]
    print_rows(rows, ["table", "options", "problems"])

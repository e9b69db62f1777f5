"""`outbox migrate`, `outbox adopt`, `outbox uninstall`: the schema's life."""

from __future__ import annotations

from dataclasses import asdict

import click

from outbox.commands.base import Wiring, json_option, pass_wiring, print_json, say, takes_settings
from outbox.errors import SchemaMismatch, UsageError


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit code 6 if there is work to do.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the SQL of all migrations and exit.")
@json_option
@takes_settings("instance")
@pass_wiring
def migrate(wiring: Wiring, check: bool, as_sql: bool, as_json: bool) -> None:
    """Install or upgrade the schema `outbox`. Safe to run from two processes at once."""
    from outbox.store import migrate as store

    if check and as_sql:
        raise UsageError("--check and --sql exclude each other")
    if as_sql:
        click.echo(store.migration_sql(wiring.settings.instance), nl=False)
        return
    if not check:
        done = store.migrate(wiring.database, wiring.settings.instance, tell=say)
        _report("applied", done, as_json)
        return
    pending = store.pending_migrations(wiring.database)
    _report("pending", pending, as_json)
    if pending:
        raise SchemaMismatch(f"{len(pending)} migrations are pending; run: outbox migrate")


def _report(word: str, names: list[str], as_json: bool) -> None:
    if as_json:
        print_json({word: names})
        return
    for name in names:
        click.echo(f"{word} {name}")
    if not names:
        say("the schema is up to date")


@click.command()
@click.option("--release", is_flag=True, help="Release what an earlier adopt held.")
@json_option
@takes_settings("instance")
@pass_wiring
def adopt(wiring: Wiring, release: bool, as_json: bool) -> None:
    """Take over a copied database: give it an identity of its own and hold what it still owes.

    Nothing that the original owed is sent, until --release.
    """
    from outbox.store import identity

    if release:
        released = identity.release_adopted(wiring.database)
        print_json({"released": released}) if as_json else say(f"released {released} deliveries")
        return
    done = identity.adopt(wiring.database, wiring.settings.instance)
    if as_json:
        print_json({"instance": wiring.settings.instance, "epoch": done.epoch, "held": done.held})
        return
    say(
        f"this database is now instance {wiring.settings.instance!r}, epoch {done.epoch}; "
        f"{done.held} deliveries are held; to send them all the same: outbox adopt --release"
    )


@click.command()
@click.option("--yes", is_flag=True, help="Do it; without this, only show what would be removed.")
@json_option
@pass_wiring
def uninstall(wiring: Wiring, yes: bool, as_json: bool) -> None:
    """Remove triggers, schema and roles from the database. Shows what would go, unless --yes."""
    from outbox.store import migrate as store

    removal = store.removal(wiring.database)
    kept = store.uninstall(wiring.database) if yes else []
    if as_json:
        print_json({"removed": yes, **asdict(removal), "roles_kept": kept})
        return
    verb = "removed" if yes else "would remove"
    click.echo(f"{verb} the schema outbox with all events and its journal")
    for table in removal.watched:
        click.echo(f"{verb} capture on {table}")
    for what in removal.realtime:
        click.echo(f"{verb} {what}")
    for name, count in (
        ("events not yet routed", removal.pending),
        ("deliveries still owed", removal.live),
        ("dead letters", removal.dead),
    ):
        click.echo(f"{verb} {count} {name}")
    if kept:
        say(f"kept the roles {', '.join(kept)}: other databases use them, or you may not drop them")
    if not yes:
        say("nothing was changed; to remove all this: outbox uninstall --yes")

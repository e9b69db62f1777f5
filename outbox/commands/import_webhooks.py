"""`outbox import-webhooks`: from Supabase's database webhooks to endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from outbox.commands.base import (
    Wiring,
    json_option,
    pass_wiring,
    print_json,
    print_rows,
    say,
    takes_settings,
)

if TYPE_CHECKING:
    from outbox.store.webhook_triggers import Hook, Replaced


@click.command("import-webhooks")
@click.option("--apply", is_flag=True, help="Replace them, in one transaction; else only show.")
@click.option(
    "--org-column", metavar="COL", help="Column that holds the organization, where a table has it."
)
@takes_settings("secret_key", "egress_allow_cidrs", "egress_allow_http", "egress_ports", "ca_file")
@json_option
@pass_wiring
def import_webhooks(wiring: Wiring, apply: bool, org_column: str | None, as_json: bool) -> None:
    """Take over Supabase's database webhooks: show what they would become, or --apply it.

    Each becomes an endpoint that gets the same body and the same headers, now signed and tried
    again until it arrives. What cannot be kept as it is says why and is left alone.
    """
    from outbox.store.connect import connect
    from outbox.store.webhook_triggers import read_hooks, replace_hooks

    def check(url: str, headers: Mapping[str, str]) -> None:
        wiring.check_headers(headers)
        wiring.check_url(wiring.settings, url)

    replaced: list[Replaced] = []
    with connect(wiring.database, autocommit=True) as connection:
        hooks = read_hooks(connection, check)
        taken = [hook for hook in hooks if hook.problem is None]
        if apply and taken:
            ring = wiring.settings.key_ring()
            replaced = replace_hooks(connection, taken, ring, org_column)
    documents = [_document(hook, replaced) for hook in hooks]
    if as_json:
        print_json({"applied": apply, "webhooks": documents})
        return
    print_rows(
        [{**one, "becomes": _becomes(one)} for one in documents],
        ("table", "trigger", "becomes", "url", "problem"),
        empty="there is no trigger that calls supabase_functions.http_request",
    )
    _talk(documents, apply)


def _document(hook: Hook, replaced: list[Replaced]) -> dict[str, Any]:
    """A hook as it is told. Header values may be secret: their names are shown."""
    document: dict[str, Any] = {
        "table": hook.name,
        "trigger": hook.trigger,
        "url": hook.url,
        "events": list(hook.events),
        "body": "database-webhook",
        "headers": sorted(hook.headers),
        "timeout": hook.timeout,
        "condition": hook.when,
        "problem": hook.problem,
    }
    for one in replaced:
        if one.hook is hook:
            document |= {
                "endpoint": one.endpoint.id,
                "subscription": one.endpoint.subscription_id,
                "secret": one.endpoint.secret,
            }
    return document


def _becomes(document: Mapping[str, Any]) -> str | None:
    if "endpoint" in document:
        return f"endpoint {document['endpoint']}, secret {document['secret']}"
    return None if document["problem"] else ",".join(document["events"])


def _talk(documents: list[dict[str, Any]], applied: bool) -> None:
    left = sum(1 for one in documents if one["problem"])
    if applied:
        done = sum(1 for one in documents if "endpoint" in one)
        if done:
            say(f"replaced {done}; keep the secrets now: they are not shown again")
    elif len(documents) > left:
        say("nothing was changed; to replace them: outbox import-webhooks --apply")
    if left:
        say(f"{left} cannot be kept as they are and stay: see the problem")

"""`outbox subscriptions`: which events go where."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click

from outbox.commands.base import (
    Duration,
    PerSecond,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
    takes_settings,
)
from outbox.commands.rules import broadcast_options, read_rule, rule_options
from outbox.errors import UsageError

if TYPE_CHECKING:
    from outbox.store.deliveries import Aligned
    from outbox.store.subscriptions import Moved

ObjectId = click.IntRange(1, 2**63 - 1)
"""The id of an endpoint, a subscription or an event."""

org_option = click.option("--org", metavar="ORG", help="Only what belongs to this organization.")
removed_option = click.option("--removed", is_flag=True, help="Show removed ones too.")
after_option = click.option(
    "--after", type=click.IntRange(0), default=0, metavar="ID", help="Begin above this id."
)

CONFIG_CHARS_MAX = 256 * 1024

_COLUMNS = (
    "id",
    "kind",
    "endpoint",
    "org",
    "events",
    "filter",
    "state",
    "endpoint_state",
    "body",
    "order",
    "tags",
)


def aligned_fields(aligned: Aligned) -> dict[str, int]:
    """What became of deliveries, as it is printed."""
    return {
        "held": aligned.held,
        "released": aligned.released,
        "cancelled": aligned.cancelled,
    }


@click.group()
def subscriptions() -> None:
    """Add and manage subscriptions: which events go where."""


@subscriptions.command()
@click.option("--endpoint", type=ObjectId, metavar="ID", help="Where webhooks go.")
@click.option(
    "--kind",
    default="webhook",
    show_default=True,
    metavar="KIND",
    help="webhook, another kind of destination, or the name of a processor of yours.",
)
@click.option(
    "--config", "config_path", metavar="FILE|-", help="What the kind asks for, as TOML or JSON."
)
@click.option("--all-orgs", is_flag=True, help="Events of all organizations (not for webhooks).")
@click.option(
    "--concurrency",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="Deliveries at once (not for webhooks).",
)
@click.option("--rate", type=PerSecond(), help="Deliveries a second at most (not for webhooks).")
@click.option(
    "--timeout", type=Duration(), help="How long one attempt may take (not for webhooks)."
)
@broadcast_options
@rule_options
@takes_settings("imports")
@org_option
@json_option
@pass_wiring
def add(
    wiring: Wiring,
    /,
    endpoint: int | None,
    kind: str,
    config_path: str | None,
    all_orgs: bool,
    concurrency: int | None,
    rate: float | None,
    timeout: timedelta | None,
    topic: str | None,
    transport: str | None,
    include: tuple[str, ...] | None,
    private: bool | None,
    event_name: str | None,
    coalesce: str | None,
    org: str | None,
    as_json: bool,
    **rule_given: Any,
) -> None:
    """Subscribe an existing endpoint, or a destination of another kind, to events."""
    from outbox.store.connect import connect
    from outbox.store.subscriptions import add_kind, add_subscription, show_subscription

    broadcast = {
        "topic": topic,
        "transport": transport,
        "include": include,
        "private": private,
        "event_name": event_name,
        "coalesce": coalesce,
    }
    said = {name: value for name, value in broadcast.items() if value is not None}
    rule = read_rule(**rule_given)
    own: dict[str, Any] = {"concurrency": concurrency, "rate_per_s": rate, "timeout": timeout}
    given = {name: value for name, value in own.items() if value is not None}
    spec = None
    if kind != "webhook":
        is_broadcast = kind == "broadcast"
        # A broadcast goes to the topic of its event's organization, so that none need be named.
        everyone = all_orgs or (is_broadcast and org is None)
        if endpoint is not None or rule.body_format != 1 or (org is None) is not everyone:
            raise UsageError(
                f"a subscription of kind {kind} takes either --org or --all-orgs, and neither"
                " --endpoint nor --body"
            )
        if said and not is_broadcast:
            raise UsageError(f"--{next(iter(said)).replace('_', '-')} is for broadcasts")
        config = read_config(config_path) | said
        spec = replace(wiring.specify(wiring.settings, kind, config), **given)
        if spec.retry is not None and rule_given["retry"] is None:
            rule = replace(rule, retry=spec.retry)
    elif endpoint is None or config_path or given or said or all_orgs:
        raise UsageError(
            "a webhook goes to an endpoint, which has its limits: give --endpoint, and neither"
            " --config nor limits (outbox endpoints add makes one)"
        )
    with connect(wiring.database, autocommit=True) as connection:
        if spec is not None:
            added = add_kind(connection, spec, rule, org)
        else:
            assert endpoint is not None
            added = add_subscription(connection, endpoint, rule, org)
        fields = show_subscription(connection, added)
    print_json(fields) if as_json else print_fields(fields)


def read_config(path: str | None) -> dict[str, Any]:
    """What a file (`-` is stdin, None says nothing) says as TOML or JSON. Raises UsageError."""
    if path is None:
        return {}
    try:
        with click.open_file(path, encoding="utf-8") as file:
            text = file.read(CONFIG_CHARS_MAX + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read {path}: {reason}") from error
    if len(text) > CONFIG_CHARS_MAX:
        raise UsageError(f"{path} is longer than {CONFIG_CHARS_MAX} characters")
    is_json = text.lstrip().startswith("{")
    try:
        config = json.loads(text) if is_json else tomllib.loads(text)
    except ValueError as error:
        form = "JSON" if is_json else "TOML"
        raise UsageError(f"{path} is not {form}: {error}") from error
    assert isinstance(config, dict)
    return config


@subscriptions.command("list")
@click.option("--endpoint", type=ObjectId, metavar="ID", help="Only those of this endpoint.")
@click.option("--tag", metavar="TAG", help="Only those with this tag.")
@org_option
@removed_option
@after_option
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    endpoint: int | None,
    tag: str | None,
    org: str | None,
    removed: bool,
    after: int,
    as_json: bool,
) -> None:
    """List subscriptions, at most 1,000."""
    from outbox.store.connect import connect
    from outbox.store.subscriptions import LIST_MAX, list_subscriptions

    with connect(wiring.database, autocommit=True) as connection:
        rows = list_subscriptions(connection, org, endpoint, tag=tag, removed=removed, after=after)
    print_json(rows) if as_json else print_rows(rows, _COLUMNS)
    say_more(rows, LIST_MAX, "--after")


def say_more(rows: list[dict[str, Any]], rows_max: int, option: str) -> None:
    """Say how to see what comes after a full page."""
    if len(rows) >= rows_max:
        say(f"there may be more: add {option} {rows[-1]['id']}")


@subscriptions.command()
@click.argument("subscription", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def show(wiring: Wiring, subscription: int, org: str | None, as_json: bool) -> None:
    """Show one subscription."""
    from outbox.store.connect import connect
    from outbox.store.subscriptions import show_subscription

    with connect(wiring.database, autocommit=True) as connection:
        fields = show_subscription(connection, subscription, org)
    print_json(fields) if as_json else print_fields(fields)


def _change(wiring: Wiring, action: str, subscription: int, org: str | None, as_json: bool) -> None:
    from outbox.store import subscriptions as store
    from outbox.store.connect import connect

    actions: dict[str, Callable[..., Moved]] = {
        "pause": store.pause_subscription,
        "resume": store.resume_subscription,
        "remove": store.remove_subscription,
    }
    with connect(wiring.database, autocommit=True) as connection:
        moved = actions[action](connection, subscription, org)
    fields = {"id": subscription, "was": moved.was, "state": moved.state}
    fields |= aligned_fields(moved.deliveries)
    print_json(fields) if as_json else print_fields(fields)


@subscriptions.command()
@click.argument("subscription", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def pause(wiring: Wiring, subscription: int, org: str | None, as_json: bool) -> None:
    """Hold what is owed and what still matches."""
    _change(wiring, "pause", subscription, org, as_json)


@subscriptions.command()
@click.argument("subscription", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def resume(wiring: Wiring, subscription: int, org: str | None, as_json: bool) -> None:
    """Deliver again, what was held included."""
    _change(wiring, "resume", subscription, org, as_json)


@subscriptions.command()
@click.argument("subscription", type=ObjectId, metavar="ID")
@org_option
@json_option
@pass_wiring
def remove(wiring: Wiring, subscription: int, org: str | None, as_json: bool) -> None:
    """Remove a subscription and cancel what it is owed."""
    _change(wiring, "remove", subscription, org, as_json)

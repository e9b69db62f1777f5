"""`outbox subscriptions`: which events go to which endpoint. Also owns the options that describe
a rule, which `outbox endpoints add` shares."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from outbox.commands.base import (
    Duration,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
)

if TYPE_CHECKING:
    from outbox.store.deliveries import Aligned
    from outbox.store.subscriptions import Moved, Rule

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

ObjectId = click.IntRange(1, 2**63 - 1)
"""The id of an endpoint, a subscription or an event."""

org_option = click.option("--org", metavar="ORG", help="Only what belongs to this organization.")
removed_option = click.option("--removed", is_flag=True, help="Show removed ones too.")
after_option = click.option(
    "--after", type=click.IntRange(0), default=0, metavar="ID", help="Begin above this id."
)

_COLUMNS = ("id", "endpoint", "org", "events", "filter", "state", "endpoint_state", "body")


def rule_options(command: Decorated) -> Decorated:
    """The options that `read_rule` reads."""
    for option in reversed(_RULE):
        command = option(command)
    return command


_RULE = (
    click.option(
        "--events",
        required=True,
        metavar="TYPE,..",
        help="Event types by comma: exact, orders.* or *.",
    ),
    click.option(
        "--filter",
        "filter_text",
        metavar="JSONPATH",
        help="Only events whose payload fulfils this SQL/JSON path predicate, such as"
        " '$.record.total > 100'.",
    ),
    click.option(
        "--retry",
        metavar="SPEC",
        help="Delays such as 1s,5s,5m or exp:base=5s,factor=2,cap=1h,attempts=12."
        "  [default: 5s,5m,30m,2h,5h,10h,14h,20h,24h]",
    ),
    click.option("--max-age", type=Duration(), help="Give up when this much time has passed."),
    click.option(
        "--body",
        type=click.Choice(["standard", "database-webhook"]),
        default="standard",
        show_default=True,
        help="Form of the body.",
    ),
)


def read_rule(
    events: str, filter_text: str | None, retry: str | None, max_age: timedelta | None, body: str
) -> Rule:
    """The rule that the options describe. Raises UsageError."""
    from outbox.store.subscriptions import BODY_FORMATS, DEFAULT_RETRY, Rule, parse_patterns

    return Rule(
        patterns=parse_patterns(events),
        filter=filter_text,
        retry=retry if retry is not None else DEFAULT_RETRY,
        max_age=max_age,
        body_format=BODY_FORMATS[body],
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
    """Add and manage subscriptions: which events go to which endpoint."""


@subscriptions.command()
@click.option("--endpoint", type=ObjectId, required=True, metavar="ID", help="Where events go.")
@rule_options
@org_option
@json_option
@pass_wiring
def add(
    wiring: Wiring,
    endpoint: int,
    events: str,
    filter_text: str | None,
    retry: str | None,
    max_age: timedelta | None,
    body: str,
    org: str | None,
    as_json: bool,
) -> None:
    """Subscribe an existing endpoint to more events."""
    from outbox.store.connect import connect
    from outbox.store.subscriptions import add_subscription, show_subscription

    rule = read_rule(events, filter_text, retry, max_age, body)
    with connect(wiring.database, autocommit=True) as connection:
        added = add_subscription(connection, endpoint, rule, org)
        fields = show_subscription(connection, added)
    print_json(fields) if as_json else print_fields(fields)


@subscriptions.command("list")
@click.option("--endpoint", type=ObjectId, metavar="ID", help="Only those of this endpoint.")
@org_option
@removed_option
@after_option
@json_option
@pass_wiring
def list_(
    wiring: Wiring,
    endpoint: int | None,
    org: str | None,
    removed: bool,
    after: int,
    as_json: bool,
) -> None:
    """List subscriptions, at most 1,000."""
    from outbox.store.connect import connect
    from outbox.store.subscriptions import LIST_MAX, list_subscriptions

    with connect(wiring.database, autocommit=True) as connection:
        rows = list_subscriptions(connection, org, endpoint, removed=removed, after=after)
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

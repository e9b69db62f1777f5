"""The options that describe a rule: which events, how they are tried, and when. Shared by the
commands that add subscriptions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from outbox.commands.base import Duration, Names

if TYPE_CHECKING:
    from outbox.store.subscriptions import Rule

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

KEY_HELP = "org, type, subject, ordering_key or an SQL/JSON path into the payload"


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
    click.option(
        "--ordered",
        type=click.Choice(["block", "park", "skip"]),
        help="One after another by ordering key or captured row; and what the later ones do when"
        " one fails for good: wait, follow it into the dead letters, or go on.",
    ),
    click.option("--delay", type=Duration(), help="Try each delivery this much later."),
    click.option("--ttl", type=Duration(), help="Give up this long after a delivery was due."),
    click.option(
        "--priority",
        metavar="SECONDS|PATH",
        help="So many seconds ahead of others that are due: a number, or a path such as"
        " '$.priority'.",
    ),
    click.option("--tag", "tags", multiple=True, metavar="TAG", help="For lists; repeatable."),
    click.option(
        "--concurrency-key",
        "turn_key",
        metavar="KEY",
        help=f"Deliveries of one key take turns: {KEY_HELP}.",
    ),
    click.option(
        "--key-concurrency",
        "turns",
        type=click.IntRange(1, 10_000),
        metavar="N",
        help="So many of a key at once.  [default: 1]",
    ),
    click.option(
        "--once-key", metavar="KEY", help=f"Deliver only the first event of a key: {KEY_HELP}."
    ),
    click.option("--once-for", type=Duration(), help="How long a key of --once-key is used up."),
    click.option(
        "--debounce",
        type=Duration(),
        help="Deliver only the latest event of a key, when none has come for this long.",
    ),
    click.option("--debounce-key", metavar="KEY", help=f"That key: {KEY_HELP}."),
    click.option(
        "--debounce-max",
        type=Duration(),
        help="Deliver at the latest this long after the first.  [default: 10 times --debounce]",
    ),
)


def read_rule(
    *,
    events: str,
    filter_text: str | None,
    retry: str | None,
    max_age: timedelta | None,
    body: str,
    ordered: str | None,
    **options: Any,
) -> Rule:
    """The rule that the options describe. Raises UsageError."""
    from outbox.store.options import Options
    from outbox.store.subscriptions import BODY_FORMATS, DEFAULT_RETRY, Rule, parse_patterns

    return Rule(
        patterns=parse_patterns(events),
        filter=filter_text,
        retry=retry if retry is not None else DEFAULT_RETRY,
        max_age=max_age,
        body_format=BODY_FORMATS[body],
        order=ordered,
        options=Options(**options),
    )


_BROADCAST = (
    click.option(
        "--topic", metavar="PREFIX:{org_id}", help="Of a broadcast.  [default: orders:{org_id}]"
    ),
    click.option(
        "--transport", type=click.Choice(["sql", "http"]), help="Of a broadcast.  [default: sql]"
    ),
    click.option(
        "--include", type=Names(), help="Columns that a broadcast may carry.  [default: none]"
    ),
    click.option(
        "--private/--public", default=None, help="Who may join the topic.  [default: private]"
    ),
    click.option(
        "--event-name", metavar="NAME", help="Of a broadcast.  [default: the event's type]"
    ),
    click.option(
        "--coalesce",
        metavar="DURATION",
        help="Of the broadcasts of one subject within so much time, send the newest alone.",
    ),
)


def broadcast_options(command: Decorated) -> Decorated:
    """The options that describe a broadcast."""
    for option in reversed(_BROADCAST):
        command = option(command)
    return command

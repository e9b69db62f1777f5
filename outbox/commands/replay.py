"""`outbox replay`: deliver past events again."""

from __future__ import annotations

import getpass
import sys
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

import click

from outbox.commands.base import (
    Moment,
    PerSecond,
    Wiring,
    json_option,
    pass_wiring,
    print_fields,
    print_json,
    print_rows,
    say,
)
from outbox.commands.subscriptions import ObjectId, org_option
from outbox.errors import UsageError

if TYPE_CHECKING:
    from outbox.store.replay import Choice, Connection
    from outbox.store.replay_counts import Counted

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

_LOOK_S = 0.2
_GROUPS = ("subscription", "type", "fate", "n")
_SAMPLE = ("event", "type", "subscription", "delivery", "fate")
_REPLAYS = (
    "id",
    "state",
    "mode",
    "org",
    "progress",
    "events",
    "enqueued",
    "made_by",
    "made_at",
    "why",
)
_NESTED = ("filter", "counts")
_OURS = ("delivery_events", "from")
_ENQUEUED = ("due_now", "redriven", "redelivered", "re-emitted", "backfilled")


class _StartsByDefault(click.Group):
    """What is no command is what to replay: `outbox replay --type orders.*`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["start", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_StartsByDefault)
def replay() -> None:
    """Deliver past events again, as they are chosen; and follow, pause and end that.

    Without a command's name it is `start`: outbox replay --type orders.paid --dry-run.
    """


class _PastId(click.ParamType[object]):
    """The id of an event (a number) or of a delivery (a UUID)."""

    name = "id"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if isinstance(value, int | UUID):
            return value
        try:
            if value.isascii() and value.isdigit() and 0 < int(value) < 2**63:
                return int(value)
            return UUID(value)
        except ValueError:
            self.fail(f"{value!r} is neither an event's id nor a delivery's", param, ctx)


def _chooses(command: Decorated) -> Decorated:
    """The ways to choose past events."""
    options = (
        click.argument("ids", type=_PastId(), nargs=-1, metavar="[ID]..."),
        click.option("--type", "types", metavar="TYPE,..", help="Events of these types: orders.*."),
        click.option("--subject", help="Events about this, such as orders/42."),
        org_option,
        click.option("--subscription", type=ObjectId, metavar="ID", help="What this one got."),
        click.option("--endpoint", type=ObjectId, metavar="ID", help="What this one got."),
        click.option("--since", type=Moment(), help="Events from then on."),
        click.option("--until", type=Moment(), help="Events before then."),
        click.option("--all", "everything", is_flag=True, help="Everything in the log."),
        click.option("--missed", is_flag=True, help="Only what died, as while it was down."),
        click.option("--ignore-expiry", is_flag=True, help="What is past its expiry too."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _read_choice(
    ids: Sequence[object],
    types: str | None,
    subject: str | None,
    org: str | None,
    subscription: int | None,
    endpoint: int | None,
    since: datetime | None,
    until: datetime | None,
    everything: bool,
    missed: bool,
    ignore_expiry: bool,
) -> Choice:
    """What was chosen; nothing chosen is a mistake, not everything."""
    from outbox.store.replay import Choice
    from outbox.store.subscriptions import parse_patterns

    conditions = (types, subject, org, subscription, endpoint, since, until)
    if not ids and not everything and all(value is None for value in conditions):
        raise UsageError(
            "say which: ids, --type, --subject, --org, --subscription, --endpoint, --since,"
            " --until or --all"
        )
    if everything and ids:
        raise UsageError("--all and ids exclude each other")
    return Choice(
        events=tuple(i for i in ids if isinstance(i, int)),
        deliveries=tuple(i for i in ids if isinstance(i, UUID)),
        patterns=() if types is None else parse_patterns(types),
        subject=subject,
        org=org,
        subscription_id=subscription,
        endpoint_id=endpoint,
        since=since,
        until=until,
        missed=missed,
        ignore_expiry=ignore_expiry,
    )


@replay.command()
@_chooses
@click.option(
    "--mode",
    type=click.Choice(["redeliver", "re-emit", "backfill"]),
    default="redeliver",
    show_default=True,
    help="Under the same idempotency key; under a new one; or past events that a new subscription"
    " never got.",
)
@click.option("--dry-run", is_flag=True, help="Count alone, change nothing.")
@click.option("--reason", "why", metavar="TEXT", help="Why, required; it stays with the replay.")
@click.option("--id", "replay_id", metavar="NAME", help="Its id: the same id twice is one replay.")
@click.option(
    "--rate", type=PerSecond(), default="1000/s", show_default=True, metavar="N/s", help="At most."
)
@click.option("--detach", is_flag=True, help="Do not wait for its end.")
@json_option
@pass_wiring
def start(
    wiring: Wiring,
    /,
    mode: str,
    dry_run: bool,
    why: str | None,
    replay_id: str | None,
    rate: float,
    detach: bool,
    as_json: bool,
    **chosen: Any,
) -> None:
    """Deliver past events again: those that meet every condition, to whom they went.

    Look first with --dry-run. A replay runs in the daemon, behind live traffic, and goes on after a
    crash where it stood.
    """
    from outbox.store.connect import connect
    from outbox.store.replay import create_replay
    from outbox.store.replay_counts import count_replay

    choice = _read_choice(**chosen)
    with connect(wiring.database, autocommit=True) as connection:
        if dry_run:
            _show_counts(count_replay(connection, choice, mode), as_json)
            return
        if why is None:
            raise UsageError("say why with --reason TEXT; it stays with the replay")
        made = create_replay(
            connection, choice,
            why=why, mode=mode, replay_id=replay_id, rate_per_s=rate, made_by=_who(),
        )  # fmt: skip
        shown = made.replay
        if not made.new:
            say(f"the replay {shown['id']} exists already; this is that one")
        shown = shown if detach else _follow(connection, shown)
    _show(shown, as_json)


def _who() -> str | None:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a user without a name
        return None


@replay.command("list")
@org_option
@click.option(
    "--state",
    type=click.Choice(["running", "paused", "done", "aborted"]),
    help="Only those in this state.",
)
@json_option
@pass_wiring
def list_(wiring: Wiring, org: str | None, state: str | None, as_json: bool) -> None:
    """List replays, newest first."""
    from outbox.store.connect import connect
    from outbox.store.replay import list_replays

    with connect(wiring.database, autocommit=True) as connection:
        replays = list_replays(connection, org, state)
    if as_json:
        print_json(replays)
    else:
        print_rows([_row(one) for one in replays], _REPLAYS)


def _names_one(command: Callable[..., None]) -> Callable[..., None]:
    argument = click.argument("replay_id", metavar="ID")
    return argument(org_option(json_option(pass_wiring(command))))


@replay.command()
@_names_one
def show(wiring: Wiring, replay_id: str, org: str | None, as_json: bool) -> None:
    """Show one replay: what was asked for, how far it is, what became of the pairs."""
    from outbox.store.connect import connect
    from outbox.store.replay import show_replay

    with connect(wiring.database, autocommit=True) as connection:
        _show(show_replay(connection, replay_id, org), as_json)


@replay.command()
@_names_one
def pause(wiring: Wiring, replay_id: str, org: str | None, as_json: bool) -> None:
    """Stop a replay before its next batch."""
    from outbox.store.replay import pause_replay

    _move(wiring, pause_replay, replay_id, org, as_json)


@replay.command()
@_names_one
def resume(wiring: Wiring, replay_id: str, org: str | None, as_json: bool) -> None:
    """Go on with a paused replay where it stood."""
    from outbox.store.replay import resume_replay

    _move(wiring, resume_replay, replay_id, org, as_json)


@replay.command()
@_names_one
def abort(wiring: Wiring, replay_id: str, org: str | None, as_json: bool) -> None:
    """End a replay for good. What it enqueued stays enqueued."""
    from outbox.store.replay import abort_replay

    _move(wiring, abort_replay, replay_id, org, as_json)


def _move(
    wiring: Wiring,
    move: Callable[[Connection, str, str | None], str],
    replay_id: str,
    org: str | None,
    as_json: bool,
) -> None:
    from outbox.store.connect import connect
    from outbox.store.replay import show_replay

    with connect(wiring.database, autocommit=True) as connection:
        move(connection, replay_id, org)
        _show(show_replay(connection, replay_id, org), as_json)


# -- following ------------------------------------------------------------------------------------


def _follow(connection: Connection, shown: dict[str, Any]) -> dict[str, Any]:
    """Wait until it does not run any more, or nobody is there who would carry it on."""
    from outbox.store.replay import show_replay
    from outbox.store.status import read_status

    told = ""
    while shown["state"] == "running":
        if not read_status(connection, count_max=1).relays:
            say("no daemon runs: it goes on when one does (outbox run)")
            break
        if sys.stderr.isatty():
            told = f"\r{shown['id']}  {_percent(shown)} %  {_enqueued(shown)} enqueued"
            click.echo(told, err=True, nl=False)
        time.sleep(_LOOK_S)
        shown = show_replay(connection, shown["id"])
    if told:
        click.echo(f"\r{' ' * len(told)}\r", err=True, nl=False)
    return shown


def _percent(shown: dict[str, Any]) -> int:
    began = shown["filter"].get("from", 0)
    share = (shown["position"] - began) / max(1, shown["ceiling"] - began)
    return 100 if shown["state"] == "done" else int(100 * share)


def _enqueued(shown: dict[str, Any]) -> int:
    return sum(shown["counts"].get(fate, 0) for fate in _ENQUEUED)


# -- output ---------------------------------------------------------------------------------------


def _show_counts(counted: Counted, as_json: bool) -> None:
    if as_json:
        document = {"groups": counted.groups, "sample": counted.sample}
        print_json({"dry_run": True, "pairs": counted.total} | document)
        return
    print_rows(counted.groups, _GROUPS, empty="nothing to replay")
    if counted.sample:
        click.echo()
        print_rows(counted.sample, _SAMPLE)


def _row(shown: dict[str, Any]) -> dict[str, Any]:
    extra = {
        "progress": f"{_percent(shown)}%",
        "events": shown["counts"].get("events", 0),
        "enqueued": _enqueued(shown),
    }
    return shown | extra


def _show(shown: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(shown)
        return
    fields = {name: value for name, value in _row(shown).items() if name not in _NESTED}
    asked = {f"only {name}": value for name, value in shown["filter"].items() if name not in _OURS}
    fates = {f"pairs {name}": n for name, n in sorted(shown["counts"].items()) if name != "events"}
    print_fields(fields | asked | fates)

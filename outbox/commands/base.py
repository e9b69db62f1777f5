"""What the commands share: the wiring handed in by the entry point, options, output.

Data goes to stdout, talk to stderr. Options that are settings show their environment variable in
the help and are read by `outbox.settings`, never by click.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

from outbox.durations import parse_duration
from outbox.errors import UsageError
from outbox.settings import OPTIONS, Settings, load_settings

if TYPE_CHECKING:
    from outbox.broadcast import Transport
    from outbox.runtime import Courier, Processors
    from outbox.store.subscriptions import KindSpec
    from outbox.work import Work

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Preview(Protocol):
    """A request as it would be sent, secrets masked; `refused` says why it would not be."""

    @property
    def method(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def headers(self) -> Sequence[tuple[str, str]]: ...
    @property
    def body(self) -> bytes: ...
    @property
    def refused(self) -> str | None: ...


@dataclass
class Wiring:
    """What the entry point hands to every command (`click.pass_obj`).

    `open_courier`, `open_processors` and `open_transport` make what runs, `list_processors` says
    what there is, `find_processors` imports the user's and raises UsageError; `check_url` and
    `check_headers` judge a destination and custom headers and raise DestinationRefused or
    UsageError; `specify` checks what a subscription of a kind asks for;
    `preview` makes the request that an attempt would send, for subscriptions of kind `webhook`.
    `fetch_artifact` reads a document by organization and content, `place_artifacts` says where
    documents lie, and `tend_artifacts` removes the stored bytes that no artifact names any more.
    """

    open_courier: Callable[[Settings, str], Courier]
    open_processors: Callable[[Settings], AbstractAsyncContextManager[Processors]]
    open_transport: Callable[[Settings], AbstractAsyncContextManager[Transport | None]]
    list_processors: Callable[[Settings], list[dict[str, Any]]]
    find_processors: Callable[[Settings], object]
    check_url: Callable[[Settings, str], None]
    check_headers: Callable[[Mapping[str, str]], None]
    specify: Callable[[Settings, str, Mapping[str, Any]], KindSpec]
    preview: Callable[[Settings, Work], Preview]
    fetch_artifact: Callable[[Settings, str | None, str], bytes]
    place_artifacts: Callable[[Settings, Sequence[tuple[str | None, str]]], list[dict[str, Any]]]
    tend_artifacts: Callable[[Settings], int]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    flags: dict[str, str] = field(default_factory=dict)

    @cached_property
    def settings(self) -> Settings:
        """The settings in force, read when a command first asks."""
        return load_settings(self.flags, self.environ)

    @property
    def database(self) -> str:
        """The database URL. Raises ConfigurationError where none is set."""
        return self.settings.database


pass_wiring = click.make_pass_decorator(Wiring)


# -- options --------------------------------------------------------------------------------------


class SettingOption(click.Option):
    """An option that is a setting. click shows its variable; `outbox.settings` reads it."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:  # noqa: ARG002
        return None


def setting_option(name: str, *others: str) -> SettingOption:
    """The option of one setting, by the setting's name, or `config`; `others` are further names of
    the option. Those of _SEVERAL may be given several times."""

    def keep(ctx: click.Context, _param: click.Parameter, value: Any) -> None:
        if value is not None and value != ():
            text = separator.join(value) if isinstance(value, tuple) else value
            ctx.find_object(Wiring).flags[name] = text  # type: ignore[union-attr]

    words = {option.name: option.word for option in OPTIONS} | {"config": "config"}
    texts = {option.name: option.help for option in OPTIONS} | {"config": "TOML file of settings"}
    separator = {option.name: option.separator for option in OPTIONS}.get(name, ",")
    return SettingOption(
        [f"--{words[name].replace('_', '-')}", *others],
        envvar=f"OUTBOX_{words[name].upper()}",
        show_envvar=True,
        expose_value=False,
        callback=keep,
        multiple=name in _SEVERAL,
        help=f"{texts[name].capitalize() if texts[name][0].islower() else texts[name]}.",
        metavar=_METAVARS.get(name) or ("URL" if "url" in name else "VALUE"),
    )


_SEVERAL = frozenset({"imports", "database_url"})
"""A command that works on one database refuses several, where it would else take the last."""
_METAVARS = {"config": "PATH", "ca_file": "PATH", "imports": "MODULE"}


def takes_settings(*names: str) -> Callable[[Decorated], Decorated]:
    """Give a command the options of these settings; their values arrive in `wiring.settings`."""

    def decorate(command: Decorated) -> Decorated:
        for name in reversed(names):
            params = vars(command).setdefault("__click_params__", [])
            params.append(setting_option(name))
        return command

    return decorate


json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


class Duration(click.ParamType[timedelta]):
    """A duration such as `250ms`, `30s`, `5m`, `2h`, `7d`; a timedelta inside."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> timedelta:
        if isinstance(value, timedelta):
            return value
        try:
            return parse_duration(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[datetime]):
    """A moment in ISO 8601 with an offset from UTC; an aware datetime inside."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            example = "2030-01-31T12:00:00Z"
            self.fail(f"{value!r} is not a time with an offset; write {example}", param, ctx)
        return moment


class PerSecond(click.ParamType[float]):
    """A rate such as `50/s`, or `50`; a number above zero inside."""

    name = "n/s"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        try:
            rate = float(value.removesuffix("/s"))
        except ValueError:
            rate = 0.0
        if not 0.01 <= rate <= 1_000_000:
            self.fail(f"{value!r} is not a rate; write for example 50/s", param, ctx)
        return rate


class Names(click.ParamType[tuple[str, ...]]):
    """A list by comma; a tuple of texts inside."""

    name = "name,.."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        items = tuple(item.strip() for item in value.split(","))
        if not all(items):
            self.fail(f"{value!r} is not a list of names by comma", param, ctx)
        return items


def split_header(text: str) -> tuple[str, str]:
    """Read `Name: value`. Raises UsageError."""
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise UsageError(f"--header {text!r} is not of the form 'Name: value'")
    return name.strip(), value.strip()


# -- output ---------------------------------------------------------------------------------------


def print_json(document: object) -> None:
    """Print one JSON document: times in ISO 8601, durations in seconds, ids as text."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: object) -> object:
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return str(value)


def print_rows(
    rows: Sequence[Mapping[str, object]], columns: Iterable[str], *, empty: str = "nothing to show"
) -> None:
    """Print rows in aligned columns under a heading; nothing but a note on stderr if empty."""
    names = list(columns)
    if not rows:
        say(empty)
        return
    table = [names, *([_cell(row.get(name)) for name in names] for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(names))]
    for line in table:
        padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def print_fields(fields: Mapping[str, object]) -> None:
    """Print one object as `name  value` lines."""
    width = max((len(name) for name in fields), default=0)
    for name, value in fields.items():
        click.echo(f"{name.ljust(width)}  {_cell(value)}".rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "-"
    if isinstance(value, datetime):
        return value.isoformat(timespec="seconds")
    # One row is one line, whatever stands in the data.
    return "".join(c if c.isprintable() else " " for c in str(value))


def say(text: str) -> None:
    """Talk to a person, on stderr."""
    click.echo(text, err=True)


# -- loading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Lazy:
    """Where a command stands (`module:attribute`) and its line in the list of commands."""

    target: str
    help: str


class LazyGroup(click.Group):
    """A group whose commands are imported when called, so that its own help stays quick.

    Every command also takes --database-url and --config, before or after its name.
    """

    def __init__(self, *args: Any, lazy: Mapping[str, Lazy], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy
        self._loaded: dict[str, click.Command] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self.lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        if cmd_name not in self._loaded:
            module, _, attribute = self.lazy[cmd_name].target.partition(":")
            command: click.Command = getattr(import_module(module), attribute)
            _share_options(command)
            self._loaded[cmd_name] = command
        return self._loaded[cmd_name]

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, entry.help) for name, entry in self.lazy.items()]
        rows += [(n, c.get_short_help_str(80)) for n, c in self.commands.items() if not c.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _share_options(command: click.Command) -> None:
    if isinstance(command, click.Group):
        for inner in command.commands.values():
            _share_options(inner)
        return
    taken = {name for param in command.params for name in param.opts}
    for name in ("database_url", "config"):
        option = setting_option(name)
        if not taken.intersection(option.opts):
            command.params.append(option)

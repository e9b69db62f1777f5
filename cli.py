"""The entry point of `outbox`: wires processors and brokers to the commands, ends with exit codes.

Promises: a mistake of operation is one line on stderr and the exit code of its error class; never
a traceback. Nothing is built before the command that needs it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TYPE_CHECKING, Any

import click

from outbox.commands.base import Lazy, LazyGroup, Wiring, setting_option
from outbox.errors import OutboxError
from outbox.settings import Settings, wants_traceback

if TYPE_CHECKING:
    from outbox.broadcast import Transport
    from outbox.runtime import Consumer, Courier, Processors
    from outbox.store.subscriptions import KindSpec
    from outbox.work import Work
    from processors.broker import Accept
    from processors.broker import Courier as BrokerCourier
    from processors.preview import Preview

EXIT_INTERRUPTED = 130

COMMANDS = {
    "demo": Lazy("outbox.commands.demo:demo", "See it work: everything embedded, in a minute."),
    "bench": Lazy("outbox.commands.bench:bench", "Measure how fast this machine is."),
    "migrate": Lazy("outbox.commands.install:migrate", "Install or upgrade the schema."),
    "adopt": Lazy("outbox.commands.install:adopt", "Take over a copied database."),
    "uninstall": Lazy("outbox.commands.install:uninstall", "Remove everything, after a dry run."),
    "watch": Lazy("outbox.commands.capture:watch", "Capture the changes of a table."),
    "unwatch": Lazy("outbox.commands.capture:unwatch", "Stop capturing a table."),
    "watches": Lazy("outbox.commands.capture:watches", "List the captured tables."),
    "import-webhooks": Lazy(
        "outbox.commands.import_webhooks:import_webhooks", "Take over Supabase's database webhooks."
    ),
    "emit": Lazy("outbox.commands.emit:emit", "Emit one event."),
    "run": Lazy("outbox.commands.run:run", "Run the daemon."),
    "worker": Lazy("outbox.commands.run:worker", "Run workers that deliver."),
    "endpoints": Lazy("outbox.commands.endpoints:endpoints", "Add and manage webhook endpoints."),
    "subscriptions": Lazy(
        "outbox.commands.subscriptions:subscriptions", "Add and manage subscriptions."
    ),
    "processors": Lazy("outbox.commands.processors:processors", "List kinds and processors."),
    "schedules": Lazy("outbox.commands.schedules:schedules", "Emit events by the clock."),
    "events": Lazy("outbox.commands.events:events", "List and show events."),
    "deliveries": Lazy("outbox.commands.deliveries:deliveries", "List, show, cancel deliveries."),
    "emails": Lazy("outbox.commands.emails:emails", "List and show e-mail, take in bounces."),
    "suppressions": Lazy(
        "outbox.commands.emails:suppressions", "Addresses that are sent no e-mail."
    ),
    "dead": Lazy("outbox.commands.dead:dead", "List, show, redrive, discard dead letters."),
    "replay": Lazy("outbox.commands.replay:replay", "Deliver past events again."),
    "rebuild": Lazy("outbox.commands.rebuild:rebuild", "Compare rows with facts, and mend them."),
    "artifacts": Lazy("outbox.commands.artifacts:artifacts", "List, read, remove documents."),
    "redact": Lazy("outbox.commands.redact:redact", "Erase events' contents for good."),
    "realtime": Lazy(
        "outbox.commands.realtime:realtime", "Serve broadcasts, for development and tests."
    ),
    "status": Lazy("outbox.commands.status:status", "Show what is pending, in flight and dead."),
    "doctor": Lazy("outbox.commands.status:doctor", "Find what is wrong, with the fix."),
    "config": Lazy("outbox.commands.config:config", "Show the settings in force."),
    "completion": Lazy("outbox.commands.config:completion", "Print a shell completion script."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # For a user's own processors. Last, so that no file there stands in for one of ours.
    if os.getcwd() not in sys.path:  # noqa: PTH109 (sys.path holds texts)
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        code = build().main(argv, "outbox", standalone_mode=False, obj=_wiring())
        if sys.stdout is not None:
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return error.exit_code
    except click.ClickException as error:
        return _complain(_click_text(error), error.exit_code)
    except OutboxError as error:
        return _complain(str(error), error.exit_code)
    except OSError as error:
        return _output_lost(error)
    except Exception as error:
        if wants_traceback(os.environ):
            raise
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return _complain(
            f"{text[:300]} (this is a bug; run with OUTBOX_DEBUG=1 for the traceback)", 1
        )
    return code if isinstance(code, int) else 0


def build() -> click.Group:
    """The command line."""
    group = LazyGroup(
        "outbox",
        lazy=COMMANDS,
        params=[setting_option("database_url"), setting_option("config")],
        help="Events from PostgreSQL, delivered at least once.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
        no_args_is_help=True,
    )
    return click.version_option(package_name="outboxd", message="outbox %(version)s")(group)


def _complain(text: str, code: int) -> int:
    for line in text.splitlines():
        click.echo(f"Error: {line}", err=True)
    return code


def _output_lost(error: OSError) -> int:
    """Whoever read our output has left, or it cannot be written. The interpreter must not fail
    again when it flushes for the last time."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if isinstance(error, BrokenPipeError) else _complain(str(error), 1)


def _click_text(error: click.ClickException) -> str:
    text = " ".join(error.format_message().split())
    context = getattr(error, "ctx", None)
    return f"{text} (see: {context.command_path} --help)" if context else text


# -- wiring ---------------------------------------------------------------------------------------


def _wiring() -> Wiring:
    return Wiring(
        open_courier=open_courier,
        open_processors=open_processors,
        open_transport=open_transport,
        list_processors=_list_processors,
        find_processors=_find_processors,
        check_url=_check_url,
        check_headers=_check_headers,
        specify=_specify,
        preview=_preview,
        fetch_artifact=_fetch_artifact,
        place_artifacts=_place_artifacts,
        tend_artifacts=_tend_artifacts,
    )


class _Courier:
    """The broker's courier as the runtime calls it."""

    def __init__(self, inner: BrokerCourier) -> None:
        self._inner = inner

    def send(self, token: int, ids: Sequence[str]) -> None:
        from processors.broker import Batch

        self._inner.send([Batch(token, ids)])

    def depth(self) -> int:
        return self._inner.depth()

    def consume(self, accept: Accept, *, threads: int = 2) -> Consumer:
        return self._inner.consume(accept, threads=threads)

    def close(self) -> None:
        self._inner.close()


def open_courier(settings: Settings, namespace: str = "outbox") -> Courier:
    """The courier of the broker in the settings, for one installation's messages. Nothing is
    connected yet."""
    from processors.broker import open_broker

    return _Courier(open_broker(settings.broker_url, namespace=namespace))


def open_processors(settings: Settings) -> AbstractAsyncContextManager[Processors]:
    """The processors by name, on the running loop, closed at the end."""
    from processors.kinds import open_processors

    return open_processors(settings)


def open_transport(settings: Settings) -> AbstractAsyncContextManager[Transport | None]:
    """What sends broadcasts over http, None where no server is configured."""
    from processors.broadcast import open_transport

    return open_transport(settings)


def _list_processors(settings: Settings) -> list[dict[str, Any]]:
    from processors.kinds import list_processors

    return list_processors(settings)


def _specify(settings: Settings, kind: str, config: Mapping[str, Any]) -> KindSpec:
    from processors.kinds import specify

    return specify(settings, kind, config)


def _find_processors(settings: Settings) -> object:
    from processors.own import find_processors

    return find_processors(settings)


def _check_url(settings: Settings, url: str) -> None:
    from processors.egress import parse_destination, policy_of

    parse_destination(url, policy_of(settings))


def _check_headers(headers: Mapping[str, str]) -> None:
    from processors.webhook import check_custom_headers

    check_custom_headers(headers)


def _preview(settings: Settings, work: Work) -> Preview:
    from processors.egress import policy_of
    from processors.preview import preview_webhook

    return preview_webhook(work, policy_of(settings))


def _fetch_artifact(settings: Settings, org: str | None, sha256: str) -> bytes:
    import asyncio

    from processors.artifacts import fetch

    return asyncio.run(fetch(settings, org, sha256))


def _place_artifacts(
    settings: Settings, found: Sequence[tuple[str | None, str]]
) -> list[dict[str, Any]]:
    from processors.artifacts import places

    return places(settings, found)


def _tend_artifacts(settings: Settings) -> int:
    import asyncio

    from processors.artifacts import tend_once

    return asyncio.run(tend_once(settings))


if __name__ == "__main__":
    sys.exit(main())

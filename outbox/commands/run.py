"""`outbox run` and `outbox worker`: prove that all is well, then run until told to stop.

Owns the two signals: the first drains within OUTBOX_GRACE, the second ends now.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from outbox import faults
from outbox.commands.base import Decorated, Wiring, pass_wiring, setting_option, takes_settings
from outbox.errors import ConfigurationError, UsageError
from outbox.logs import get_logger
from outbox.settings import OPTIONS, Settings

if TYPE_CHECKING:
    from outbox.databases import Databases
    from outbox.runtime import Until
    from outbox.secrets import KeyRing

log = get_logger("outbox.run")

PROCESSES_MAX = 256

_settings = takes_settings(
    "listen_url", "broker_url", "instance", "lease", "grace", "retention", "log_format", "imports"
)


def _common(command: Decorated) -> Decorated:
    """The options of both, and databases, as many as there are."""
    _settings(command)
    vars(command)["__click_params__"].append(setting_option("database_url", "--database"))
    return command


@click.command()
@click.option("--once", is_flag=True, help="Do one round, deliver what it leased, and exit.")
@click.option("--drain", is_flag=True, help="Exit when nothing is pending, leased or due.")
@click.option(
    "--workers",
    type=click.IntRange(0, PROCESSES_MAX),
    default=0,
    help="Worker processes to run beside the daemon. With memory:// there is always one, inside.",
)
@_common
@pass_wiring
def run(wiring: Wiring, once: bool, drain: bool, workers: int) -> None:
    """Run the daemon: route events, lease deliveries, hand them to the workers.

    --database may be given several times; each is served as if it were alone.
    The first SIGTERM or SIGINT finishes what runs within OUTBOX_GRACE, the second ends now.
    """
    from outbox.runtime import Until

    if once and drain:
        raise UsageError("--once and --drain exclude each other")
    settings = wiring.settings
    if settings.in_memory and workers > 1:
        raise UsageError(
            "memory:// has one worker, inside the daemon; for more set OUTBOX_BROKER_URL to a "
            "redis:// or amqp:// server"
        )
    if once and workers and not settings.in_memory:
        raise UsageError("--once does not wait for other processes; use --drain with --workers")
    until = Until.ONCE if once else Until.DRAINED if drain else Until.STOPPED
    ring, databases = _prepare(
        wiring,
        needs_keys=settings.in_memory or workers > 0,
        every=until is not Until.STOPPED,
    )
    children = 0 if settings.in_memory else workers
    _loop(_daemon(wiring, ring, databases, until, children))


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(1, PROCESSES_MAX),
    default=1,
    show_default=True,
    help="Worker processes to run; more than one is supervised by this process.",
)
@click.option("--child-of", type=int, hidden=True, help="The supervising process.")
@_common
@pass_wiring
def worker(wiring: Wiring, processes: int, child_of: int | None) -> None:
    """Run workers: take what the daemon leased, deliver it, settle.

    --database may be given several times; each is served as if it were alone.
    The first SIGTERM or SIGINT finishes what runs within OUTBOX_GRACE, the second ends now.
    """
    if wiring.settings.in_memory:
        raise ConfigurationError(
            "OUTBOX_BROKER_URL is memory://, which lives inside `outbox run`; set it to a redis:// "
            "or amqp:// server to run workers apart"
        )
    ring, databases = _prepare(wiring, needs_keys=True)
    if processes > 1:
        _loop(_workers(wiring, processes))
    else:
        _loop(_worker(wiring, ring, databases, child_of))


def _prepare(
    wiring: Wiring, *, needs_keys: bool, every: bool = False
) -> tuple[KeyRing | None, Databases]:
    """Logs, and the proofs that come before the first connection of a loop; returns the keys and
    the databases, of which one may be away unless `every` one is needed."""
    from outbox.databases import Databases
    from outbox.logs import configure_logs
    from outbox.store.preflight import preflight

    settings = wiring.settings
    faults.arm(wiring.environ)
    if needs_keys:
        wiring.find_processors(settings)  # what cannot be imported is said here, not by children
    configure_logs(settings.log_format, debug=settings.debug)
    ring = settings.key_ring() if settings.secret_key else None
    databases = Databases(
        settings,
        lambda one: preflight(one.database, one.instance, ring, needs_keys=needs_keys),
    )
    databases.prove(every=every)
    if ring is None and needs_keys:
        log.warning("run.no_secret_key", hint="endpoints added later cannot be delivered to")
    return ring, databases


async def _daemon(
    wiring: Wiring, ring: KeyRing | None, databases: Databases, until: Until, children: int
) -> None:
    from outbox.runtime import Until, run_daemon
    from outbox.supervisor import Supervisor

    settings = wiring.settings
    supervisor = Supervisor(children, _child_environ(wiring))
    stop = _stop_on_signals(supervisor.kill)
    beside = asyncio.create_task(supervisor.run(stop, _grace_s(settings)))
    try:
        async with wiring.open_transport(settings) as transport:

            async def serve(one: Settings, namespace: str, stop: asyncio.Event) -> None:
                with closing(wiring.open_courier(one, namespace)) as courier:
                    await run_daemon(
                        one,
                        courier,
                        stop=stop,
                        open_processors=wiring.open_processors if one.in_memory else None,
                        ring=ring,
                        until=until,
                        transport=transport,
                    )

            await databases.serve(serve, stop, again=until is Until.STOPPED)
    finally:
        stop.set()
        await beside


async def _workers(wiring: Wiring, processes: int) -> None:
    from outbox.supervisor import Supervisor

    supervisor = Supervisor(processes, _child_environ(wiring))
    stop = _stop_on_signals(supervisor.kill)
    await supervisor.run(stop, _grace_s(wiring.settings))


async def _worker(
    wiring: Wiring, ring: KeyRing | None, databases: Databases, parent_pid: int | None
) -> None:
    from outbox.runtime import run_worker
    from outbox.supervisor import end_with_parent

    stop = _stop_on_signals()
    parent = end_with_parent(parent_pid, stop.set) if parent_pid is not None else stop.wait()
    watching = asyncio.ensure_future(parent)

    async def serve(one: Settings, namespace: str, stop: asyncio.Event) -> None:
        with closing(wiring.open_courier(one, namespace)) as courier:
            await run_worker(one, courier, wiring.open_processors, stop=stop, ring=ring)

    try:
        await databases.serve(serve, stop, again=True)
    finally:
        watching.cancel()


def _grace_s(settings: Settings) -> float:
    return settings.grace.total_seconds()


def _child_environ(wiring: Wiring) -> Mapping[str, str]:
    """The settings in force for a child: flags become variables, so that no secret stands in a
    command line. Children have a little less time to end than their parent."""
    environ = dict(wiring.environ)
    for option in OPTIONS:
        if option.name in wiring.flags:
            environ[option.variable] = wiring.flags[option.name]
    if "config" in wiring.flags:
        environ["OUTBOX_CONFIG"] = wiring.flags["config"]
    environ["OUTBOX_GRACE"] = f"{int(_grace_s(wiring.settings) * 900)}ms"
    return environ


def _stop_on_signals(on_second: Callable[[], None] = lambda: None) -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets. The second ends this process at once, with
    what is in flight left to its leases."""
    stop = asyncio.Event()

    def signalled() -> None:
        if not stop.is_set():
            log.info("run.stopping", hint="what runs is finished first; again to end now")
            stop.set()
            return
        on_second()
        sys.stderr.flush()
        os._exit(0)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    return stop


def _loop(main: Coroutine[Any, Any, None]) -> None:
    """Run on uvloop where there is one."""
    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if sys.platform != "win32":
        import uvloop

        factory = uvloop.new_event_loop
    _collect_rarely()
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main)


def _collect_rarely() -> None:
    """Look for cycles less often, and never among what was imported. Attempts leave few, and each
    look walks all that are under way: a quarter of a worker's time under load (68 us a webhook
    instead of 49)."""
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)

"""Several databases served by one process: each as if it were alone, and none stops another.

Owns what is particular to more than one: that all are proven before any work begins, that two URLs
do not lead to one database, and that one that is away, at the start or later, is tried again while
the others are served. Relay, worker and courier know nothing of it: the messages of an
installation have a namespace of their own in the broker, however many share it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import structlog

from outbox.errors import ConfigurationError, DatabaseUnavailable, OutboxError
from outbox.settings import Settings
from outbox.store.connect import place_of
from outbox.waiting import wait_at_most

log = structlog.get_logger("outbox.databases")

AGAIN_S = 2.0
"""The pause before a database that could not be served is tried again."""

PROOFS_MAX = 16
"""How many are proven at once, in a thread each."""

Prove = Callable[[Settings], str]
"""Proves that a database can be served and returns the namespace of its messages in the broker.
Raises an OutboxError. Runs in a thread."""

Serve = Callable[[Settings, str, asyncio.Event], Awaitable[None]]
"""Serves one database, its messages in the namespace, until the event is set or all is done."""


@dataclass(slots=True, eq=False)
class _Database:
    """One of them: `settings` name it alone, `place` is how people are told which it is."""

    settings: Settings
    place: str
    namespace: str | None = None


class Databases:
    """The databases of the settings. Raises ConfigurationError where a setting fits only one."""

    def __init__(self, settings: Settings, prove: Prove) -> None:
        self._prove = prove
        self._all = [
            _Database(replace(settings, database_url=url), place_of(url))
            for url in settings.databases
        ]
        self._by_namespace: dict[str, _Database] = {}
        if self._several and settings.listen_url is not None:
            raise ConfigurationError(
                "OUTBOX_LISTEN_URL leads to one database, and several are to be served; leave it"
                " out, or serve those behind a pooler by a daemon each"
            )

    @property
    def _several(self) -> bool:
        return len(self._all) > 1

    def prove(self, *, every: bool) -> None:
        """Prove all of them. Unless `every` one is needed, those that are away are left for
        later, as long as another one answers. Raises the first error, with a line for each."""
        with ThreadPoolExecutor(min(len(self._all), PROOFS_MAX)) as pool:
            errors = [error for error in pool.map(self._problem, self._all) if error is not None]
        # A mistake that stays is told before an absence that may pass: it gives the exit code.
        errors.sort(key=lambda error: isinstance(error, DatabaseUnavailable))
        away = [error for error in errors if isinstance(error, DatabaseUnavailable)]
        if len(errors) > len(away) or len(away) == len(self._all) or (every and away):
            raise type(errors[0])("\n".join(map(str, errors)))

    def _problem(self, database: _Database) -> OutboxError | None:
        try:
            self._prove_one(database)
        except OutboxError as error:
            return type(error)(f"{database.place}: {error}") if self._several else error
        return None

    def _prove_one(self, database: _Database) -> None:
        namespace = self._prove(database.settings)
        other = self._by_namespace.setdefault(namespace, database)
        if other is not database:
            raise ConfigurationError(f"this is the same database as {other.place}; name it once")
        database.namespace = namespace

    async def serve(self, serve: Serve, stop: asyncio.Event, *, again: bool) -> None:
        """Serve all of them, side by side, until `stop` is set or each is done. With `again` one of
        several that fails is tried again; else its error is raised when the others have ended."""
        ended = await asyncio.gather(
            *(self._serve(one, serve, stop, again and self._several) for one in self._all),
            return_exceptions=True,
        )
        for error in ended:
            if isinstance(error, BaseException):
                raise error

    async def _serve(
        self, database: _Database, serve: Serve, stop: asyncio.Event, again: bool
    ) -> None:
        if self._several:  # in this task and those it starts
            structlog.contextvars.bind_contextvars(database=database.place)
        said = ""
        while not stop.is_set():
            try:
                if database.namespace is None:
                    await asyncio.to_thread(self._prove_one, database)
            except OutboxError as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("run.database_unusable", error=said)
            else:
                assert database.namespace is not None
                try:
                    async with _following(stop) as own:
                        await serve(database.settings, database.namespace, own)
                    return
                except ConfigurationError:  # of the settings that all share
                    stop.set()
                    raise
                except Exception:
                    if not again:
                        raise
                    log.exception("run.database_failed", again_in_s=AGAIN_S)
            await wait_at_most(stop, AGAIN_S)


@asynccontextmanager
async def _following(stop: asyncio.Event) -> AsyncIterator[asyncio.Event]:
    """An event that is set with `stop`; setting it stops nobody else."""
    own = asyncio.Event()

    async def follow() -> None:
        await stop.wait()
        own.set()

    following = asyncio.create_task(follow())
    try:
        yield own
    finally:
        following.cancel()

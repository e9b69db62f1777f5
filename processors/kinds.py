"""The kinds of destinations: how the processors of each are opened, and how what a subscription
asks for is checked before it is stored.

A kind stands in a module of its own and is imported when it is first used. One that needs a setting
which is not given (an SMTP server, a place for documents) is not even imported by a worker: its
deliveries wait, uncharged, for one that has it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import Any

from outbox.errors import UsageError
from outbox.settings import Settings
from outbox.store.subscriptions import KindSpec
from outbox.worker import Processor
from processors.own import describe, find_processors, open_own, specify_own

Processors = Mapping[str, Processor]


@dataclass(frozen=True, slots=True)
class Kind:
    """`open` yields the processors of a kind by name; `check` returns the configuration as it is to
    be stored or raises UsageError. `concurrency`, `timeout` and `retry` hold where a
    subscription says nothing."""

    open: Callable[[Settings], AbstractAsyncContextManager[Processors]]
    check: Callable[[Settings, Mapping[str, Any]], dict[str, Any]]
    concurrency: int | None = None
    timeout: timedelta | None = None
    retry: str | None = None


KINDS: Mapping[str, str] = {
    "broadcast": "processors.broadcast",
    "email": "processors.mail.processor",
    "pdf": "processors.pdf",
    "webhook": "processors.webhook",
}
"""The module of each kind; its `KIND` is the Kind. Every other name is a processor of the
user's."""

NEEDS: Mapping[str, str] = {"email": "smtp_url", "pdf": "artifacts_url"}
"""The setting without which a kind opens nothing."""


def load_kind(name: str) -> Kind:
    """A kind by name. Raises UsageError."""
    if name not in KINDS:
        raise UsageError(f"there is no kind {name!r}; kinds are {', '.join(sorted(KINDS))}")
    kind = import_module(KINDS[name]).KIND
    assert isinstance(kind, Kind)
    return kind


@asynccontextmanager
async def open_processors(settings: Settings) -> AsyncIterator[Processors]:
    """The processors of all kinds and of the user's by name, on the running loop, closed at the
    end."""
    async with AsyncExitStack() as stack:
        opened: dict[str, Processor] = {}
        for name in KINDS:
            if name in NEEDS and getattr(settings, NEEDS[name]) is None:
                continue
            opened |= await stack.enter_async_context(load_kind(name).open(settings))
        opened |= await stack.enter_async_context(open_own(settings))
        yield opened


def specify(settings: Settings, name: str, config: Mapping[str, Any]) -> KindSpec:
    """A destination of a kind with what a subscription asks for, checked. Raises UsageError."""
    if name not in KINDS:
        own = find_processors(settings)
        if name not in own:
            known = ", ".join(sorted([*KINDS, *own]))
            raise UsageError(
                f"there is no kind {name!r}; kinds are {known}. A processor of yours is found with"
                " --import MODULE or OUTBOX_IMPORT"
            )
        return specify_own(own[name], config)
    kind = load_kind(name)
    return KindSpec(
        name,
        kind.check(settings, config),
        concurrency=kind.concurrency,
        timeout=kind.timeout,
        retry=kind.retry,
    )


def list_processors(settings: Settings) -> list[dict[str, Any]]:
    """The kinds, and the user's processors that can be found."""
    kinds = []
    for name, home in sorted(KINDS.items()):
        kind = load_kind(name)
        about = (import_module(home).__doc__ or "").partition("\n")[0]
        kinds.append(
            {
                "name": name,
                "module": home,
                "function": None,
                "concurrency": kind.concurrency,
                "timeout_s": None if kind.timeout is None else kind.timeout.total_seconds(),
                "retry": None,
                "runs": "loop",
                "about": about,
            }
        )
    own = sorted(find_processors(settings).values(), key=lambda one: one.name)
    return [*kinds, *map(describe, own)]

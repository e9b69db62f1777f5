"""Processors of the user's own: found in the modules that `--import` names and in installed
packages (entry points of the group `outbox.processors`), and opened for a worker.

Nothing registers itself: what is looked at are the attributes of those modules and of the
submodules that they have loaded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from outbox.errors import UsageError
from outbox.performing import Room, performer
from outbox.processing import UserProcessor
from outbox.settings import Settings, wants_traceback
from outbox.store.subscriptions import KindSpec
from outbox.watch import Processor

GROUP = "outbox.processors"


def find_processors(settings: Settings) -> dict[str, UserProcessor]:
    """All that can be found, by name. Raises UsageError for a module that cannot be imported and
    for two processors of one name."""
    found: dict[str, UserProcessor] = {}
    for name in settings.imports:
        _add(found, _in_module(_imported(name)))
    for point in entry_points(group=GROUP):
        try:
            value = point.load()
        except Exception as error:
            raise _broken(f"the entry point {point.name} = {point.value}", error) from error
        _add(found, _in_module(value) if isinstance(value, ModuleType) else [value])
    return found


def _imported(name: str) -> ModuleType:
    try:
        return import_module(name)
    except Exception as error:
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            hint = "; it is looked for in this folder and among the installed packages"
        raise _broken(f"--import {name}", error, hint) from error


def _broken(what: str, error: Exception, hint: str = "") -> Exception:
    if wants_traceback(os.environ):
        return error
    text = " ".join(str(error).split())[:300]
    return UsageError(f"{what} cannot be imported: {type(error).__name__}: {text}{hint}")


def _in_module(module: ModuleType) -> list[UserProcessor]:
    inside = f"{module.__name__}."
    modules = [module, *(m for name, m in list(sys.modules.items()) if name.startswith(inside))]
    return [
        value
        for each in modules
        for value in list(vars(each).values())
        if isinstance(value, UserProcessor)
    ]


def _add(found: dict[str, UserProcessor], values: Iterable[object]) -> None:
    for value in values:
        if not isinstance(value, UserProcessor):
            raise UsageError(f"{value!r} of an entry point is neither a module nor a processor")
        other = found.setdefault(value.name, value)
        if other is not value:
            raise UsageError(f"two processors are named {value.name}: {other!r} and {value!r}")


@asynccontextmanager
async def open_own(settings: Settings) -> AsyncIterator[Mapping[str, Processor]]:
    """The user's processors, on the running loop. They share one room of threads and processes."""
    room = Room()
    yield {name: performer(one, room) for name, one in find_processors(settings).items()}


def specify_own(one: UserProcessor, config: Mapping[str, Any]) -> KindSpec:
    """A destination of a user's processor, its configuration checked. Raises UsageError."""
    one.configured(config)
    return KindSpec(
        "processor",
        config,
        processor=one.name,
        concurrency=one.concurrency,
        timeout=one.timeout,
        retry=one.retry,
    )


def describe(one: UserProcessor) -> dict[str, Any]:
    """What `outbox processors` shows."""
    return {
        "name": one.name,
        "module": one.module,
        "function": one.qualname,
        "concurrency": one.concurrency,
        "timeout_s": one.timeout.total_seconds(),
        "retry": one.retry,
        "runs": "process" if one.isolated else "loop" if one.is_async else "thread",
        "about": one.summary,
    }

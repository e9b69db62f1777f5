"""Runs a user's function in a process of its own, which can be killed.

Both ends of the pipe stand here. The parent writes one line with what the function needs, and
`stop` when nobody waits any more; the child writes lines with progress, and one at its end. The
child leads a process group that is killed as a whole, and ends by itself when its parent is gone.
What the function prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from importlib import import_module
from typing import IO, Any
from uuid import UUID

from outbox.effects import Emission
from outbox.outcome import Cancelled, Kind, Outcome, from_raised
from outbox.processing import Context, Event, UserProcessor

LINE_BYTES_MAX = 128 * 1024 * 1024
STOP_S = 2.0
"""How long a function that is told to stop may take before its process is killed."""
TELL_S = 0.5
"""How often the child tells its progress."""


# -- the parent -----------------------------------------------------------------------------------


async def run_isolated(processor: UserProcessor, event: Event, context: Context) -> Outcome:
    """One attempt in a child. Cancelled, it tells the child to stop, and kills it soon after."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "outbox.isolation"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdin.write(_request(processor, event, context))
        with suppress(ConnectionError):
            await child.stdin.drain()
        found = await _listen(child.stdout, context)
    except asyncio.CancelledError:
        context.pulse.call_off()
        await _stop(child)
        raise
    finally:
        _kill(child)
        code = await child.wait()
    if found is None:
        return Outcome(Kind.RETRY, "process_died", detail={"exit": code})
    return _outcome(found, context)


def _request(processor: UserProcessor, event: Event, context: Context) -> bytes:
    told = {
        "module": processor.module,
        "qualname": processor.qualname,
        "path": sys.path,
        "event": {
            **{name: getattr(event, name) for name in ("id", "type", "org_id", "subject")},
            "occurred_at": event.occurred_at.isoformat(),
            "headers": dict(event.headers),
            "payload": event.payload.decode(),
        },
        "key": str(context.key),
        "attempt": context.attempt,
        "left_s": context.time_left.total_seconds(),
        "config": context.raw,
    }
    return json.dumps(told).encode() + b"\n"


async def _listen(stdout: asyncio.StreamReader, context: Context) -> Mapping[str, Any] | None:
    """Pass on what the child tells; returns its last line, None if it died before."""
    async for line in stdout:
        told = json.loads(line)
        if "end" in told:
            return dict(told["end"])
        context.pulse.tell(told["percent"], told["note"])
        context.pulse.metadata = told["metadata"]
    return None


async def _stop(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    with suppress(ConnectionError, RuntimeError, TimeoutError):
        child.stdin.write(b"stop\n")
        async with asyncio.timeout(STOP_S):
            await child.wait()


def _kill(child: asyncio.subprocess.Process) -> None:
    """The child and whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _outcome(found: Mapping[str, Any], context: Context) -> Outcome:
    if found.get("cancelled"):
        raise Cancelled("the attempt was called off")
    context.emissions.extend(_emission(one) for one in found["emit"])
    after = found["after_s"]
    return Outcome(
        Kind(found["kind"]),
        found["reason"],
        after=None if after is None else timedelta(seconds=after),
        detail=found["detail"],
    )


# -- the child ------------------------------------------------------------------------------------


def main() -> None:
    """Perform what the first line of stdin asks for."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    from outbox.logs import configure_logs

    configure_logs(os.environ.get("OUTBOX_LOG_FORMAT"))
    context = _context(request)
    lock = threading.Lock()
    threading.Thread(target=_obey, args=(context,), daemon=True).start()
    threading.Thread(target=_tell, args=(context, answers, lock), daemon=True).start()
    ended = _perform(request, context)
    _write(answers, lock, {"end": ended})
    # Threads that the function left behind must not keep this process.
    os._exit(0)


def _context(request: Mapping[str, Any]) -> Context:
    return Context(
        key=UUID(request["key"]),
        attempt=request["attempt"],
        deadline=time.monotonic() + request["left_s"],
        organization=request["event"]["org_id"],
        config=None,
        processor=request["qualname"],
        raw=request["config"],
    )


def _perform(request: Mapping[str, Any], context: Context) -> dict[str, Any]:
    try:
        processor = _find(request)
        context.processor = processor.name
        context.config = processor.configured(request["config"])
        given = dict(request["event"])
        occurred_at = datetime.fromisoformat(given.pop("occurred_at"))
        event = Event(occurred_at=occurred_at, payload=given.pop("payload").encode(), **given)
        outcome = processor.function(event, context)
        if outcome is None:
            outcome = Outcome(Kind.DELIVERED, "done")
        if not isinstance(outcome, Outcome):
            raise TypeError(f"a processor returns None or an outbox.Outcome, not {outcome!r:.100}")
    except Cancelled:
        return {"cancelled": True}
    except Exception as error:  # noqa: BLE001 (translated in one place)
        outcome = from_raised(error)
        if outcome.reason == "exception":
            context.logger.warning("processor.raised", error=outcome.detail["error"])
    return {
        "kind": outcome.kind.value,
        "reason": outcome.reason,
        "after_s": None if outcome.after is None else outcome.after.total_seconds(),
        "detail": dict(outcome.detail),
        "emit": [_stated(one) for one in context.emissions],
    }


def _find(request: Mapping[str, Any]) -> UserProcessor:
    sys.path[:] = request["path"]
    found: Any = import_module(request["module"])
    for name in request["qualname"].split("."):
        found = getattr(found, name)
    assert isinstance(found, UserProcessor), f"{request['qualname']} is no processor any more"
    return found


def _obey(context: Context) -> None:
    """A line, or the end of the parent, calls the attempt off; nobody is left to kill us then."""
    line = sys.stdin.readline()
    context.pulse.call_off()
    if not line:
        time.sleep(STOP_S)
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _tell(context: Context, answers: IO[bytes], lock: threading.Lock) -> None:
    while True:
        time.sleep(TELL_S)
        news = context.pulse.news()
        if news is not None:
            metadata = json.loads(news.metadata or "{}")
            told = {"percent": news.percent, "note": news.note, "metadata": metadata}
            _write(answers, lock, told)


def _write(answers: IO[bytes], lock: threading.Lock, told: Mapping[str, Any]) -> None:
    line = json.dumps(told, default=str).encode() + b"\n"
    with lock, suppress(OSError):
        answers.write(line)
        answers.flush()


_TIMES = ("deliver_at", "expires_at")


def _stated(one: Emission) -> dict[str, Any]:
    told = {
        name: getattr(one, name)
        for name in ("type", "payload", "subject", "ordering_key", "dedupe_key")
    }
    times = {name: getattr(one, name) for name in _TIMES}
    told |= {name: None if at is None else at.isoformat() for name, at in times.items()}
    told["headers"] = dict(one.headers)
    told["dedupe_for_s"] = None if one.dedupe_for is None else one.dedupe_for.total_seconds()
    return told


def _emission(told: Mapping[str, Any]) -> Emission:
    given = dict(told)
    for name in _TIMES:
        given[name] = None if given[name] is None else datetime.fromisoformat(given[name])
    kept_s = given.pop("dedupe_for_s")
    given["dedupe_for"] = None if kept_s is None else timedelta(seconds=kept_s)
    return Emission(**given)


if __name__ == "__main__":
    main()

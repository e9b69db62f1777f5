"""The warm children that render: as many as there are processors, begun when first needed.

Promises: a document takes no longer and no more memory than the limits say, whatever its template
does, and takes nobody else with it; a child that was in the middle of something is never used
again; one is replaced before its engine's caches have grown large.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import structlog

from processors.rendering.child import HEAD
from processors.rendering.engines import Document, Job

log = structlog.get_logger("outbox.rendering")

START_S = 30.0
"""How long a child may take to begin."""
RSS_BYTES_MAX = 200 * 1024 * 1024
"""A child that ever held more than this is replaced, before a document takes it past 300 MB."""
DOCUMENTS_MAX = 2000
"""After so many documents a child is replaced in any case."""
CONTENT_BYTES_MAX = 64 * 1024 * 1024
BUSY_FACTOR = 3
"""The wall clock of one document, in times of its processor time: a busy machine is no fault of
the template."""

GONE_BY = {
    signal.SIGXCPU: ("render_timeout", "the document took too long"),
    signal.SIGABRT: ("render_memory", "the document takes too much memory"),
    signal.SIGSEGV: ("render_crashed", "the engine crashed"),
    signal.SIGBUS: ("render_crashed", "the engine crashed"),
    signal.SIGILL: ("render_crashed", "the engine crashed"),
}
"""What it means that a child was ended by a signal which nobody sent it. An engine without memory
aborts."""


class RenderFailed(Exception):
    """No document: `reason` is a stable code. `fault` says whose it is: `template`, `system` (a
    child was killed from outside), or `missing` (the engine is not installed here)."""

    def __init__(self, reason: str, text: str, fault: str = "template") -> None:
        super().__init__(text)
        self.reason = reason
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Limits:
    """What one document may take."""

    cpu_s: float = 10.0
    memory_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class Rendered:
    """A document, and the version of the engine that made it."""

    document: Document
    engine_version: str


class _Child:
    """One running child."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._used = 0
        self._rss_bytes = 0

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def worn(self) -> bool:
        """Has it grown, or rendered enough?"""
        return self._rss_bytes > RSS_BYTES_MAX or self._used >= DOCUMENTS_MAX

    @classmethod
    async def start(cls, engine: str, limits: Limits, environ: Mapping[str, str]) -> _Child:
        """Start one and wait until it is warm."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-s", "-m", "processors.rendering.child"),
            *(engine, str(limits.memory_bytes)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env={**_environ(), **environ},
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the worker, which finishes what runs
        )
        child = cls(process)
        try:
            async with asyncio.timeout(START_S):
                head, _ = await child._answer()
        except TimeoutError as error:
            await child.end()
            raise RenderFailed("render_no_child", "no child began in time", "system") from error
        except BaseException:
            await child.end()
            raise
        if "missing" in head:
            await child.end()
            raise RenderFailed("engine_missing", str(head["missing"]), "missing")
        log.info("rendering.child", engine=engine, pid=process.pid, confined=head["confined"])
        return child

    async def render(self, job: Job, cpu_s: float) -> tuple[dict[str, Any], bytes]:
        """The answer to one job."""
        text = json.dumps({**asdict(job), "cpu_s": max(1, round(cpu_s))}).encode()
        assert self._process.stdin is not None
        self._process.stdin.write(HEAD.pack(len(text), 0) + text)
        with suppress(ConnectionError):  # its end is seen below
            await self._process.stdin.drain()
        head, content = await self._answer()
        self._used += 1
        self._rss_bytes = max(self._rss_bytes, head.get("rss_bytes", 0))
        return head, content

    async def _answer(self) -> tuple[dict[str, Any], bytes]:
        assert self._process.stdout is not None
        try:
            lengths = await self._process.stdout.readexactly(HEAD.size)
            told, size = HEAD.unpack(lengths)
            if size > CONTENT_BYTES_MAX:
                mb = CONTENT_BYTES_MAX >> 20
                raise RenderFailed("render_too_large", f"the document is larger than {mb} MB")
            text = await self._process.stdout.readexactly(told)
            return json.loads(text), await self._process.stdout.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise _gone(await self._process.wait()) from error

    async def end(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def leave(self) -> None:
        """Let an idle one end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._process.wait()
        await self.end()


class RenderPool:
    """The children of one engine. `environ` is added to the empty environment they get."""

    def __init__(
        self,
        engine: str,
        *,
        size: int | None = None,
        limits: Limits | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.engine = engine
        self._limits = limits or Limits()
        self._environ = dict(environ or {})
        self._slots = asyncio.Semaphore(size or processors())
        self._idle: list[_Child] = []
        self._ending: set[asyncio.Task[None]] = set()

    async def render(self, job: Job) -> Rendered:
        """Render one document; waiting for a child does not count. Raises RenderFailed."""
        async with self._slots:
            child = self._idle.pop() if self._idle else await self._start()
            whole = False
            try:
                async with asyncio.timeout(self._limits.cpu_s * BUSY_FACTOR):
                    head, content = await child.render(job, self._limits.cpu_s)
                whole = True
            except TimeoutError as error:
                raise RenderFailed("render_timeout", "the document took too long") from error
            finally:
                if whole and not child.worn:
                    self._idle.append(child)
                else:
                    self._let_go(child, whole)
        if "reason" in head:
            raise RenderFailed(head["reason"], head["error"])
        document = Document(content, head["pages"], head["template_version"])
        return Rendered(document, head["engine_version"])

    @property
    def pids(self) -> list[int]:
        """The children that wait."""
        return [child.pid for child in self._idle]

    async def _start(self) -> _Child:
        return await _Child.start(self.engine, self._limits, self._environ)

    def _let_go(self, child: _Child, whole: bool) -> None:
        # Beside: who waits for a document, or was cancelled, does not wait for this.
        task = asyncio.create_task(child.leave() if whole else child.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """End all children."""
        for child in self._idle:
            self._let_go(child, True)
        self._idle.clear()
        if self._ending:
            await asyncio.wait(self._ending)


def processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environ() -> dict[str, str]:
    """All that a child gets: where Python's code lies, one thread (there is a child a processor),
    and, for engines that would ask, a proxy that nobody answers at."""
    nobody = "http://127.0.0.1:9"
    return {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path),  # noqa: PTH100
        "PYTHONDONTWRITEBYTECODE": "1",
        "RAYON_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "2",
        "RUST_BACKTRACE": "0",
        "HTTP_PROXY": nobody,
        "HTTPS_PROXY": nobody,
        "LANG": "C.UTF-8",
    }


def _gone(code: int) -> RenderFailed:
    """Why a child ended in the middle of a document."""
    if code < 0 and (known := GONE_BY.get(signal.Signals(-code))):
        return RenderFailed(*known)
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    return RenderFailed("render_killed", f"the rendering child ended with {how}", "system")

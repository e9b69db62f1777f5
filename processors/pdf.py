"""The kind `pdf`: a template and an event become a document, which is stored, recorded with the
settle, and told of by an event `outbox.document.rendered`.

Promises: an attempt that is repeated stores the same bytes under the same name, so that whatever
dies in between leaves one document; nothing that a template does outlives its document.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import Any
from uuid import UUID

import orjson

from outbox import faults
from outbox.effects import Effects, Emission
from outbox.errors import ConfigurationError, OutboxError, UsageError
from outbox.outcome import DATABASE_AWAY, Kind, Outcome
from outbox.settings import Settings
from outbox.store.artifacts import BeingRemoved, Notes
from outbox.store.connect import FAILED, connect_hot, describe
from outbox.work import Work
from processors.artifacts import tending
from processors.kinds import Kind as KindOfDestination
from processors.mail.templates import TemplateFailed, Templates
from processors.rendering.engines import Job
from processors.rendering.library import SUFFIXES, find_template
from processors.rendering.pool import Limits, Rendered, RenderFailed, RenderPool
from processors.storage import LINK_LIFE, Store, StoreFailed, key_of, open_store

RENDERED = "outbox.document.rendered"
BEING_REMOVED = timedelta(seconds=2)
"""When to try again where the same content is just being removed from the store."""
CONTENT_TYPE = "application/pdf"
FILENAME_BYTES_MAX = 200
CONCURRENCY = 16
"""Deliveries at once where a subscription says nothing: more than the children of a small machine,
few enough that one organization's slow template leaves others their turn."""
STANDARDS = frozenset(
    "1.4 1.5 1.6 1.7 2.0 a-1a a-1b a-2a a-2b a-2u a-3a a-3b a-3u a-4 a-4e a-4f ua-1".split()
)
_KEYS = frozenset({"template", "filename", "engine", "pdf_standard"})


class PdfProcessor:
    """Renders, stores, tells. `pools` are the children by engine."""

    def __init__(
        self, templates: str | None, pools: Mapping[str, RenderPool], store: Store, notes: Notes
    ) -> None:
        self._templates = templates
        self._pools = pools
        self._store = store
        self._notes = notes
        self._names = Templates()
        self._named = lru_cache(maxsize=1000)(self._names.compile)

    async def __call__(self, work: Work, _deadline: float) -> Outcome:
        """One attempt."""
        assert work.setup is not None
        config = work.setup.config
        event = event_text(work)
        try:
            text = self._names.render(
                self._named(config["filename"], "filename"), orjson.loads(event)
            )
        except TemplateFailed as error:
            return Outcome(Kind.REJECTED, "filename_error", detail={"error": str(error)[:300]})
        try:
            root, file = find_template(self._templates, config["template"], config["engine"])
        except OutboxError as error:  # perhaps it is not yet deployed here
            return Outcome(Kind.INTERNAL, "template_missing", detail={"error": str(error)[:300]})
        job = Job(root, file, event, _unix_time(work), config["pdf_standard"])
        try:
            rendered = await self._pools[config["engine"]].render(job)
        except RenderFailed as error:
            return _failed(error)
        return await self._keep(work, rendered, fit_filename(text))

    async def _keep(self, work: Work, rendered: Rendered, filename: str) -> Outcome:
        content = rendered.document.content
        sha256 = hashlib.sha256(content).hexdigest()
        key = key_of(work.org_id, sha256)
        try:
            await self._notes.note(work.org_id, sha256)
            faults.passing("before", "store")
            await self._store.put(key, content)
            faults.passing("after", "store")
            url = await self._store.url(key)
        except StoreFailed as error:
            return Outcome(Kind.INTERNAL, "store_failed", detail={"error": str(error)[:300]})
        except BeingRemoved:
            return Outcome(Kind.INTERNAL, "being_removed", after=BEING_REMOVED)
        except FAILED as error:
            failed = {"error": describe(error)[:300]}
            return Outcome(Kind.INTERNAL, "note_failed", after=DATABASE_AWAY, detail=failed)
        artifact = _artifact(work, rendered, sha256, filename)
        told = {"sha256": sha256, "size": len(content), "pages": rendered.document.pages}
        effects = Effects((_announcement(work, artifact, url),), {"artifact": artifact})
        return Outcome(Kind.DELIVERED, "rendered", detail=told, effects=effects)


def event_text(work: Work) -> str:
    """What templates see of an event, as JSON; the payload's own text stands in it."""
    return orjson.dumps(
        {
            "id": work.event_id,
            "type": work.type,
            "subject": work.subject,
            "org_id": work.org_id,
            "timestamp": work.occurred_at,
            "data": orjson.Fragment(work.payload),
        }
    ).decode()


def _unix_time(work: Work) -> int:
    return int(datetime.fromisoformat(work.occurred_at).timestamp())


def _failed(error: RenderFailed) -> Outcome:
    kinds = {"template": Kind.REJECTED, "system": Kind.RETRY, "missing": Kind.INTERNAL}
    return Outcome(kinds[error.fault], error.reason, detail={"error": str(error)[:300]})


def _artifact(work: Work, rendered: Rendered, sha256: str, filename: str) -> dict[str, Any]:
    """The row, as the settle statement writes it."""
    assert work.setup is not None
    mixed = hashlib.sha256(work.delivery_id.bytes + bytes.fromhex(sha256)).digest()
    return {
        "id": str(UUID(bytes=work.delivery_id.bytes[:8] + mixed[:8])),
        "sha256": sha256,
        "size": len(rendered.document.content),
        "pages": rendered.document.pages,
        "filename": filename,
        "content_type": CONTENT_TYPE,
        "subject": work.subject,
        "engine": work.setup.config["engine"],
        "engine_version": rendered.engine_version,
        "template": work.setup.config["template"],
        "template_version": rendered.document.template_version,
    }


def _announcement(work: Work, artifact: Mapping[str, Any], url: str | None) -> Emission:
    """The event that follows. It has the subject of its source, so that what is asked or erased by
    subject finds both."""
    told = ("id", "sha256", "size", "pages", "filename", "content_type", "engine")
    payload = {
        "artifact": {name: artifact[name] for name in told}
        | {"url": url, "url_expires_in_s": int(LINK_LIFE.total_seconds()) if url else None},
        "source": {
            "event": work.event_id,
            "type": work.type,
            "subject": work.subject,
            "data": orjson.Fragment(work.payload),
        },
    }
    subject = work.subject or f"documents/{artifact['sha256']}"
    return Emission(RENDERED, orjson.dumps(payload).decode(), subject=subject)


# -- file names -----------------------------------------------------------------------------------

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f/\\:*?\"<>|\u200e\u200f\u202a-\u202e\u2066-\u2069]+")


def fit_filename(text: str) -> str:
    """No separators, no control or direction marks, no leading dot, not too long, `.pdf` at the
    end."""
    name = _UNFIT.sub("_", text).strip(" .")
    stem = name.removesuffix(".pdf").rstrip(" .") or "document"
    limit = FILENAME_BYTES_MAX - len(".pdf")
    return stem.encode()[:limit].decode(errors="ignore") + ".pdf"


# -- the kind -------------------------------------------------------------------------------------


def check_config(settings: Settings, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a subscription asks for, complete. Raises UsageError."""
    if unknown := sorted(config.keys() - _KEYS):
        known = ", ".join(sorted(_KEYS))
        raise UsageError(f"a pdf knows no {', '.join(map(repr, unknown))}; known are {known}")
    texts = {"template": None, "filename": "", "engine": "typst"}
    found = {name: config.get(name, default) for name, default in texts.items()}
    if not isinstance(found["template"], str) or not found["template"]:
        raise UsageError('a pdf needs a template, such as template = "outbox:invoice"')
    for name, value in found.items():
        if not isinstance(value, str) or len(value) > 1000:
            raise UsageError(f"{name} must be a text of at most 1000 characters")
    if found["engine"] not in SUFFIXES:
        raise UsageError(f"there is no engine {found['engine']!r}; write typst or weasyprint")
    try:
        _, file = find_template(settings.templates, found["template"], found["engine"])
    except ConfigurationError as error:
        raise UsageError(str(error)) from error
    found["filename"] = found["filename"] or fit_filename(file.rpartition(".")[0])
    Templates().compile(found["filename"], "filename")
    return found | {"pdf_standard": _standards(config.get("pdf_standard", []), found["engine"])}


def _standards(value: object, engine: str) -> list[str]:
    given: Sequence[object] = [value] if isinstance(value, str) else ()
    given = value if isinstance(value, list) else given
    names = [str(one) for one in given]
    if (value and not names) or not STANDARDS.issuperset(names):
        known = ", ".join(sorted(STANDARDS))
        raise UsageError(f"pdf_standard must be one of {known}, or a list of some")
    if engine == "weasyprint" and len(names) > 1:
        raise UsageError("weasyprint meets one pdf_standard at a time")
    return names


@asynccontextmanager
async def open_pdf(settings: Settings) -> AsyncIterator[dict[str, PdfProcessor]]:
    """The processor over children of its own, where an engine and a place for documents are there;
    else none."""
    if settings.artifacts_url is None or not (find_spec("typst") or find_spec("weasyprint")):
        yield {}
        return
    limits = Limits(settings.render_timeout.total_seconds(), settings.render_memory_mb << 20)
    pools = {
        engine: RenderPool(engine, size=settings.render_processes, limits=limits)
        for engine in SUFFIXES
    }
    async with AsyncExitStack() as stack:
        for pool in pools.values():
            stack.push_async_callback(pool.close)
        notes = Notes(lambda: connect_hot(settings.database, "artifacts"))
        stack.push_async_callback(notes.close)
        tend = asyncio.create_task(tending(settings))
        stack.callback(tend.cancel)
        yield {"pdf": PdfProcessor(settings.templates, pools, open_store(settings), notes)}


KIND = KindOfDestination(open=open_pdf, check=check_config, concurrency=CONCURRENCY)

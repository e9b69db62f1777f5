"""Templates that mean well and templates that do not, and a worker that renders."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

from outbox.settings import Settings
from outbox.store.artifacts import Notes
from outbox.store.connect import connect_hot
from outbox.store.subscriptions import Rule, add_kind
from processors.kinds import specify
from processors.pdf import PdfProcessor
from processors.rendering.engines import Job
from processors.rendering.library import find_template
from processors.rendering.pool import Limits, RenderPool
from processors.storage import Store, open_store
from tests.engine.engine import Engine
from tests.engine.running import until, working

AT = 1_700_000_000
INVOICE: dict[str, Any] = {
    "number": "R-1001",
    "currency": "EUR",
    "seller": {"name": "Möbel & Söhne", "address": ["Hauptstraße 1", "10115 Berlin"]},
    "customer": {"name": "Élodie Piñata", "address": "12 rue de la Paix\n75002 Paris"},
    "items": [
        {"description": "Lamp #1 *bold* $x$ @ref", "quantity": 2, "unit_price": "19.99"},
        {"description": '\\evil #read("/etc/passwd")', "quantity": 1.5, "unit_price": 100},
        {"description": "taxed", "unit": "h", "unit_price": 0.1, "tax_rate": 19},
    ],
}

HOSTILE = {
    "endless": "#for a in range(60000) { for b in range(60000) { } }",
    "memory": '#let a = "x" * 1000000000\n#let b = range(40).map(i => a + str(i))\n#b.len()',
    "package": '#import "@preview/cetz:0.3.0": canvas',
    "outside": '#read("../secret.txt")',
    "absolute": '#read("/../../../../etc/passwd")',
    "recursive": "#let f(x) = f(x + 1)\n#f(0)",
    "broken": "#let x = ",
}


def children_environ() -> dict[str, str]:
    """What coverage needs in a child; nothing without it."""
    return {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}


def pool_of(engine: str = "typst", **limits: Any) -> RenderPool:
    return RenderPool(engine, size=2, limits=Limits(**limits), environ=children_environ())


def event_of(data: object) -> str:
    stamp = datetime.fromtimestamp(AT).astimezone().isoformat()
    event = {
        "id": 1,
        "type": "invoice.issued",
        "subject": None,
        "org_id": "acme",
        "timestamp": stamp,
    }
    return json.dumps(event | {"data": data})


def job_of(template: str, data: object = INVOICE, folder: Path | None = None, **more: Any) -> Job:
    root, file = find_template(str(folder) if folder else None, template, "typst")
    return Job(root, file, event_of(data), AT, **more)


def hostile(folder: Path) -> Path:
    """A folder with one template for each way to be hostile."""
    root = folder / "templates"
    root.mkdir(exist_ok=True)
    (folder / "secret.txt").write_text("secret")
    for name, text in HOSTILE.items():
        (root / f"{name}.typ").write_text(text)
    (root / "good.typ").write_text("Hello #json(bytes(sys.inputs.event)).data")
    return root


def subscribe(
    engine: Engine, settings: Settings, org: str | None = "acme", /, **config: Any
) -> int:
    """A subscription of kind pdf to everything that users emit."""
    spec = specify(settings, "pdf", {"template": "outbox:invoice", **config})
    with psycopg.connect(engine.url, autocommit=True) as connection:
        return add_kind(connection, spec, Rule(("*",)), org)


@asynccontextmanager
async def processing(
    settings: Settings, store: Store | None = None, **limits: Any
) -> AsyncIterator[PdfProcessor]:
    """The processor with children that may be measured."""
    pool = pool_of(**limits)
    notes = Notes(lambda: connect_hot(settings.database, "artifacts"))
    store = store or open_store(settings)
    try:
        yield PdfProcessor(settings.templates, {"typst": pool}, store, notes)
    finally:
        await notes.close()
        await pool.close()


async def render_pending(
    engine: Engine,
    settings: Settings,
    store: Store | None = None,
    before_settle: Callable[[], None] | None = None,
    *,
    due: bool = False,
    **limits: Any,
) -> None:
    """Perform what is pending by a worker, and settle it."""
    leases = engine.due() if due else engine.leases()
    async with processing(settings, store, **limits) as processor:

        async def perform(work: Any, deadline: float) -> Any:
            outcome = await processor(work, deadline)
            if before_settle is not None:
                before_settle()
            return outcome

        async with working(engine.url, perform, kind="pdf") as running:
            await running.give(leases)
            await until(lambda: running.worker.in_flight == 0, within_s=30)
            await running.finish()


def artifacts(engine: Engine) -> list[dict[str, Any]]:
    rows = engine.rows("SELECT to_jsonb(a) FROM outbox.artifact a ORDER BY event_id")
    return [row[0] for row in rows]


def stored(folder: Path) -> list[Path]:
    """The documents in a folder store."""
    return sorted(path for path in folder.rglob("*") if path.is_file())

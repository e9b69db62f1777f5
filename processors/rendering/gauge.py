"""Measures the rendering children alone, for `outbox bench pdf`.

Run as a process of its own (`python -P -m processors.rendering.gauge`): one line of JSON says how
many documents, one line of JSON tells what they took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from outbox.bench.report import percentile
from outbox.errors import OutboxError
from outbox.logs import configure_logs
from processors.rendering.engines import Job
from processors.rendering.library import find_template
from processors.rendering.pool import RenderFailed, RenderPool, processors

AT = 1_700_000_000
ONE_PAGE_ROWS = 3


def job(number: int, rows: int) -> Job:
    """One invoice; no two are alike, since an engine may remember."""
    items = [
        {"description": f"Lamp no. {k}", "quantity": k, "unit_price": "19.99", "tax_rate": 19}
        for k in range(1, rows + 1)
    ]
    data = {
        "number": f"R-{number}",
        "currency": "EUR",
        "seller": {"name": "Acme", "address": ["Road 1", "Town"]},
        "customer": {"name": "Jane Doe", "address": ["Road 2", "Town"]},
        "items": items,
    }
    event = {
        "id": number,
        "type": "invoice.issued",
        "subject": f"orders/{number}",
        "org_id": "acme",
        "timestamp": "2023-11-14T22:13:20.000000Z",
        "data": data,
    }
    return Job(*find_template(None, "outbox:invoice", "typst"), json.dumps(event), AT)


async def measure(one_page: int, rows: int, many: int) -> dict[str, Any]:
    """Documents of one page a second with all children; milliseconds of one with `rows` lines, one
    after another in one warm child."""
    size = processors()
    pool = RenderPool("typst", size=size)
    try:
        await asyncio.gather(*(pool.render(job(-n, ONE_PAGE_ROWS)) for n in range(1, 2 * size + 1)))
        began_at = time.monotonic()
        await asyncio.gather(*(pool.render(job(n, ONE_PAGE_ROWS)) for n in range(1, one_page + 1)))
        rate = one_page / (time.monotonic() - began_at)
    finally:
        await pool.close()
    took_ms = await _one_after_another(rows, many)
    return {
        "children": size,
        "one_page_per_s": round(rate, 1),
        "one_page_documents": one_page,
        f"rows_{rows}_ms": {
            "p50": round(percentile(took_ms, 0.5), 1),
            "p95": round(percentile(took_ms, 0.95), 1),
            "min": round(min(took_ms), 1),
            "documents": many,
        },
    }


async def _one_after_another(rows: int, many: int) -> list[float]:
    pool = RenderPool("typst", size=1)
    try:
        for number in range(-5, 0):
            await pool.render(job(number, rows))
        took_ms = []
        for number in range(1, many + 1):
            began_at = time.monotonic()
            await pool.render(job(number, rows))
            took_ms.append((time.monotonic() - began_at) * 1000)
        return took_ms
    finally:
        await pool.close()


def main() -> None:
    """Answer the one question."""
    configure_logs("json")
    try:
        told: dict[str, Any] = asyncio.run(measure(**json.loads(sys.stdin.readline())))
    except (RenderFailed, OutboxError) as error:
        told = {"error": str(error)}
    sys.stdout.write(json.dumps(told) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()

"""WeasyPrint, the engine for HTML templates: it needs Pango, which no wheel brings."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TypeVar

import pytest

from processors.rendering.engines import Job
from processors.rendering.pool import RenderFailed, RenderPool
from tests.pdf.helpers import AT, event_of, pool_of

Result = TypeVar("Result")

INVOICE = """
{% include "style.html" %}
<h1>Invoice {{ event.data.number }}</h1>
<p>{{ event.data.customer }}</p>
{% for item in event.data["items"] %}<p>{{ item }}</p>{% endfor %}
"""
DATA = {"number": "R-1", "customer": "<b>Ä</b> {{ 7 * 7 }}", "items": ["lamp", "chair"]}
NEEDY = """
<link rel="stylesheet" href="{url}/a.css"><link rel="attachment" href="file:///etc/passwd">
<img src="{url}/b.png"><img src="file:///etc/passwd"><object data="{url}/c"></object>
<style>@import "{url}/d.css"; @font-face {{ font-family: x; src: url({url}/e.ttf) }}
p {{ background: url({url}/f.png); font-family: x }}</style><p>text</p>
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "invoice.html").write_text(INVOICE)
    (tmp_path / "style.html").write_text("<style>h1 { color: navy }</style>")
    return tmp_path


def job(folder: Path, template: str = "invoice.html", *standards: str) -> Job:
    return Job(str(folder), template, event_of(DATA), AT, list(standards))


def with_pool(act: Callable[[RenderPool], Awaitable[Result]], cpu_s: float = 30) -> Result:
    async def run() -> Result:
        pool = pool_of("weasyprint", cpu_s=cpu_s)
        try:
            return await act(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


@pytest.fixture
def website() -> Iterator[tuple[str, list[str]]]:
    """A server on loopback, and what it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def test_the_same_event_gives_the_same_bytes_in_every_process(folder: Path) -> None:
    async def act(pool: RenderPool) -> tuple[bytes, int, str]:
        made = (await pool.render(job(folder))).document
        return made.content, made.pages, made.template_version

    first = with_pool(act)
    assert first == with_pool(act)
    assert first[1] == 1
    (folder / "style.html").write_text("<style>h1 { color: red }</style>")
    changed = with_pool(act)
    assert changed[0] != first[0]
    assert changed[2] != first[2]


def test_pdf_a_is_an_option(folder: Path) -> None:
    async def act(pool: RenderPool) -> bytes:
        return (await pool.render(job(folder, "invoice.html", "a-3u"))).document.content

    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", with_pool(act), re.DOTALL)
    opened = [zlib.decompress(one) for one in streams if one[:1] == b"x"]
    assert any(b'pdfaid:part="3" pdfaid:conformance="U"' in one for one in [*streams, *opened])


def test_nothing_is_fetched_and_no_file_is_read(
    folder: Path, website: tuple[str, list[str]]
) -> None:
    url, asked = website
    (folder / "needy.html").write_text(NEEDY.format(url=url))

    async def act(pool: RenderPool) -> bytes:
        return (await pool.render(job(folder, "needy.html"))).document.content

    content = with_pool(act)
    assert asked == []
    assert b"EmbeddedFile" not in content


ENDLESS = "{% for a in range(9**5) %}{% for b in range(9**5) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(("text", "reason"), [
    ("{{ event.__class__.__mro__ }}", "render_error"),
    ("{% include '../secret.txt' %}", "render_error"),
    ("{{ event.data.none.deeper }}", "render_error"),
    (ENDLESS, "render_timeout"),
    ("{{ 'x' * 10 ** 10 }}", "render_memory"),
])  # fmt: skip
def test_hostile_templates_end_with_their_reason(folder: Path, text: str, reason: str) -> None:
    (folder / "hostile.html").write_text(text)

    async def act(pool: RenderPool) -> str:
        with pytest.raises(RenderFailed) as failed:
            await pool.render(job(folder, "hostile.html"))
        assert failed.value.fault == "template"
        return failed.value.reason

    assert with_pool(act, cpu_s=2) == reason

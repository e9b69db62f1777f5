"""A real browser: the page of the stand-in server, and supabase-js as browsers load it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest

from tests.chaos.proxy import Proxy, proxy_to
from tests.peers.javascript import Browser, browser
from tests.realtime.scene import Scene, awaited, token


@pytest.fixture
def proxy(scene: Scene) -> Iterator[Proxy]:
    with proxy_to(urlsplit(scene.url).port or 0) as opened:
        yield opened


def pane(topic: str, what: str) -> str:
    return f"document.querySelector('section[data-topic=\"{topic}\"] {what}')?.textContent"


async def lines(page: Browser, topic: str) -> list[str]:
    found: list[str] = await page.value(
        f"[...document.querySelectorAll('section[data-topic=\"{topic}\"] li')]"
        ".map((line) => line.firstChild.textContent)"
    )
    return found


@awaited
async def test_the_page_shows_two_organizations_side_by_side_and_a_gap(
    scene: Scene, chromium_program: str, tmp_path: Path, proxy: Proxy
) -> None:
    watch = [("orders:acme", "alice"), ("orders:globex", "greta"), ("orders:other", "greta")]
    fragment = urlencode([("watch", f"{topic}|{token(name)}") for topic, name in watch])
    url = f"http://127.0.0.1:{proxy.port}/#{fragment}"
    async with browser(chromium_program, tmp_path, url) as page:
        for topic in ("orders:acme", "orders:globex"):
            await page.until(f"{pane(topic, '.state')} === 'live'")
        await page.until(f"{pane('orders:other', '.state')}.startsWith('Unauthorized: ')")
        scene.send("orders:acme", "orders.inserted", total=7, note="<b>é</b>")
        scene.send("orders:globex", "orders.updated", total=8)
        scene.send("orders:acme", "orders.deleted")
        await page.until(f"{pane('orders:acme', 'li')}?.startsWith('orders.deleted')")
        await page.until(f"{pane('orders:globex', 'li')}?.startsWith('orders.updated')")
        assert await lines(page, "orders:acme") == ["orders.deleted", "orders.inserted"]
        assert await lines(page, "orders:globex") == ["orders.updated"]
        assert await page.value("document.querySelector('li b')") is None
        proxy.cut()
        await page.until(f"{pane('orders:acme', 'li')} === 'the connection was cut: something"
                         " may be missing here'")  # fmt: skip
        scene.send("orders:acme", "orders.back")
        await page.until(f"{pane('orders:acme', 'li')}.startsWith('orders.back')")
        for status in ("placed", "paid"):
            record = {"total": 12.5, "status": status}
            scene.send("orders:acme", "orders.updated", subject="orders/7", record=record)
        await page.until(f"{pane('orders:acme', 'li.thing .facts')} === 'paidtotal 12.50'")
        assert (await lines(page, "orders:acme")).count("orders/7") == 1


SUBSCRIBE = """
const client = supabase.createClient(%s, %s, {auth: {persistSession: false}});
window.heard = []; window.states = [];
client.realtime.setAuth(%s).then(() => client
  .channel("orders:acme", {config: {private: true}})
  .on("broadcast", {event: "*"}, (message) => window.heard.push(message))
  .subscribe((state) => window.states.push(state)));
"""


@awaited
async def test_supabase_js_in_a_browser_hears_what_sql_sends(
    scene: Scene, chromium_program: str, javascript: Path, tmp_path: Path
) -> None:
    root = scene.url.removesuffix("realtime/v1")
    library = javascript / "node_modules/@supabase/supabase-js/dist/umd/supabase.js"
    async with browser(chromium_program, tmp_path, root) as page:
        await page.value(library.read_text())
        key = json.dumps(token("alice"))
        await page.value(SUBSCRIBE % (json.dumps(root), key, key))
        await page.until("window.states.includes('SUBSCRIBED')")
        for number in range(20):
            scene.send("orders:acme", "orders.updated", number=number)
        heard = await page.until("window.heard.length === 20 && JSON.stringify(window.heard)")
        messages = json.loads(heard)
        assert [message["payload"]["number"] for message in messages] == list(range(20))
        assert all(one["meta"]["id"] == one["payload"]["id"] for one in messages)

"""Every command that takes --org, given another organization's and acme's ids: it shows nothing of
acme's and changes nothing. The rows stand in the table of docs/realtime.md."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.cli.helpers import Outbox, Shop

COMMANDS = {
    "CLI: events list": ("events", "list", "--json"),
    "CLI: events show": ("events", "show", "{event}"),
    "CLI: deliveries list": ("deliveries", "list", "--json"),
    "CLI: deliveries show": ("deliveries", "show", "{live}"),
    "CLI: deliveries cancel": ("deliveries", "cancel", "{live}", "--reason", "x"),
    "CLI: dead list": ("dead", "list", "--json"),
    "CLI: dead show": ("dead", "show", "{dead}"),
    "CLI: dead redrive": ("dead", "redrive", "{dead}"),
    "CLI: dead redrive, not by id": ("dead", "redrive", "--died-of", "http_500"),
    "CLI: dead discard": ("dead", "discard", "{dead}", "--reason", "x"),
    "CLI: endpoints list": ("endpoints", "list", "--json"),
    "CLI: endpoints show": ("endpoints", "show", "{endpoint}"),
    "CLI: endpoints pause": ("endpoints", "pause", "{endpoint}"),
    "CLI: endpoints resume": ("endpoints", "resume", "{endpoint}"),
    "CLI: endpoints remove": ("endpoints", "remove", "{endpoint}"),
    "CLI: endpoints rotate-secret": ("endpoints", "rotate-secret", "{endpoint}"),
    "CLI: endpoints test": ("endpoints", "test", "{endpoint}"),
    "CLI: subscriptions list": ("subscriptions", "list", "--json"),
    "CLI: subscriptions show": ("subscriptions", "show", "{subscription}"),
    "CLI: subscriptions remove": ("subscriptions", "remove", "{subscription}"),
    "CLI: redact": ("redact", "{event}", "--reason", "x"),
}
SECRET = "acme-only"


@pytest.fixture
def acme(shop: Shop, outbox: Outbox) -> dict[str, Any]:
    """Acme's events, a delivery that is still to come, a dead letter, endpoint, subscription."""
    for later in ("0 s", "1 hour"):
        shop.execute(
            "SELECT outbox.emit('orders.paid', %s::json, org_id => 'acme', subject => %s,"
            " deliver_at => clock_timestamp() + %s::interval)",
            [f'{{"note":"{SECRET}"}}', f"orders/{SECRET}", later],
        )
    assert outbox("run", "--once", **shop.environ).code == 0
    shop.execute(
        "INSERT INTO outbox.dead_letter (id, event_id, event_slot, subscription_id, revision,"
        " generation, lane, org_id, attempts, budget, expiries, reason, died_at)"
        " SELECT gen_random_uuid(), e.id, e.slot, s.id, 1, 1, s.lane, 'acme', 1, 1, 0, 'http_500',"
        " clock_timestamp() FROM outbox.event e, outbox.subscription s ORDER BY e.id LIMIT 1"
    )
    return {
        "event": shop.one("SELECT min(id) FROM outbox.event"),
        "live": shop.one("SELECT id FROM outbox.delivery"),
        "dead": shop.one("SELECT id FROM outbox.dead_letter"),
        "endpoint": shop.endpoint,
        "subscription": shop.one("SELECT id FROM outbox.subscription"),
    }


TABLES = ("event", "delivery", "dead_letter", "endpoint", "secret", "subscription", "journal")


def everything(url: str) -> list[Any]:
    with psycopg.connect(url) as connection:
        queries = [f"SELECT t::text FROM outbox.{table} t ORDER BY 1" for table in TABLES]
        return [connection.execute(query.encode()).fetchall() for query in queries]


def test_no_command_shows_or_changes_what_belongs_to_another_organization(
    outbox: Outbox, shop: Shop, acme: dict[str, Any]
) -> None:
    before = everything(shop.url)
    for name, words in COMMANDS.items():
        args = [word.format(**acme) for word in words]
        ran = outbox(*args, "--org", "globex", **shop.environ)
        assert SECRET not in ran.out + ran.err, name
        assert "acme" not in ran.out + ran.err, name
        assert ran.code in {0, 1, 9}, (name, ran.err)
        assert everything(shop.url) == before, name


def test_the_same_commands_by_acme_show_and_change_it(
    outbox: Outbox, shop: Shop, acme: dict[str, Any]
) -> None:
    """Or else all this would prove nothing."""
    for name in ("events show", "deliveries list", "dead list", "endpoints show"):
        args = [word.format(**acme) for word in COMMANDS[f"CLI: {name}"]]
        ran = outbox(*args, "--org", "acme", **shop.environ)
        assert "acme" in ran.out, name
    before = everything(shop.url)
    for name in ("dead redrive", "deliveries cancel", "endpoints remove"):
        args = [word.format(**acme) for word in COMMANDS[f"CLI: {name}"]]
        assert outbox(*args, "--org", "acme", **shop.environ).code == 0, name
        after = everything(shop.url)
        assert after != before, name
        before = after


def test_the_commands_stand_in_the_table_of_tries() -> None:
    text = (Path(__file__).parents[2] / "docs" / "realtime.md").read_text()
    assert re.findall(r"^\| (CLI: [^|]+?) \| 0 \|$", text, re.MULTILINE) == list(COMMANDS)

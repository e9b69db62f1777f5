"""The scenarios of deliveries: what is written, who receives it, and how it is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from outbox.bench.feed import Tally
from outbox.bench.nginx import start_nginx
from outbox.bench.program import Program
from outbox.bench.rates import Load, Rates
from outbox.bench.report import Found, Goal
from outbox.bench.rig import HOST, Rig
from outbox.errors import ConfigurationError
from outbox.store.connect import connect
from outbox.store.endpoints import EndpointSpec, add_endpoint
from outbox.store.realtime import require_shim
from outbox.store.subscriptions import Rule, add_kind
from outbox.store.watching import watch

ORG = "acme"
RETRY = "100ms,1s,5s,10s"
ALL = ("*",)

JOBS = """
CREATE SCHEMA bench;
CREATE TABLE bench.job (id bigint PRIMARY KEY, org text NOT NULL, note text NOT NULL)
"""
WRITE_JOBS = """
INSERT INTO bench.job
SELECT n, 'acme', rpad(n::text, 800, 'x')
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
"""Rows whose events have a payload of about 0.9 kB and a body of about 1 kB."""

ORDERS = """
CREATE SCHEMA bench;
CREATE TABLE bench.job (id bigint PRIMARY KEY, org text NOT NULL, name text NOT NULL,
                        email text NOT NULL, rows jsonb NOT NULL)
"""
WRITE_ORDERS = """
INSERT INTO bench.job
SELECT n, 'acme', 'Jane Doe ' || n, 'jane' || n || '@example.com',
       (SELECT jsonb_agg(jsonb_build_object('name', 'Lamp no. ' || k, 'price', '19.99'))
        FROM generate_series(1, 5) k)
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
LETTER = {
    "from": "Shop <shop@example.com>",
    "to": "{{ event.data.record.name }} <{{ event.data.record.email }}>",
    "subject": "Your order {{ event.data.record.id }}",
    "text": "Hello {{ event.data.record.name }},\n\n"
    "{% for row in event.data.record.rows %}{{ row.name }}: {{ row.price }} EUR\n{% endfor %}",
    "html": "<p>Hello {{ event.data.record.name }},</p><table>"
    "{% for row in event.data.record.rows %}"
    "<tr><td>{{ row.name }}</td><td>{{ row.price }} EUR</td></tr>{% endfor %}</table>",
}


def set_up(rig: Rig, schema: str) -> None:
    """Make the table whose rows become events."""
    with connect(rig.url, autocommit=True) as connection:
        connection.execute(schema.encode())
        watch(connection, "bench.job", org_column="org")


def subscribe(rig: Rig, kind: str, config: Mapping[str, Any], patterns: tuple[str, ...]) -> None:
    """Subscribe a destination of a kind to events of these types."""
    with connect(rig.url, autocommit=True) as connection:
        spec = rig.specify(rig.settings, kind, config)
        add_kind(connection, spec, Rule(patterns, retry=RETRY), ORG)


# -- webhooks -------------------------------------------------------------------------------------


def receive(rig: Rig, *, times: bool = False) -> tuple[int, str, Tally | None]:
    """Start a receiver of webhooks; its port, what it is, and how to ask it for its counts: nginx
    where there is one, which cannot tell `times`, else one of our own."""
    if not times and (found := start_nginx(rig)) is not None:
        return found
    receiver = rig.start("receiver", "outbox.bench.receiver")
    port = int(receiver.ask()["port"])
    return port, "own, one process", lambda: receiver.ask({})


def add_receiver(rig: Rig, port: int, org: str = ORG) -> None:
    """An endpoint of an organization, with default options."""
    rig.set(egress_ports=rig.settings.egress_ports | {port})
    spec = EndpointSpec(url=f"http://{HOST}:{port}/hook", org_id=org, rule=Rule(ALL, retry=RETRY))
    with connect(rig.url, autocommit=True) as connection:
        add_endpoint(connection, spec, rig.settings.key_ring())


def webhooks(rig: Rig, goal: Goal, workers: int) -> Found:
    """Signed webhooks through Redis, one endpoint."""
    port, receiver, tally = receive(rig)
    set_up(rig, JOBS)
    add_receiver(rig, port)
    rig.start_outbox(workers)
    found = Rates(rig, Load(WRITE_JOBS, 20_000, 5_000), goal.number, tally).measure()
    cpu_us = {k: v for k, v in found.detail["cpu_us_each"].items() if k != "receiver"}
    ours = round(sum(v for k, v in cpu_us.items() if k != "all"), 1)
    detail = {**found.detail, "cpu_us_each": {**cpu_us, "all": ours}}
    processes = {"relay": 1, "worker": workers, "receiver": receiver}
    return replace(found, detail=detail, conditions={**found.conditions, "processes": processes})


# -- others ---------------------------------------------------------------------------------------


def noop(rig: Rig, goal: Goal) -> Found:
    """A processor that does nothing, one worker process, through Redis."""
    set_up(rig, JOBS)
    rig.set(imports=("outbox.bench.jobs",))
    subscribe(rig, "bench.noop", {}, ALL)
    rig.start_outbox()
    return _with_processes(
        Rates(rig, Load(WRITE_JOBS, 30_000, 5_000), goal.number).measure(), relay=1, worker=1
    )


def broadcast(rig: Rig, goal: Goal) -> Found:
    """Messages as rows of realtime.messages, by the daemon alone."""
    require_shim(rig.url, install=True)
    set_up(rig, JOBS)
    subscribe(rig, "broadcast", {"include": ["note"], "transport": "sql"}, ALL)
    rig.start("relay", "outbox.bench.leash", "outbox", "run")

    def tally() -> dict[str, Any]:
        with connect(rig.url, autocommit=True) as connection:
            row = connection.execute(
                "SELECT count(*), count(DISTINCT payload ->> 'delivery') FROM realtime.messages"
            ).fetchone()
        assert row is not None
        return {"requests": row[0], "received": row[1]}

    found = Rates(rig, Load(WRITE_JOBS, 50_000, 5_000), goal.number, tally).measure()
    return _with_processes(found, relay=1)


def mail(rig: Rig, goal: Goal) -> Found:
    """Messages of two parts to a server on this machine that takes everything at once."""
    sink = rig.start("receiver", "outbox.bench.sink")
    rig.set(smtp_url=f"smtp://{HOST}:{sink.ask()['port']}?tls=none")
    set_up(rig, ORDERS)
    subscribe(rig, "email", LETTER, ALL)
    rig.start_outbox()
    found = Rates(
        rig, Load(WRITE_ORDERS, 5_000, 1_000), goal.number, lambda: sink.ask({})
    ).measure()
    return _with_processes(
        found, relay=1, worker=1, receiver="own SMTP server, no TLS, 20 connections"
    )


def _with_processes(found: Found, **processes: object) -> Found:
    return replace(found, conditions={**found.conditions, "processes": processes})


# -- documents ------------------------------------------------------------------------------------

INVOICE = {"template": "outbox:invoice", "filename": "invoice-{{ event.data.number }}.pdf"}
WRITE_INVOICES = """
SELECT outbox.emit('invoice.issued', json_build_object(
    'number', 'R-' || n, 'currency', 'EUR',
    'seller', json_build_object('name', 'Acme', 'address', json_build_array('Road 1', 'Town')),
    'customer', json_build_object('name', 'Jane Doe', 'address', json_build_array('Road 2')),
    'items', (SELECT json_agg(json_build_object('description', 'Lamp no. ' || k, 'quantity', k,
                                                'unit_price', '19.99', 'tax_rate', 19))
              FROM generate_series(1, {rows}) k)), 'acme', 'orders/' || n)
FROM generate_series(%(first)s::bigint, %(last)s::bigint) n
"""
ONE_PAGE_ROWS, MANY_ROWS = 3, 50
ROWS_50 = Goal(45.0, "ms", at_least=False)


def pdf(rig: Rig, goal: Goal) -> Found:
    """One-page invoices from event to settled row, into a folder; and the children alone."""
    folder = rig.folder / "documents"
    folder.mkdir()
    rig.set(artifacts_url=folder.as_uri())
    subscribe(rig, "pdf", INVOICE, ("invoice.issued",))
    alone = _rendering_alone(rig)
    rig.start_outbox()
    load = Load(WRITE_INVOICES.format(rows=ONE_PAGE_ROWS), 1_000, 200, warm_up=50)

    def tally() -> dict[str, Any]:
        stored = sum(1 for path in folder.rglob("*.pdf"))
        return {"requests": stored, "received": stored}

    found = Rates(rig, load, goal.number, tally).measure()
    rows_50 = {"goal_p50_ms": ROWS_50.number, "met": ROWS_50.met(alone["rows_50_ms"]["p50"])}
    detail = {**found.detail, "pool_alone": alone, "rows_50": rows_50}
    holds = found.holds and bool(rows_50["met"])
    found = replace(found, holds=holds, detail=detail)
    return _with_processes(found, relay=1, worker=1, rendering=alone["children"])


def _rendering_alone(rig: Rig) -> dict[str, Any]:
    gauge: Program = rig.start("rendering", "processors.rendering.gauge")
    told = gauge.ask(
        {
            "one_page": int(rig.choose(400, 60, rig.asked.events)),
            "rows": MANY_ROWS,
            "many": int(rig.choose(60, 15, rig.asked.events)),
        }
    )
    if "error" in told:
        raise ConfigurationError(told["error"])
    gauge.end()
    rig.programs.pop("rendering")
    return {key: value for key, value in told.items() if key != "error"}

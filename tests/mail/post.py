"""A database with e-mail subscriptions, a real worker, and an SMTP server that the test scripts."""

from __future__ import annotations

import asyncio
import email
import email.policy
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import psycopg

from outbox.settings import Settings, load_settings
from outbox.store.subscriptions import Rule, add_kind
from processors.kinds import specify
from processors.mail.processor import open_email
from tests.engine.engine import Engine, Lease
from tests.engine.running import until, working
from tests.mail.sink import Sink

CONFIG: Mapping[str, Any] = {
    "to": "{{ event.data.to }}",
    "from": "Shop <shop@example.com>",
    "subject": "Order {{ event.data.id }}",
    "text": "Hello {{ event.data.name }}",
}


def parsed(data: bytes) -> EmailMessage:
    """A message as the standard library reads it, without a defect."""
    message = email.message_from_bytes(data, policy=email.policy.SMTPUTF8)
    assert isinstance(message, EmailMessage)
    for part in message.walk():
        assert not part.defects
        for value in part.values():
            assert not getattr(value, "defects", ()), value
    return message


class Post:
    """Everything between an event and the sink."""

    def __init__(self, url: str, sink: Sink, **settings: str) -> None:
        self.engine = Engine(url)
        self.sink = sink
        self.checked = True
        self.environ = {
            "OUTBOX_DATABASE_URL": url,
            "OUTBOX_SMTP_URL": f"smtp://127.0.0.1:{sink.port}?tls=none",
        } | settings

    @property
    def settings(self) -> Settings:
        return load_settings({}, self.environ)

    def subscribe(
        self,
        config: Mapping[str, Any] = CONFIG,
        org: str | None = "acme",
        retry: str = "5s,5s,5s,5s,5s,5s,5s,5s",
        **more: Any,
    ) -> int:
        timeout = more.pop("timeout", None)
        spec = specify(self.settings, "email", {**CONFIG, **config, **more})
        if timeout is not None:
            spec = replace(spec, timeout=timeout)
        with psycopg.connect(self.engine.url, autocommit=True) as connection:
            return add_kind(connection, spec, Rule(("orders.*", "outbox.*"), retry=retry), org)

    def emit(self, org: str = "acme", n: int = 1, **data: Any) -> list[int]:
        payload = json.dumps({"to": "jane@example.org", "id": 7, "name": "Jane"} | data)
        return self.engine.emit(n, org=org, payload=payload)

    def deliver(self, leases: Sequence[Lease] | None = None) -> list[UUID]:
        """One attempt of everything that is pending or was handed over; the deliveries."""
        given = self.engine.leases() if leases is None else leases
        asyncio.run(self._deliver(given))
        return sorted(delivery for delivery, _ in given)

    async def _deliver(self, leases: Sequence[Lease]) -> None:
        async with open_email(self.settings) as processors:
            async with working(self.engine.url, processors["email"], kind="email") as running:
                await running.give(leases)
                await until(lambda: running.worker.in_flight == 0, 30.0)
                await running.finish()

    def again(self, hours: int = 1) -> list[UUID]:
        """The next attempt of everything that is due within some hours."""
        later = self.engine.now() + timedelta(hours=hours)
        self.engine.run("UPDATE outbox.delivery SET due_at = clock_timestamp() - interval '1s'"
                        " WHERE state = 'scheduled' AND due_at < %s", later)  # fmt: skip
        return self.deliver(self.engine.due())

    def people(self, delivery: UUID) -> dict[str, tuple[str, str | None, int]]:
        """State, reply and attempts by address."""
        rows = self.engine.rows(
            "SELECT address, state, reply, attempts FROM outbox.email_recipient"
            " WHERE delivery_id = %s ORDER BY n",
            delivery,
        )
        return {row[0]: (row[1], row[2], row[3]) for row in rows}

    def states(self, delivery: UUID) -> dict[str, str]:
        return {address: state for address, (state, _, _) in self.people(delivery).items()}

    def end(self, delivery: UUID) -> tuple[str, str]:
        """How the latest attempt ended: the fact and its reason."""
        fact, reason, _, _ = self.engine.facts(delivery)[-1]
        return fact, reason

    def suppressed(self) -> list[tuple[str, str, str]]:
        return self.engine.rows(
            "SELECT org_id, address, reason FROM outbox.suppression ORDER BY 1, 2"
        )

"""What a worker hands to a processor may end up in a log line: it shows no secret, no payload."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

from outbox.work import Endpoint, SigningKey, Work


def test_the_representation_of_work_shows_no_key_no_header_and_no_payload() -> None:
    endpoint = Endpoint(
        id="1",
        org_id="acme",
        url="https://hooks.example.com/",
        keys=(SigningKey("hmac", b"key-material"),),
        headers={"Authorization": "Bearer token-value"},
        timeout=timedelta(seconds=15),
    )
    work = Work(
        delivery_id=UUID(int=1),
        event_id=1,
        type="orders.paid",
        occurred_at="2026-01-01T00:00:00.000000Z",
        payload=b'{"iban": "secret-payload"}',
        attempt=1,
        body_format=1,
        endpoint=endpoint,
    )
    shown = repr(work)
    assert "orders.paid" in shown
    for hidden in ("key-material", "token-value", "secret-payload"):
        assert hidden not in shown

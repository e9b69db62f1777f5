"""A receiver of what providers report about e-mail, to mount into Starlette or FastAPI.

    app.mount("/mail-reports", bounce_receiver("whsec_...", database_url, org="acme"))

It takes a POST signed after Standard Webhooks, whose body is JSON events (`outbox.bounces`) or a
delivery status notification. Answers: 200 with counts; 400, 401 and 413 as the other receivers; 422
for a body that is no report; 503 while the database cannot be reached, so that it is posted again.
"""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from outbox.bounces import Report, read_reports
from outbox.errors import OutboxError, UsageError
from outbox.receivers import Secrets
from outbox.receivers.starlette import receive
from outbox.signature import Verified


def bounce_receiver(secrets: Secrets, database_url: str, *, org: str | None = None) -> Starlette:
    """An application that notes reports. With `org`, of that organization's messages alone,
    whatever a report names: give each organization whose provider posts a receiver of its own."""

    def note(reports: list[Report]) -> dict[str, int]:
        from outbox.store.connect import connect
        from outbox.store.emails import note_reports

        with connect(database_url, autocommit=True) as connection:
            noted = note_reports(connection, reports, org)
        return {"reports": noted.reports, "known": noted.known, "changed": noted.changed}

    @receive(secrets)
    async def posted(_request: Request, webhook: Verified) -> Response:
        try:
            reports = read_reports(webhook.body)
        except UsageError as error:
            return JSONResponse({"error": "not_a_report", "message": str(error)}, 422)
        try:
            return JSONResponse(await run_in_threadpool(note, reports))
        except OutboxError as error:
            return JSONResponse({"error": "not_noted", "message": str(error)}, 503)

    return Starlette(routes=[Route("/", posted, methods=["POST"])])

"""Four small applications with the same routes, and their real servers on loopback.

`/hook` verifies, `/small` allows 64 bytes, `/public` holds an ed25519 key, `/rotating` asks for its
secrets on each request, `/once` protects against replays. Each answers with what it received.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Annotated, Any
from wsgiref.simple_server import WSGIRequestHandler
from wsgiref.simple_server import make_server as make_wsgi_server

import django
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import JsonResponse as DjangoResponse
from django.urls import path
from fastapi import Depends, FastAPI, HTTPException
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from werkzeug.serving import WSGIRequestHandler as WerkzeugHandler
from werkzeug.serving import make_server as make_werkzeug_server

from outbox import Verified
from outbox.receivers import django as for_django
from outbox.receivers import flask as for_flask
from outbox.receivers import starlette as for_starlette
from outbox.signature import format_public_key, format_secret

SECRET = format_secret(b"a secret that the tests share...")
NEW_SECRET = format_secret(b"the one it is rotated to........")
PRIVATE = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = format_public_key(PRIVATE.public_key().public_bytes_raw())

# What Flask and Django are told to accept at most, for all routes.
FRAMEWORK_MAX = 1000

OPTIONS: dict[str, dict[str, Any]] = {
    "hook": {"secrets": SECRET},
    "small": {"secrets": SECRET, "body_max": 64},
    "public": {"secrets": PUBLIC},
    "rotating": {"secrets": lambda: [NEW_SECRET, SECRET]},
}


class Journal:
    """What the handlers of one application did. An id is marked once its work is done."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.processed: set[str] = set()
        self.failing = False

    def seen(self, message_id: str) -> bool:
        return message_id in self.processed

    async def seen_async(self, message_id: str) -> bool:
        return self.seen(message_id)

    def handle(self, hook: Verified) -> tuple[int, dict[str, Any]]:
        self.runs.append(hook.id)
        if self.failing:
            return 500, {"error": "the work failed"}
        self.processed.add(hook.id)
        digest = hashlib.sha256(hook.body).hexdigest()
        return 200, {"id": hook.id, "digest": digest, "type": hook.json()["type"]}


def starlette_app(journal: Journal) -> Starlette:
    async def handler(request: Request, hook: Verified) -> JSONResponse:
        status, content = journal.handle(hook)
        return JSONResponse(content, status)

    options = OPTIONS | {"once": {"secrets": SECRET, "seen": journal.seen_async}}
    return Starlette(
        routes=[
            Route(f"/{name}", for_starlette.receive(**given)(handler), methods=["POST"])
            for name, given in options.items()
        ]
    )


def fastapi_app(journal: Journal) -> FastAPI:
    app = FastAPI()
    for name, given in (OPTIONS | {"once": {"secrets": SECRET, "seen": journal.seen}}).items():
        verified = for_starlette.webhook(**given)

        def handler(hook: Annotated[Verified, Depends(verified)]) -> dict[str, Any]:
            status, content = journal.handle(hook)
            if status != 200:
                raise HTTPException(status, content)
            return content

        # FastAPI reads annotations as objects; those of this module are texts.
        handler.__annotations__ = {"hook": Annotated[Verified, Depends(verified)]}
        app.post(f"/{name}", response_model=None)(handler)
    return app


def flask_app(journal: Journal) -> Flask:
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = FRAMEWORK_MAX
    for name, given in (OPTIONS | {"once": {"secrets": SECRET, "seen": journal.seen}}).items():

        @app.post(f"/{name}", endpoint=name)
        @for_flask.webhook(**given)
        def view(hook: Verified) -> tuple[dict[str, Any], int]:
            status, content = journal.handle(hook)
            return content, status

    return app


# Django has one configuration a process: its two applications share the routes and this switch.
_DJANGO_JOURNALS: dict[str, Journal] = {}


def _django_routes(kind: str) -> list[Any]:
    def seen(message_id: str) -> bool:
        return _DJANGO_JOURNALS[kind].seen(message_id)

    def view(request: Any, hook: Verified) -> Any:
        status, content = _DJANGO_JOURNALS[kind].handle(hook)
        return DjangoResponse(content, status=status)

    async def view_async(request: Any, hook: Verified) -> Any:
        return view(request, hook)

    options = OPTIONS | {"once": {"secrets": SECRET, "seen": seen}}
    chosen = view if kind == "wsgi" else view_async
    return [
        path(f"{kind}/{name}", for_django.webhook(**given)(chosen))
        for name, given in options.items()
    ]


def _configure_django() -> None:
    if settings.configured:
        return
    routes = type("Routes", (), {"urlpatterns": _django_routes("wsgi") + _django_routes("asgi")})
    settings.configure(
        ROOT_URLCONF=routes,
        ALLOWED_HOSTS=["127.0.0.1"],
        DATA_UPLOAD_MAX_MEMORY_SIZE=FRAMEWORK_MAX,
        SECRET_KEY="tests",
        MIDDLEWARE=["django.middleware.csrf.CsrfViewMiddleware"],
        LOGGING_CONFIG=None,
    )
    django.setup()


# --- servers ------------------------------------------------------------------------------------


@contextmanager
def _serving(serve: Callable[[], None], stop: Callable[[], None]) -> Iterator[None]:
    thread = Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


@contextmanager
def uvicorn_server(app: Any) -> Iterator[str]:
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]

        def stop() -> None:
            server.should_exit = True

        with _serving(lambda: server.run(sockets=[listening]), stop):
            yield f"http://127.0.0.1:{port}"


class _QuietWerkzeug(WerkzeugHandler):
    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 - the name it has there
        pass


class _QuietWsgiref(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it has there
        pass


@contextmanager
def serving(kind: str, journal: Journal) -> Iterator[str]:
    """Serve one application and yield the address before its routes."""
    if kind == "starlette":
        with uvicorn_server(starlette_app(journal)) as address:
            yield address
    elif kind == "fastapi":
        with uvicorn_server(fastapi_app(journal)) as address:
            yield address
    elif kind == "flask":
        flask_server = make_werkzeug_server(
            "127.0.0.1", 0, flask_app(journal), request_handler=_QuietWerkzeug
        )
        with _serving(flask_server.serve_forever, flask_server.shutdown):
            yield f"http://127.0.0.1:{flask_server.server_port}"
        flask_server.server_close()
    else:
        with _django_server(kind, journal) as address:
            yield address


@contextmanager
def _django_server(kind: str, journal: Journal) -> Iterator[str]:
    _configure_django()
    _DJANGO_JOURNALS[kind.removeprefix("django_")] = journal
    if kind == "django_asgi":
        with uvicorn_server(get_asgi_application()) as address:
            yield f"{address}/asgi"
        return
    server = make_wsgi_server("127.0.0.1", 0, get_wsgi_application(), handler_class=_QuietWsgiref)
    with _serving(server.serve_forever, server.shutdown):
        yield f"http://127.0.0.1:{server.server_port}/wsgi"
    server.server_close()

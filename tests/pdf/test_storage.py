"""Where documents are kept: a folder, and a bucket behind a server that speaks S3."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import urllib.request
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit

import psycopg
import pytest
from moto.server import ThreadedMotoServer

from outbox.embedded import free_port
from outbox.errors import ConfigurationError, DatabaseUnavailable, NotFound
from outbox.settings import Settings, load_settings
from outbox.store.artifacts import ArtifactBook
from outbox.store.redaction import redact
from processors.artifacts import fetch, tend_once
from processors.storage import FolderStore, Store, StoreFailed, key_of, open_store
from tests.chaos.proxy import proxy_to
from tests.engine.engine import Engine
from tests.pdf.helpers import INVOICE, artifacts, render_pending, subscribe

PDF = b"%PDF-1.7 bytes"
KEY = key_of("acme", hashlib.sha256(PDF).hexdigest())


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """A server that speaks S3, on loopback; its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket_url(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A fresh bucket and the credentials for it; its OUTBOX_ARTIFACTS_URL."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    for method, path in (("POST", "/moto-api/reset"), ("PUT", "/documents")):
        request = urllib.request.Request(s3 + path, method=method)  # noqa: S310 (loopback)
        urllib.request.urlopen(request).close()  # noqa: S310
    return f"s3://documents/some/prefix?endpoint={s3}"


def test_what_a_writer_that_died_has_left_goes_with_time(tmp_path: Path) -> None:
    """Killed in the middle of a file: no document, and no rest for ever."""
    store = FolderStore(tmp_path)
    asyncio.run(store.sweep())
    asyncio.run(store.put(KEY, PDF))
    for name in ("old", "new"):
        (tmp_path / ".begun" / name).write_bytes(PDF[:3])
    os.utime(tmp_path / ".begun" / "old", (0, 0))
    asyncio.run(store.sweep())
    assert sorted(path.name for path in (tmp_path / ".begun").iterdir()) == ["new"]
    assert asyncio.run(store.get(KEY)) == PDF


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return FolderStore(tmp_path / "documents")
    return open_store(Settings(artifacts_url=request.getfixturevalue("bucket_url")))


def run(act: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(act)


def test_what_is_stored_is_stored_once_and_removed_for_good(store: Store) -> None:
    async def act() -> list[bytes | None]:
        seen = [await store.get(KEY)]
        await asyncio.gather(*(store.put(KEY, PDF) for _ in range(5)))
        await store.put(KEY, b"other bytes under a name that is taken")
        seen.append(await store.get(KEY))
        for _ in range(2):
            await store.remove(KEY)
        return [*seen, await store.get(KEY)]

    assert run(act()) == [None, PDF, None]


def test_a_link_of_a_bucket_is_signed_expires_and_opens_one_document(bucket_url: str) -> None:
    store = open_store(Settings(artifacts_url=bucket_url))
    run(store.put(KEY, PDF))
    url = run(store.url(KEY))
    assert "X-Amz-Expires=604800" in url
    assert "X-Amz-Signature=" in url
    assert "very-secret" not in url
    with urllib.request.urlopen(url) as answer:  # noqa: S310 (loopback)
        assert answer.read() == PDF
        assert answer.headers["content-type"] == "application/pdf"
    assert store.place(KEY) == f"s3://documents/some/prefix/{KEY}"


def test_a_folder_gives_no_link_and_leaves_no_half_document(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert run(store.url(KEY)) is None
    run(store.put(KEY, PDF))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / KEY]
    assert store.place(KEY) == str(tmp_path / KEY)


def failing_folder(tmp_path: Path) -> Store:
    (tmp_path / "file").write_text("no folder")
    return FolderStore(tmp_path / "file")


def failing_bucket(_tmp_path: Path) -> Store:
    return open_store(
        Settings(artifacts_url=f"s3://documents?endpoint=http://127.0.0.1:{free_port()}")
    )


@pytest.mark.parametrize("make", [failing_folder, failing_bucket])
def test_a_store_that_fails_says_so_in_a_line_without_secrets(
    make: Callable[[Path], Store], tmp_path: Path, bucket_url: str
) -> None:
    with pytest.raises(StoreFailed) as failed:
        run(make(tmp_path).put(KEY, PDF))
    assert "\n" not in str(failed.value)
    assert "very-secret" not in str(failed.value)


def test_a_bucket_that_refuses_is_a_failure_and_not_a_missing_document(
    s3: str, bucket_url: str
) -> None:
    store = open_store(Settings(artifacts_url=bucket_url.replace("documents", "nobodys")))
    with pytest.raises(StoreFailed):
        run(store.put(KEY, PDF))
    with pytest.raises(HTTPError):
        urllib.request.urlopen(f"{s3}/documents/{KEY}")  # noqa: S310 (loopback)


def test_from_an_event_to_a_link_that_opens_and_back_to_nothing(
    engine: Engine, settings: Settings, bucket_url: str
) -> None:
    """The whole way over a bucket, with a retry that finds the document stored."""
    over_s3 = replace(settings, artifacts_url=bucket_url)
    subscribe(engine, over_s3)
    engine.emit(payload=json.dumps(INVOICE))

    def lose() -> None:
        engine.run("UPDATE outbox.delivery SET token = token + 1")

    run(render_pending(engine, over_s3, before_settle=lose))
    engine.run("UPDATE outbox.delivery SET lease_until = now() - interval '1 s'")
    engine.expire()
    run(render_pending(engine, over_s3, due=True))
    [row] = artifacts(engine)
    query = "SELECT payload -> 'artifact' FROM outbox.event WHERE type LIKE 'outbox.%%'"
    told = engine.one(query)
    with urllib.request.urlopen(told["url"]) as answer:  # noqa: S310 (loopback)
        assert hashlib.sha256(answer.read()).hexdigest() == row["sha256"]
    assert told["url_expires_in_s"] == 7 * 24 * 3600
    assert len(run(fetch(over_s3, "acme", row["sha256"]))) == row["size"]
    with psycopg.connect(engine.url, autocommit=True) as connection:
        redact(connection, [row["event_id"]], "asked")
    assert run(tend_once(over_s3)) == 1
    with pytest.raises(HTTPError):
        urllib.request.urlopen(told["url"])  # noqa: S310


# -- names ----------------------------------------------------------------------------------------

ORGS = [
    "acme",
    "ACME",
    "a/b",
    "..",
    ".",
    "=2F",
    "a=2Fb",
    "ä",
    "x" * 500,
    "x" * 501,
    "",
    None,
    "system",
]


def test_every_organization_has_a_prefix_of_its_own() -> None:
    keys = [key_of(org, "0" * 64) for org in ORGS]
    assert len(set(keys)) == len(ORGS)
    for key in keys:
        prefix, folder, name = key.split("/")
        assert prefix.strip(".")
        assert (folder, name) == ("00", "0" * 64 + ".pdf")
        assert len(prefix) < 200


@pytest.mark.parametrize("sha256", ["", "../x", "0" * 63, "G" * 64, "0" * 64 + "\n"])
def test_only_a_hash_names_a_document(sha256: str) -> None:
    with pytest.raises(NotFound, match="64 hexadecimal digits"):
        key_of("acme", sha256)


# -- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", [
    "/documents", "file://host/documents", "file:relative", "s3://", "http://bucket/x",
    "s3://bucket/?secret=x", "s3://bucket/?endpoint", "s3://key:secret@bucket/x",
])  # fmt: skip
def test_a_url_that_is_none_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load_settings({}, {"OUTBOX_ARTIFACTS_URL": url})
    assert str(refused.value).startswith("OUTBOX_ARTIFACTS_URL: ")
    assert "secret@" not in str(refused.value)


@pytest.mark.parametrize(("name", "text", "told"), [
    ("TEMPLATES", "/nowhere", "is not a folder"),
    ("RENDER_PROCESSES", "0", "a number from 1 to 256"),
    ("RENDER_MEMORY_MB", "lots", "a number from 256"),
    ("ARTIFACTS_KEEP", "1s", "out of range"),
])  # fmt: skip
def test_other_settings_are_checked(name: str, text: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told):
        load_settings({}, {f"OUTBOX_{name}": text})


def test_without_the_setting_there_is_no_store() -> None:
    with pytest.raises(ConfigurationError, match="OUTBOX_ARTIFACTS_URL is not set"):
        open_store(Settings())


def test_an_answer_that_never_comes_ends_as_a_database_that_is_away(
    engine: Engine, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something in between keeps the connection alive; an e-mail must not wait for ever."""
    port = urlsplit(engine.url).port
    assert port is not None
    knows = ArtifactBook.knows

    with proxy_to(port) as wire:

        async def lost(book: ArtifactBook, org_id: str | None, sha256: str) -> bool:
            wire.freeze()
            return await knows(book, org_id, sha256)

        monkeypatch.setattr("outbox.store.connect.ANSWER_S_MAX", 0.2)
        monkeypatch.setattr(ArtifactBook, "knows", lost)
        through = replace(settings, database_url=wire.through(engine.url))
        with pytest.raises(DatabaseUnavailable):
            asyncio.run(fetch(through, "acme", "0" * 64))

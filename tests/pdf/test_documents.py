"""From an event to a document: what is recorded and told with the settle, what goes with a
redaction, and that whatever dies in between leaves one document."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.errors import NotFound
from outbox.secrets import KeyRing
from outbox.settings import Settings
from outbox.store.artifacts import REMOVE_S, ArtifactBook, Notes, remove_artifacts
from outbox.store.connect import HotConnection, connect_hot
from outbox.store.migrate import migrate
from outbox.store.redaction import Choice, count, find_events, redact
from processors.artifacts import fetch, remove_strays, tend_once
from processors.pdf import fit_filename, open_pdf
from processors.storage import FolderStore, StoreFailed, key_of
from tests.cli.helpers import Process
from tests.engine.engine import Engine
from tests.pdf.helpers import INVOICE, artifacts, render_pending, stored, subscribe

PAYLOAD = json.dumps(INVOICE)
ANNOUNCED = "SELECT payload::text FROM outbox.event WHERE type = 'outbox.document.rendered'"


def invoice(engine: Engine, org: str | None = "acme", **options: Any) -> int:
    given = {"type": "invoice.issued", "payload": PAYLOAD, "subject": "invoices/1001", **options}
    return engine.emit(org=org, **given)[0]


def announced(engine: Engine) -> list[dict[str, Any]]:
    return [json.loads(row[0]) for row in engine.rows(f"{ANNOUNCED} ORDER BY id")]


def reasons(engine: Engine) -> list[tuple[str, bool]]:
    query = (
        "SELECT reason, charged FROM outbox.journal WHERE fact NOT IN ('routed', 'lease_expired')"
    )
    return [(row[0], row[1]) for row in engine.rows(f"{query} ORDER BY at")]


def strays(engine: Engine) -> int:
    return int(engine.one("SELECT count(*) FROM outbox.artifact_stray"))


# -- the good way ---------------------------------------------------------------------------------


def test_an_event_becomes_a_document_a_row_and_an_event(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    filename = "{{ event.data.number }}/{{ event.org_id }}.pdf"
    subscribe(engine, settings, filename=filename, pdf_standard="a-3b")
    event = invoice(engine)
    asyncio.run(render_pending(engine, settings))

    [path] = stored(documents)
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    assert path == documents / key_of("acme", sha256)
    assert b"<pdfaid:part>3<" in content

    [row] = artifacts(engine)
    assert (row["sha256"], row["size"], row["pages"]) == (sha256, len(content), 1)
    assert (row["event_id"], row["org_id"], row["subject"]) == (event, "acme", "invoices/1001")
    assert (row["filename"], row["template"]) == ("R-1001_acme.pdf", "outbox:invoice")
    assert row["engine"] == "typst"
    assert row["engine_version"]
    assert len(row["template_version"]) == 64

    [told] = announced(engine)
    assert told["artifact"] == {
        "id": row["id"], "sha256": sha256, "size": len(content), "pages": 1,
        "filename": "R-1001_acme.pdf", "content_type": "application/pdf", "engine": "typst",
        "url": None, "url_expires_in_s": None,
    }  # fmt: skip
    assert told["source"] == {
        "event": event, "type": "invoice.issued", "subject": "invoices/1001", "data": INVOICE,
    }  # fmt: skip
    query = "SELECT id, org_id, subject FROM outbox.event WHERE type = 'outbox.document.rendered'"
    [(follower, org, subject)] = engine.rows(query)
    assert (org, subject, row["announced"]) == ("acme", "invoices/1001", [follower])
    assert engine.leases() == [], "it does not feed itself"
    assert strays(engine) == 0
    assert asyncio.run(fetch(settings, "acme", sha256)) == content
    engine.check()


def test_a_document_belongs_to_its_organization(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    """The same content of two organizations is stored twice and read by its own alone."""
    (Path(settings.templates or "") / "same.typ").write_text("#set document(date: none)\nSame")
    for org in ("acme", "rival"):
        subscribe(engine, settings, org, template="same")
    invoice(engine, "acme")
    asyncio.run(render_pending(engine, settings))
    [mine] = artifacts(engine)
    for other in ("rival", None):
        with pytest.raises(NotFound, match="of this organization"):
            asyncio.run(fetch(settings, other, mine["sha256"]))
    invoice(engine, "rival")
    asyncio.run(render_pending(engine, settings))
    assert {row["sha256"] for row in artifacts(engine)} >= {mine["sha256"]}
    assert len(stored(documents)) == 2


def test_a_template_that_fails_is_a_dead_letter_with_its_reason(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    for name in ("endless", "memory", "package", "outside", "good"):
        subscribe(engine, settings, template=name)
    subscribe(engine, settings, filename="{{ event.data.none }}")
    invoice(engine, payload='"word"')
    asyncio.run(render_pending(engine, settings, cpu_s=1, memory_bytes=512 << 20))
    dead = engine.rows("SELECT reason, detail ->> 'error' FROM outbox.dead_letter ORDER BY reason")
    assert [reason for reason, _ in dead] == [
        "filename_error", "render_error", "render_error", "render_memory", "render_timeout",
    ]  # fmt: skip
    assert all(error for _, error in dead)
    assert [row["template"] for row in artifacts(engine)] == ["good"]
    assert len(stored(documents)) == 1


def test_a_template_that_is_not_yet_here_waits_uncharged(
    engine: Engine, settings: Settings
) -> None:
    subscribe(engine, settings, template="good")
    (Path(settings.templates or "") / "good.typ").unlink()
    invoice(engine)
    asyncio.run(render_pending(engine, settings))
    assert reasons(engine) == [("template_missing", False)]


# -- what breaks in between -----------------------------------------------------------------------


class Broken(FolderStore):
    """A store that cannot be reached."""

    async def put(self, key: str, content: bytes) -> None:
        raise StoreFailed("the bucket failed")


def test_a_store_that_fails_charges_nothing_and_the_next_attempt_stores_the_same(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    subscribe(engine, settings)
    invoice(engine)
    asyncio.run(render_pending(engine, settings, Broken(documents)))
    assert reasons(engine) == [("store_failed", False)]
    assert (announced(engine), strays(engine)) == ([], 1)
    engine.run("UPDATE outbox.delivery SET due_at = now()")
    asyncio.run(render_pending(engine, settings, due=True))
    assert reasons(engine)[1:] == [("rendered", True)]
    assert (len(stored(documents)), strays(engine)) == (1, 0)


def test_who_lost_its_lease_leaves_bytes_that_are_swept_unless_they_are_named(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    subscribe(engine, settings)
    invoice(engine)

    def lose() -> None:
        engine.run("UPDATE outbox.delivery SET token = token + 1")

    asyncio.run(render_pending(engine, settings, before_settle=lose))
    assert artifacts(engine) == []
    assert (len(stored(documents)), strays(engine)) == (1, 1)
    assert asyncio.run(tend_once(settings)) == 0, "somebody may still be about to settle it"
    engine.run("UPDATE outbox.artifact_stray SET since = now() - interval '2 hours'")
    assert asyncio.run(tend_once(settings)) == 1
    assert (stored(documents), strays(engine)) == ([], 0)


@pytest.mark.parametrize("dies", [False, True])
def test_what_is_being_removed_is_stored_again_when_it_is_gone(
    engine: Engine, settings: Settings, documents: Path, dies: bool
) -> None:
    """Two events of one second may well give the same bytes: the document of one went, the other is
    rendered just now. Whoever removes may die at any moment."""
    (Path(settings.templates or "") / "same.typ").write_text("#set document(date: none)\nSame")
    subscribe(engine, settings, template="same")
    invoice(engine)
    asyncio.run(render_pending(engine, settings))
    with psycopg.connect(engine.url, autocommit=True) as connection:
        assert remove_artifacts(connection, [UUID(row["id"]) for row in artifacts(engine)]) == 1
    invoice(engine)

    class Removing(FolderStore):
        async def remove(self, key: str) -> None:
            await super().remove(key)
            await render_pending(engine, settings)
            if dies:
                raise StoreFailed("dead")

    async def remove() -> None:
        connection = await connect_hot(engine.url, "artifacts")
        try:
            await remove_strays(Removing(documents), ArtifactBook(connection))
        finally:
            await connection.raw.close()

    with pytest.raises(StoreFailed) if dies else nullcontext():
        asyncio.run(remove())
    assert reasons(engine)[-1] == ("being_removed", False)
    assert stored(documents) == []
    engine.run("UPDATE outbox.artifact_stray SET removing_until = now() - interval '1 s'")
    engine.run("UPDATE outbox.delivery SET due_at = now()")
    asyncio.run(render_pending(engine, settings, due=True))
    assert len(stored(documents)) == len(artifacts(engine)) == 1
    assert strays(engine) == 0


def test_a_slow_store_is_left_before_the_claims_run_out(engine: Engine, documents: Path) -> None:
    hashes = [hashlib.sha256(bytes([n])).hexdigest() for n in range(5)]
    times = iter([0.0, 1.0, REMOVE_S * 0.4, REMOVE_S * 0.6])

    async def act() -> int:
        connection = await connect_hot(engine.url, "artifacts")
        book = ArtifactBook(connection)
        await book.note([("acme", sha256) for sha256 in hashes])
        engine.run("UPDATE outbox.artifact_stray SET since = NULL")
        removed = await remove_strays(FolderStore(documents), book, lambda: next(times))
        await connection.raw.close()
        return removed

    assert asyncio.run(act()) == 2
    assert strays(engine) == 3


@pytest.fixture
def installed(empty_database: str) -> Iterator[Engine]:
    """A database of its own: a daemon refuses a copy."""
    migrate(empty_database)
    made = Engine(empty_database)
    yield made
    made.close()


@pytest.mark.parametrize("point", [
    "before:store", "after:store", "before:settle", "after:settle",
])  # fmt: skip
def test_a_kill_at_any_step_leaves_one_document_one_row_one_event(
    installed: Engine, settings: Settings, documents: Path, point: str
) -> None:
    subscribe(installed, settings)
    invoice(installed)
    environ = {
        "OUTBOX_DATABASE_URL": installed.url,
        "OUTBOX_SECRET_KEY": KeyRing.generate_text(),
        "OUTBOX_ARTIFACTS_URL": settings.artifacts_url or "",
        "OUTBOX_LEASE": "1s",
    }
    for fault, code in ((point, -9), ("", 0)):
        process = Process(("run", "--drain"), {**environ, "OUTBOX_TEST_FAULT": fault})
        try:
            assert process.ended() == code, process.said
        finally:
            process.close()
    assert len(stored(documents)) == len(artifacts(installed)) == len(announced(installed)) == 1
    assert (installed.states(), strays(installed)) == ({}, 0)


def test_notes_survive_a_lost_connection_and_say_when_there_is_no_database(
    engine: Engine, settings: Settings
) -> None:
    reachable = True

    async def opened() -> HotConnection:
        if not reachable:
            raise OSError("the database is out of reach")
        return await connect_hot(settings.database, "artifacts")

    async def act() -> None:
        nonlocal reachable
        notes = Notes(opened)
        for sha256 in ("0" * 64, "1" * 64):
            await asyncio.gather(*(notes.note(org, sha256) for org in ("a", "b", None)))
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
            engine.run(f"{cut} 'outbox artifacts'")
        reachable = False
        with pytest.raises(OSError, match="out of reach"):
            await notes.note("a", "2" * 64)
        await notes.close()

    asyncio.run(act())
    assert strays(engine) == 6


# -- erasure and the end of life ------------------------------------------------------------------


def rendered(engine: Engine, settings: Settings, count_: int = 1) -> Sequence[int]:
    """Events, each with its document."""
    subscribe(engine, settings)
    payloads = [json.dumps(INVOICE | {"number": f"R-{n}"}) for n in range(count_)]
    ids = [invoice(engine, payload=payload) for payload in payloads]
    asyncio.run(render_pending(engine, settings))
    assert len(artifacts(engine)) == count_
    return ids


@pytest.mark.parametrize("by", ["event", "follower"])
def test_a_redaction_takes_the_document_and_the_event_that_told_of_it(
    engine: Engine, settings: Settings, documents: Path, by: str
) -> None:
    event, other = rendered(engine, settings, 2)
    follower = artifacts(engine)[0]["announced"][0]
    chosen = Choice(ids=[event if by == "event" else follower])
    with psycopg.connect(engine.url, autocommit=True) as connection:
        found = find_events(connection, chosen)
        assert count(connection, found.ids).artifacts == 1
        toll = redact(connection, found.ids, "asked").toll
    assert toll.artifacts == 1
    assert asyncio.run(tend_once(settings)) == 1
    assert [row["event_id"] for row in artifacts(engine)] == [other]
    assert len(stored(documents)) == 1
    payload = engine.one("SELECT payload::text FROM outbox.event WHERE id = %s", follower)
    assert payload == '{"redacted":true}'


def test_content_that_another_event_names_stays(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    event, _ = rendered(engine, settings, 2)
    engine.run("UPDATE outbox.artifact SET sha256 = (SELECT max(sha256) FROM outbox.artifact)")
    with psycopg.connect(engine.url, autocommit=True) as connection:
        redact(connection, [event], "asked")
    assert (asyncio.run(tend_once(settings)), len(stored(documents))) == (0, 2)


def test_content_goes_also_where_the_last_two_that_name_it_go_at_once(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    """Neither sees that the other goes; what both named must not outlive them."""
    rendered(engine, settings, 2)
    engine.run("UPDATE outbox.artifact SET sha256 = (SELECT max(sha256) FROM outbox.artifact)")
    one, other = (row["id"] for row in artifacts(engine))
    with ThreadPoolExecutor() as pool, psycopg.connect(engine.url) as first:
        remove_artifacts(first, [one])
        with psycopg.connect(engine.url, autocommit=True) as second:
            waiting = pool.submit(remove_artifacts, second, [other])
            pid = second.info.backend_pid
            while not waiting.done() and not engine.one("SELECT pg_blocking_pids(%s)", pid):
                pass
            first.commit()
            waiting.result()
    assert (artifacts(engine), asyncio.run(tend_once(settings))) == ([], 1)


def test_documents_past_their_life_go_and_others_stay(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    old, _ = rendered(engine, settings, 2)
    engine.run(
        "UPDATE outbox.artifact SET created_at = now() - interval '31 days' WHERE event_id = %s",
        old,
    )
    assert asyncio.run(tend_once(settings)) == 0, "without a stated life they stay"
    assert asyncio.run(tend_once(replace(settings, artifacts_keep=timedelta(days=30)))) == 1
    assert len(artifacts(engine)) == len(stored(documents)) == 1


def test_an_operator_may_let_documents_go(
    engine: Engine, settings: Settings, documents: Path
) -> None:
    rendered(engine, settings, 2)
    with psycopg.connect(engine.url, autocommit=True) as connection:
        removed = remove_artifacts(connection, [artifacts(engine)[0]["id"]])
    assert (removed, asyncio.run(tend_once(settings))) == (1, 1)
    assert len(stored(documents)) == 1


# -- names and opening ----------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "name"), [
    ("invoice", "invoice.pdf"), ("a/b\\c.pdf", "a_b_c.pdf"), ("..", "document.pdf"),
    ("x\r\nBcc: y", "x_Bcc_ y.pdf"), ("\u202efdp.exe", "_fdp.exe.pdf"), ("", "document.pdf"),
])  # fmt: skip
def test_a_filename_is_one_that_every_system_bears(text: str, name: str) -> None:
    assert fit_filename(text) == name
    assert len(fit_filename("ä" * 500).encode()) <= 200


def test_without_a_place_for_documents_there_is_no_processor(settings: Settings) -> None:
    async def opened(given: Settings) -> list[str]:
        async with open_pdf(given) as processors:
            return list(processors)

    assert asyncio.run(opened(replace(settings, artifacts_url=None))) == []
    assert asyncio.run(opened(settings)) == ["pdf"]

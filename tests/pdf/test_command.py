"""`outbox artifacts`, `outbox subscriptions add --kind pdf`, and what they say to mistakes."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import main
from outbox.settings import Settings
from tests.cli.helpers import Ran
from tests.engine.engine import Engine
from tests.pdf.helpers import INVOICE, artifacts, render_pending, stored, subscribe

Call = Callable[..., Ran]


@pytest.fixture
def outbox(
    settings: Settings,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    """One command in this process, on the database and the folder of the test."""
    monkeypatch.setenv("OUTBOX_DATABASE_URL", settings.database)
    monkeypatch.setenv("OUTBOX_TEMPLATES", settings.templates or "")
    monkeypatch.setenv("OUTBOX_ARTIFACTS_URL", settings.artifacts_url or "")

    def call(*args: str) -> Ran:
        capfdbinary.readouterr()
        code = main(list(args))
        out, err = capfdbinary.readouterr()
        return Ran(code, out.decode("latin-1"), err.decode())

    return call


@pytest.fixture
def rendered(engine: Engine, settings: Settings) -> Engine:
    """One invoice of acme and one of rival."""
    for org in ("acme", "rival"):
        subscribe(engine, settings, org)
        payload = json.dumps(INVOICE | {"number": org})
        engine.emit(org=org, type="invoice.issued", payload=payload, subject="invoices/1")
    asyncio.run(render_pending(engine, settings))
    return engine


def test_documents_are_listed_and_read(
    rendered: Engine, outbox: Call, documents: Path, tmp_path: Path
) -> None:
    mine, _ = artifacts(rendered)
    [listed] = outbox("artifacts", "list", "--org", "acme", "--json").json
    assert listed["id"] == mine["id"]
    assert {n: listed[n] for n in ("sha256", "size", "pages")} == {
        n: mine[n] for n in ("sha256", "size", "pages")
    }
    assert listed["url"] is None
    assert Path(listed["place"]) in stored(documents)
    ran = outbox("artifacts", "get", mine["sha256"])
    assert hashlib.sha256(ran.out.encode("latin-1")).hexdigest() == mine["sha256"]
    file = tmp_path / "out.pdf"
    told = outbox("artifacts", "get", mine["id"], "-o", str(file), "--json").json
    assert told["filename"] == "invoice.pdf"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == mine["sha256"]
    table = outbox("artifacts", "list")
    assert len(table.out.splitlines()) == 3
    assert mine["sha256"] in table.out


def test_another_organization_reads_nothing(rendered: Engine, outbox: Call) -> None:
    mine, _ = artifacts(rendered)
    for name in (mine["sha256"], mine["id"]):
        ran = outbox("artifacts", "get", name, "--org", "rival")
        assert (ran.code, ran.out) == (9, "")
    assert outbox("artifacts", "remove", mine["id"], "--org", "rival").code == 9
    assert len(artifacts(rendered)) == 2


def test_what_is_removed_is_gone_from_the_folder_too(
    rendered: Engine, outbox: Call, documents: Path
) -> None:
    dry = ("artifacts", "remove", "--subject", "invoices/1", "--org", "acme", "--dry-run", "--json")
    assert outbox(*dry).json == {"artifacts": 1, "dry_run": True, "warnings": []}
    assert outbox(*dry[:-2]).code == 0
    assert [row["org_id"] for row in artifacts(rendered)] == ["rival"]
    assert len(stored(documents)) == 1


def test_a_redaction_removes_stored_documents_at_once_where_it_can(
    rendered: Engine, outbox: Call, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("redact", "--reason", "asked", "--yes", "--json")
    done = outbox(*command, "--org", "acme").json
    assert (done["artifacts"], done["events"], done["warnings"]) == (1, 2, [])
    assert len(stored(documents)) == 1
    monkeypatch.delenv("OUTBOX_ARTIFACTS_URL")
    [warning] = outbox(*command, "--org", "rival").json["warnings"]
    assert "outbox artifacts sweep" in warning
    monkeypatch.setenv("OUTBOX_ARTIFACTS_URL", documents.as_uri())
    assert outbox("artifacts", "sweep", "--json").json == {"removed": 1}
    assert stored(documents) == []


def test_without_the_place_documents_are_listed_and_not_read(
    rendered: Engine, outbox: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTBOX_ARTIFACTS_URL")
    listed = outbox("artifacts", "list", "--json").json
    assert [row["place"] for row in listed] == [None, None]
    ran = outbox("artifacts", "get", listed[0]["sha256"])
    assert ran.code == 3
    assert "OUTBOX_ARTIFACTS_URL is not set" in ran.err


def test_bytes_that_are_gone_are_said_to_be(
    rendered: Engine, outbox: Call, documents: Path
) -> None:
    for path in stored(documents):
        path.unlink()
    ran = outbox("artifacts", "get", artifacts(rendered)[0]["sha256"])
    assert ran.code == 9
    assert "not where OUTBOX_ARTIFACTS_URL says" in ran.err


@pytest.mark.parametrize(("args", "code"), [
    (("get", "nonsense"), 9),
    (("get", "0" * 64), 9),
    (("get", "0" * 36), 9),
    (("remove",), 2),
    (("remove", "--subject", "nothing"), 9),
])  # fmt: skip
def test_mistakes_are_one_clear_line(outbox: Call, args: tuple[str, ...], code: int) -> None:
    ran = outbox("artifacts", *args)
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("Error: ")
    assert len(ran.err.splitlines()) == 1


# -- subscribing ----------------------------------------------------------------------------------


def add(outbox: Call, folder: Path, config: object) -> Ran:
    file = folder / "pdf.json"
    file.write_text(json.dumps(config))
    command = ("subscriptions", "add", "--kind", "pdf", "--org", "acme", "--events", "invoice.*")
    return outbox(*command, "--config", str(file), "--json")


def test_a_configuration_is_stored_complete(outbox: Call, tmp_path: Path) -> None:
    added = add(outbox, tmp_path, {"template": "good", "pdf_standard": "a-3b"}).json
    assert (added["kind"], added["concurrency"]) == ("pdf", 16)
    assert added["config"] == {
        "template": "good", "filename": "good.pdf", "engine": "typst", "pdf_standard": ["a-3b"],
    }  # fmt: skip


@pytest.mark.parametrize(("config", "told"), [
    ({}, 'a pdf needs a template, such as template = "outbox:invoice"'),
    ({"template": "none"}, "there is no template 'none.typ' in "),
    ({"template": "outbox:none"}, "there is no template 'none.typ' shipped"),
    ({"template": "../secret"}, "must be a file below the folder"),
    ({"template": "/etc/passwd"}, "must be a file below the folder"),
    ({"template": "good", "engine": "word"}, "there is no engine 'word'; write typst"),
    ({"template": "good", "engine": "weasyprint"}, "there is no template 'good.html' in "),
    ({"template": "good", "filename": "{{ event."}, "filename: "),
    ({"template": "good", "filename": 7}, "filename must be a text"),
    ({"template": "good", "pdf_standard": "a-9"}, "pdf_standard must be one of 1.4, "),
    ({"template": "good", "pdf_standard": 7}, "pdf_standard must be one of 1.4, "),
    ({"template": "good", "paper": "a5"}, "a pdf knows no 'paper'; known are engine, filename"),
])  # fmt: skip
def test_a_configuration_that_cannot_work_is_refused(
    outbox: Call, tmp_path: Path, config: dict[str, object], told: str
) -> None:
    ran = add(outbox, tmp_path, config)
    assert ran.code == 2
    assert told in ran.err
    assert len(ran.err.splitlines()) == 1


def test_without_a_folder_only_shipped_templates_can_be_named(
    outbox: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OUTBOX_TEMPLATES")
    assert add(outbox, tmp_path, {"template": "outbox:invoice"}).code == 0
    ran = add(outbox, tmp_path, {"template": "good"})
    assert ran.code == 2
    assert "set OUTBOX_TEMPLATES" in ran.err

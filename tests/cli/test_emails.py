"""`outbox emails` and `outbox suppressions`, and adding a subscription of kind email."""

from __future__ import annotations

import json
from pathlib import Path

import psycopg
import pytest

from tests.cli.helpers import Outbox
from tests.mail.post import Post
from tests.mail.sink import Sink

CONFIG = """
to = "{{ event.data.to }}"
from = "shop@example.com"
subject = "Order {{ event.data.id }}"
text = {file = "paid.txt"}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "paid.txt").write_text("Hello {{ event.data.name }}")
    return tmp_path


def test_the_whole_way_by_commands(
    outbox: Outbox, database: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "paid.toml").write_text(CONFIG)
    with Sink() as sink:
        post = Post(database, sink, OUTBOX_TEMPLATES=str(folder))
        for name, value in post.environ.items():
            monkeypatch.setenv(name, value)
        for org in ("acme", "rival"):
            added = outbox(
                *("subscriptions", "add", "--kind", "email", "--org", org, "--events", "orders.*"),
                *("--config", str(folder / "paid.toml"), "--json"),
            )
            assert added.json["kind"] == "email", added.err
            post.emit(org=org)
        post.deliver()
        assert len(sink.taken) == 2
        [mail] = outbox("emails", "list", "--org", "acme", "--json").json
        [person] = mail["recipients"]
        told = [person[name] for name in ("address", "state", "reply", "attempts")]
        assert told == ["jane@example.org", "sent", "250 2.0.0 taken", 1]
        key = mail["delivery"]
        assert outbox("emails", "show", key, "--json").json == mail
        shown = outbox("emails", "show", key)
        assert "jane@example.org" in shown.out
        assert outbox("emails", "show", key, "--org", "rival").code == 9
        assert outbox("emails", "show", key, "--mime", "--org", "rival").code == 9
        mime = outbox("emails", "show", key, "--mime").out
        assert "Message-ID: <" + key in mime
        assert outbox("emails", "list", "--state", "bounced", "--json").json == []
        assert len(outbox("emails", "list", "--address", "JANE@example.org", "--json").json) == 2
        assert "jane@example.org" in outbox("emails", "list", "--limit", "1").out

        report = folder / "report.json"
        report.write_text(
            json.dumps({"type": "bounced", "message_id": f"<{key}@x.y>", "code": "5.1.1"})
        )
        other = outbox("emails", "bounce", str(report), "--org", "rival", "--json")
        assert other.json == {"reports": 1, "known": 0, "changed": 0}
        done = outbox("emails", "bounce", str(report), "--json")
        assert done.json == {"reports": 1, "known": 1, "changed": 1}
        [listed] = outbox("suppressions", "list", "--json").json
        assert (listed["org"], listed["address"]) == ("acme", "jane@example.org")
        post.engine.close()


def test_suppressions_by_organization(outbox: Outbox, database: str) -> None:
    settings = {"OUTBOX_DATABASE_URL": database}
    for org in ("acme", "rival"):
        added = outbox(
            "suppressions", "add", "Jane@Example.org", "--org", org, "--json", **settings
        )
        assert added.json == {"address": "jane@example.org", "org": org, "added": True}
    again = outbox("suppressions", "add", "jane@example.org", "--org", "acme", "--json", **settings)
    assert again.json["added"] is False
    assert outbox("suppressions", "add", "a@b.c", **settings).code == 0
    gone = outbox("suppressions", "remove", "JANE@example.org", "--org", "acme", **settings)
    assert gone.code == 0
    assert outbox("suppressions", "remove", "x@y.z", "--org", "acme", **settings).code == 9
    assert "rival" in outbox("suppressions", "list", **settings).out
    assert outbox("suppressions", "list", "--org", "acme", "--json", **settings).json == []
    after = ("--org", "rival", "--after", "k@x.y", "--json")
    assert outbox("suppressions", "list", *after, **settings).json == []
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT org_id, address FROM outbox.suppression ORDER BY 1")
        assert rows.fetchall() == [("", "a@b.c"), ("rival", "jane@example.org")]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("suppressions", "add", "not an address"), "is not an address"),
        (("suppressions", "add", "a@b.c", "--reason", ""), "say why in 1 to 200"),
        (("suppressions", "list", "--after", "a@b.c"), "--after needs --org"),
        (("emails", "bounce", "/dev/null"), "neither JSON nor a delivery status notification"),
    ],
)
def test_a_mistake_is_one_line(
    outbox: Outbox, database: str, args: tuple[str, ...], text: str
) -> None:
    ran = outbox(*args, OUTBOX_DATABASE_URL=database)
    assert ran.code == 2
    assert text in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("config", "environ", "code", "text"),
    [
        ('to = "{{ x"', {}, 2, "an e-mail needs from"),
        (CONFIG.replace('"Order', '"{{ Order'), {}, 2, "subject: line 1"),
        (CONFIG, {}, 2, "set OUTBOX_TEMPLATES"),
        (CONFIG, {"OUTBOX_TEMPLATES": "/nowhere"}, 3, "is not a folder"),
        (CONFIG, {"OUTBOX_SMTP_URL": "smtp://u:hush@"}, 3, "OUTBOX_SMTP_URL: not an SMTP URL"),
    ],
)
def test_a_mistake_in_a_subscription_or_setting_is_one_line(
    outbox: Outbox,
    database: str,
    tmp_path: Path,
    config: str,
    environ: dict[str, str],
    code: int,
    text: str,
) -> None:
    (tmp_path / "c.toml").write_text(config)
    ran = outbox(
        *("subscriptions", "add", "--kind", "email", "--org", "acme", "--events", "orders.*"),
        *("--config", str(tmp_path / "c.toml")),
        OUTBOX_DATABASE_URL=database,
        **environ,
    )
    assert ran.code == code
    assert text in ran.err
    assert ran.err.count("\n") == 1
    assert "hush" not in ran.err


def test_a_signing_key_without_its_name_ends_the_worker_at_once(
    outbox: Outbox, database: str, key: str
) -> None:
    ran = outbox(
        "worker",
        OUTBOX_DATABASE_URL=database,
        OUTBOX_SECRET_KEY=key,
        OUTBOX_BROKER_URL="redis://127.0.0.1:9/0",
        OUTBOX_SMTP_URL="smtp://user:hush@mail.example.com",
        OUTBOX_DKIM_DOMAIN="example.com",
    )
    assert ran.code == 3
    assert "OUTBOX_DKIM_SELECTOR" in ran.err


def test_the_settings_show_no_secret(outbox: Outbox) -> None:
    shown = outbox("config", OUTBOX_SMTP_URL="smtp://user:hush@mail.example.com:587?tls=starttls")
    assert "hush" not in shown.out
    assert "smtp://user:***@mail.example.com:587?tls=starttls" in shown.out

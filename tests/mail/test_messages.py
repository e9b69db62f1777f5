"""The bytes of a message: what data cannot do to it, and that independent readers agree."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import example, given
from hypothesis import strategies as st

from outbox.errors import ConfigurationError, NotFound, UsageError
from outbox.settings import load_settings
from outbox.store.emails import Draft
from outbox.work import Work
from processors.mail.addresses import parse_mailbox
from processors.mail.config import compile_plan
from processors.mail.message import Composer, MessageRefused
from processors.mail.signing import Signer, signer_of
from processors.mail.smtp import stuffed
from processors.mail.templates import Templates
from tests.mail.post import CONFIG, parsed
from tests.profiles import scaled

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
ID = UUID("01a21900-857b-8879-a388-a2959093ac62")
LOGO = base64.b64encode(b"\x89PNG\r\n").decode()


async def no_artifact(_org: str | None, sha256: str) -> bytes:
    raise NotFound(f"there is no document {sha256}")


def compose(
    config: Mapping[str, Any],
    data: object = None,
    *,
    folder: Path | None = None,
    signer: Signer | None = None,
) -> Draft:
    templates = Templates(None if folder is None else str(folder))
    plan = compile_plan(templates, {**CONFIG, **config})
    payload = {"to": "jane@example.org", "id": 7, "name": "Jane"} if data is None else data
    work = Work(
        ID,
        1,
        "orders.paid",
        "2026-01-31T12:00:00Z",
        json.dumps(payload).encode(),
        1,
        1,
        org_id="acme",
    )
    return asyncio.run(Composer(templates, no_artifact, signer, lambda: NOW).compose(plan, work))


MANY = [f"a{n}@b.c" for n in range(100)]
UNSUBSCRIBE = "https://x/{{ event.data.id }}"
TEXTS = st.text(st.characters(exclude_categories=()), max_size=200) | st.sampled_from(
    [
        "a\r\nBcc: evil@example.net",
        "x\n\nbody",
        "\0",
        "=?utf-8?b?eA==?=",
        "\r\n.\r\n",
        "\u2028",
        "\ud800",
    ]
)


@scaled(1.0)
@example(subject="", name="", body="", filename="00:::" + "\u00a1" * 30)
@given(subject=TEXTS, name=TEXTS, body=TEXTS, filename=TEXTS)
def test_no_text_adds_a_header_a_recipient_or_a_part(
    subject: str, name: str, body: str, filename: str
) -> None:
    """Whatever stands in the data, the standard library reads the message that was meant."""
    draft = compose(
        {
            "to": "{{ event.data.name }} <jane@example.org>",
            "subject": "S{{ event.data.subject }}",
            "text": "{{ event.data.body }}",
            "html": "<p>{{ event.data.body }}</p>",
            "attachments": [
                {
                    "text": "x",
                    "filename": "f{{ event.data.filename }}",
                    "content_type": "text/plain",
                }
            ],
        },
        {"subject": subject, "name": name, "body": body, "filename": filename},
    )
    assert len(draft.people) == 1
    message = parsed(draft.mime)
    names = ["From", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version"]
    recipient = ["To"]
    assert sorted(message.keys()) == sorted([*names, *recipient, "Content-Type"])
    good = draft.people[0][1] == "queued"
    assert [a.addr_spec for a in message["To"].addresses] == (["jane@example.org"] if good else [])
    assert "\n" not in message["Subject"]
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "text/html",
        "text/plain",
    ]
    whole = body.encode("utf-8", "replace").decode()
    lines = whole.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")
    text = message.get_body(("plain",))
    assert text is not None
    assert text.get_content().replace("\r\n", "\n").rstrip("\n") == lines.rstrip("\n")
    assert max(map(len, draft.mime.split(b"\r\n"))) <= 998
    assert b"\n" not in draft.mime.replace(b"\r\n", b"")
    assert b"\r\n.\r\n" not in stuffed(draft.mime)[:-5]


@pytest.mark.parametrize(
    "text",
    [
        *("a@example.org\r\nRCPT TO:<evil@example.net>", "a@example.org, b@example.net", "a@b"),
        *("a b@example.org", '"a b"@example.org', "a@[127.0.0.1]", "a@1.2.3.4", "@b.c", "a@"),
        *("<a@b.c> <d@e.f>", "x <a@b.c> y", "a@exa mple.org", "a@-x.org", "a..b@example.org"),
        *(".a@example.org", "a@\u2028.org", "a\0@example.org", "a>@example.org", "\ud800@b.org"),
        *(f"{'x' * 65}@example.org", f"a@{'x' * 64}.org", "a@" + ".".join(["x" * 60] * 5)),
        *("a@xn--\u0080.org", "a\u200bb c@example.org"),
    ],
)
def test_what_is_not_one_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^it"):
        parse_mailbox(text)


@pytest.mark.parametrize(
    ("text", "address", "name"),
    [
        ("jane@example.org", "jane@example.org", ""),
        (' "Doe, Jane" <Jane@Example.ORG> ', "Jane@example.org", "Doe, Jane"),
        ("Jürgen <jane@bücher.example>", "jane@xn--bcher-kva.example", "Jürgen"),
        ("用户@例子.广告", "用户@xn--fsqu00a.xn--4rr70v", ""),
        ("o'neil+tag@mail.example.org", "o'neil+tag@mail.example.org", ""),
    ],
)
def test_an_address_and_its_name(text: str, address: str, name: str) -> None:
    mailbox = parse_mailbox(text)
    assert (mailbox.address, mailbox.name) == (address, name)


def test_a_local_part_outside_ascii_needs_smtputf8_and_a_domain_does_not() -> None:
    assert not compose({"to": "jane@bücher.example"}).smtputf8
    draft = compose({"to": "用户@例子.广告"})
    assert draft.smtputf8
    assert "To: 用户@xn--".encode() in draft.mime


def test_everything_a_message_can_have(tmp_path: Path) -> None:
    (tmp_path / "terms.pdf").write_bytes(b"%PDF-1.7")
    draft = compose(
        {
            "to": ["A <a@example.org>", {"list": "event.data.more"}],
            "cc": "C <c@example.org>",
            "bcc": ["d@example.org", "{% if false %}x@example.org{% endif %}"],
            "reply_to": "Help <help@example.com>",
            "return_path": "bounces@example.com",
            "from": "Müller & Söhne, Inh. Jürgen Müller <shop@bücher.example>",
            "html": '<img src="cid:logo"> {{ event.data.name }}',
            "attachments": [
                {"base64": LOGO, "filename": "logo.png", "cid": "logo"},
                {"file": "terms.pdf"},
                {"text": "id,name\n7,{{ event.data.name }}\n", "filename": "größe.csv"},
            ],
            "list_unsubscribe": {
                "url": "https://example.com/u?a={{ event.data.name | urlencode }}",
                "mailto": "mailto:u@example.com",
            },
        },
        {"more": ["b@example.org", "A@example.org"], "name": "Jane & Ann", "id": 7},
        folder=tmp_path,
    )
    assert [address for address, _, _ in draft.people] == [
        "a@example.org",
        "b@example.org",
        "c@example.org",
        "d@example.org",
    ]
    assert draft.sender == "bounces@example.com"
    message = parsed(draft.mime)
    assert message["From"].addresses[0].display_name == "Müller & Söhne, Inh. Jürgen Müller"
    assert message["From"].addresses[0].domain == "xn--bcher-kva.example"
    assert [str(a) for a in message["To"].addresses] == ["A <a@example.org>", "b@example.org"]
    assert message["Cc"] == "C <c@example.org>"
    assert message["Bcc"] is None
    assert message["Reply-To"] == "Help <help@example.com>"
    assert message["List-Unsubscribe"] == (
        "<https://example.com/u?a=Jane%20%26%20Ann>, <mailto:u@example.com>"
    )
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert [part.get_content_type() for part in message.walk()] == [
        "multipart/mixed",
        "multipart/alternative",
        "text/plain",
        "multipart/related",
        "text/html",
        "image/png",
        "application/pdf",
        "text/csv",
    ]
    image = next(part for part in message.walk() if part.get_content_type() == "image/png")
    assert (image["Content-ID"], image.get_content_disposition()) == ("<logo>", "inline")
    assert image.get_content() == b"\x89PNG\r\n"
    pdf, csv = list(message.iter_attachments())
    assert (pdf.get_filename(), pdf.get_content()) == ("terms.pdf", b"%PDF-1.7")
    assert csv.get_filename() == "größe.csv"
    assert "Jane & Ann" in csv.get_content()
    html = message.get_body(("html",))
    assert html is not None
    assert "Jane &amp; Ann" in html.get_content()


def test_ten_megabytes_are_the_limit(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(6 * 1024 * 1024))
    one = {"file": "a.bin"}
    assert len(compose({"attachments": [one]}, folder=tmp_path).mime) > 8_000_000
    with pytest.raises(MessageRefused) as caught:
        compose({"attachments": [one, one]}, folder=tmp_path)
    assert caught.value.reason == "message_too_large"
    (tmp_path / "a.bin").write_bytes(bytes(8 * 1024 * 1024))
    with pytest.raises(UsageError, match="larger than"):
        compose({"attachments": [one]}, folder=tmp_path)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"subjekt": "x"}, "an e-mail has no member 'subjekt'"),
        ({"to": []}, "to has 1 to 100 entries"),
        ({"to": 7}, "to must be an address"),
        ({"to": {"list": "event."}}, "to.list: line 1"),
        ({"subject": ""}, "subject must be a text"),
        ({"text": 1}, "text must be a text"),
        ({"html": {"file": "paid.html"}}, "html.file: 'paid.html' is a file: set OUTBOX_TEMPLATES"),
        ({"on_unknown": "x"}, "on_unknown is retry or hold"),
        ({"attachments": "x"}, "attachments is a list"),
        ({"attachments": [{"text": "x"}]}, "attachments[0] needs a filename"),
        ({"attachments": [{"text": "x", "file": "y"}]}, "attachments[0] needs one of"),
        ({"attachments": [{"x": "y"}]}, "attachments[0] has no member 'x'"),
        (
            {"attachments": [{"base64": "?", "filename": "a"}]},
            "attachments[0].base64 is",
        ),
        (
            {"attachments": [{"text": "x", "filename": "a", "content_type": "a b"}]},
            "attachments[0]: the",
        ),
        ({"attachments": [{"text": "x", "filename": "a", "cid": "<"}]}, "attachments[0]: a cid"),
        ({"list_unsubscribe": "http://x"}, "list_unsubscribe.url must begin with https://"),
        (
            {"list_unsubscribe": {"mailto": "mailto:x@y.z", "one_click": True}},
            "list_unsubscribe: one_",
        ),
        ({"list_unsubscribe": 3}, "list_unsubscribe is a URL"),
    ],
)
def test_a_mistake_in_a_configuration_is_one_line(config: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        compile_plan(Templates(), {**CONFIG, **config})
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["to", "from", "subject", "text"])
def test_what_an_email_needs(missing: str) -> None:
    with pytest.raises(UsageError, match=f"an e-mail needs {missing}"):
        compile_plan(Templates(), {k: v for k, v in CONFIG.items() if k != missing})


@pytest.mark.parametrize(
    ("config", "data", "reason"),
    [
        ({"list_unsubscribe": UNSUBSCRIBE}, {"id": "a>,<b"}, "bad_unsubscribe"),
        (
            {"list_unsubscribe": UNSUBSCRIBE},
            {"id": "a" * 999},
            "bad_unsubscribe",
        ),
        ({"to": {"list": "event.data.id"}}, {"id": [7]}, "template_failed"),
        ({"to": {"list": "event.data.id"}}, {"id": ["a@b.c"] * 101}, "template_failed"),
        (
            {"to": [f"a{n}@b.c" for n in range(99)], "cc": ["x@b.c", "y@b.c"]},
            {},
            "too_many_recipients",
        ),
        ({"return_path": "{{ event.data.id }}"}, {"id": "x"}, "bad_sender"),
    ],
)
def test_what_no_message_can_be_made_of(
    config: dict[str, Any], data: dict[str, Any], reason: str
) -> None:
    with pytest.raises(MessageRefused) as caught:
        compose({"subject": "s", "text": "t", "to": "a@b.c"} | config, data)
    assert caught.value.reason == reason


# -- DKIM ------------------------------------------------------------------------------------------


def pem(key: Any) -> str:
    text: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return text.decode()


def test_signatures_verify_with_an_independent_verifier(tmp_path: Path) -> None:
    """rsa and ed25519 in one message; From is signed once more than it stands."""
    one, two = rsa.generate_private_key(65537, 2048), ed25519.Ed25519PrivateKey.generate()
    file = tmp_path / "keys.pem"
    file.write_text(pem(one) + pem(two))
    settings = load_settings(
        {},
        {
            "OUTBOX_DKIM_DOMAIN": "example.com",
            "OUTBOX_DKIM_SELECTOR": "r1,e1",
            "OUTBOX_DKIM_KEY": f"@{file}",
        },
    )
    assert "PRIVATE" not in repr(settings)
    assert settings.shown()["dkim_key"] == "*** (2 keys)"
    config = {"html": "<p>Grüße</p>", "list_unsubscribe": "https://example.com/u"}
    data = compose(config, signer=signer_of(settings)).mime
    der = one.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    records = {
        b"r1._domainkey.example.com.": b"v=DKIM1; k=rsa; p=" + base64.b64encode(der),
        b"e1._domainkey.example.com.": b"v=DKIM1; k=ed25519; p="
        + base64.b64encode(two.public_key().public_bytes_raw()),
    }

    def dns(name: bytes, timeout: int = 5) -> bytes:
        return records[name]

    def verifies(message: bytes, index: int) -> bool:
        try:
            return bool(dkim.DKIM(message).verify(index, dnsfunc=dns))
        except dkim.ValidationError:
            return False

    for index in (0, 1):
        assert verifies(data, index)
        for changed in (
            data.replace(b"Subject: Order 7", b"Subject: Order 8"),
            data.replace(b"From: Shop", b"From: evil@example.net\r\nFrom: Shop", 1),
            data.replace(b"https://example.com/u", b"https://example.net/u"),
            data.replace(b"Hello Jane", b"Hello Ann"),
        ):
            assert changed != data
            assert not verifies(changed, index)


@pytest.mark.parametrize(
    ("given_settings", "text"),
    [
        ({"DOMAIN": "example.com"}, "set all of"),
        ({"DOMAIN": "x", "SELECTOR": "a", "KEY": "b"}, "is not a domain"),
        ({"DOMAIN": "example.com", "SELECTOR": "a", "KEY": "b"}, "there are 0 keys and 1 names"),
        (
            {
                "DOMAIN": "example.com",
                "SELECTOR": "a",
                "KEY": "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----",
            },
            "not a private key",
        ),
    ],
)
def test_a_mistake_in_the_settings_of_signing(given_settings: dict[str, str], text: str) -> None:
    environ = {f"OUTBOX_DKIM_{name}": value for name, value in given_settings.items()}
    with pytest.raises(ConfigurationError, match=text):
        signer_of(load_settings({}, environ))

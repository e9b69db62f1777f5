"""`outbox realtime` where it cannot begin: one line that says what to do."""

from __future__ import annotations

import sys

import pytest

from tests.cli.helpers import Outbox

SECRET = "a secret for tests, which is long enough"


@pytest.mark.parametrize(
    ("args", "environ", "code", "text"),
    [
        ((), {}, 6, "run: outbox realtime --install-shim"),
        (
            ("--install-shim",),
            {"OUTBOX_JWT_SECRET": ""},
            3,
            "set OUTBOX_JWT_SECRET, or OUTBOX_JWKS",
        ),
        (("--install-shim",), {"OUTBOX_JWT_SECRET": "short"}, 3, "at least 32 bytes"),
        (("--install-shim",), {"OUTBOX_JWKS": "nowhere.json"}, 3, "not a readable file"),
        (("--install-shim",), {"OUTBOX_JWKS": "{}"}, 3, "OUTBOX_JWKS is no key set"),
        (("--install-shim", "--host", "203.0.113.7"), {}, 2, "choose another --port"),
        (("--port", "70000"), {}, 2, "70000"),
    ],
)
def test_a_mistake_is_one_line(
    outbox: Outbox,
    database: str,
    args: tuple[str, ...],
    environ: dict[str, str],
    code: int,
    text: str,
) -> None:
    settings = {"OUTBOX_DATABASE_URL": database, "OUTBOX_JWT_SECRET": SECRET} | environ
    ran = outbox("realtime", *args, **settings)
    assert ran.code == code, ran.err
    assert text in ran.err
    assert ran.err.count("\n") == 1


def test_without_the_extra_it_says_what_to_install(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "outbox.realtime.server", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    ran = outbox("realtime")
    assert ran.code == 3
    assert "run: pip install 'outboxd[realtime]'" in ran.err

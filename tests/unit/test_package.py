"""`import outbox` is light: what an application does not use is not loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import outbox

ROOT = Path(__file__).parents[2]
HEAVY = {
    *("aiodns", "aiohttp", "asyncpg", "click", "cryptography", "django", "dramatiq", "flask"),
    *(
        "httpcore",
        "httptools",
        "httpx",
        "orjson",
        "pika",
        "psycopg",
        "pycares",
        "redis",
        "requests",
    ),
    *("rich", "sqlalchemy", "starlette", "structlog", "urllib3", "uvloop"),
}

SIGN_AND_VERIFY = """
from datetime import datetime, UTC
from outbox import verify
from outbox.signature import format_secret, sign
from outbox.work import SigningKey
now = datetime.now(UTC)
stamp = int(now.timestamp())
headers = {
    "webhook-id": "msg_1",
    "webhook-timestamp": str(stamp),
    "webhook-signature": sign([SigningKey("hmac", b"k" * 32)], "msg_1", stamp, b"{}"),
}
assert verify(b"{}", headers, format_secret(b"k" * 32)).json() == {}
"""


def loaded(code: str) -> set[str]:
    """The top-level packages a fresh interpreter holds after running `code`."""
    tail = "\nimport json, sys\nprint(json.dumps(sorted({n.split('.')[0] for n in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code + tail],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    "code",
    [
        "import outbox",
        "import outbox; dir(outbox); outbox.VerificationError",
        "from outbox import verify",
        SIGN_AND_VERIFY,
        "import outbox.secrets, outbox.signature, outbox.receivers",
        "import outbox.lifecycle, outbox.retry, outbox.outcome, outbox.history",
    ],
    ids=["package", "errors", "verify", "verifying_hmac", "keys", "pure"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    assert loaded(code) & HEAVY == set()


@pytest.mark.parametrize("framework", ["starlette", "flask", "django"])
def test_a_receiver_loads_its_own_framework_alone(framework: str) -> None:
    found = loaded(f"import outbox.receivers.{framework}") & {"starlette", "flask", "django"}
    assert found == {framework}


def test_every_public_name_is_there_and_the_same_each_time() -> None:
    for name in outbox.__all__:
        assert getattr(outbox, name) is getattr(outbox, name)
        assert name in dir(outbox)


def test_the_version_is_that_of_the_distribution() -> None:
    assert outbox.__version__ == metadata.version("outboxd")


def test_an_unknown_name_is_an_attribute_error() -> None:
    module: Any = outbox
    assert isinstance(module, ModuleType)
    with pytest.raises(AttributeError, match="no attribute 'emitt'"):
        _ = module.emitt

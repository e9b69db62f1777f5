"""Rendering: the same bytes from the same event, data that stays data, and templates that take
nobody with them."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from processors.rendering import pool as pool_module
from processors.rendering.child import perform
from processors.rendering.engines import TypstEngine
from processors.rendering.pool import RenderFailed, RenderPool
from tests.pdf.helpers import HOSTILE, INVOICE, hostile, job_of, pool_of

Result = TypeVar("Result")


def with_pool(act: Callable[[RenderPool], Awaitable[Result]], **limits: Any) -> Result:
    async def run() -> Result:
        pool = pool_of(**limits)
        try:
            return await act(pool)
        finally:
            await pool.close()

    return asyncio.run(run())


# -- good templates -------------------------------------------------------------------------------


def test_the_same_event_gives_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    """Warm or fresh, in a child or here; another time or another event gives others."""
    folder = hostile(tmp_path)

    async def act(pool: RenderPool) -> list[bytes]:
        job = job_of("outbox:invoice")
        many = [job, replace(job, at=job.at + 60), job_of("good", folder=folder), job]
        made = [(await pool.render(one)).document.content for one in many]
        await pool.close()
        return [*made, (await pool.render(job)).document.content]

    first, later, other, again, fresh = with_pool(act)
    assert first == again == fresh
    assert first == TypstEngine().render(job_of("outbox:invoice")).content
    assert len({first, later, other}) == 3


def test_an_invoice_is_tagged_counted_and_holds_what_it_was_given() -> None:
    document = TypstEngine().render(job_of("outbox:invoice"))
    assert document.content.startswith(b"%PDF-")
    assert b"/StructTreeRoot" in document.content
    assert b"/Marked true" in document.content
    assert b"<dc:title>" in document.content
    assert b"R-1001" in document.content
    assert document.pages == 1
    many = INVOICE | {"items": INVOICE["items"] * 60}
    assert TypstEngine().render(job_of("outbox:invoice", many)).pages > 1


@pytest.mark.parametrize("data", [
    {}, {"record": {"items": []}}, [], "text", None, 7,
    {"number": 5, "items": [{}], "seller": "just a name", "customer": None, "notes": "a\nb"},
])  # fmt: skip
def test_the_invoice_bears_data_that_is_not_all_there(data: object) -> None:
    assert TypstEngine().render(job_of("outbox:invoice", data)).pages == 1


@pytest.mark.parametrize("standard", ["a-2b", "a-3b", "a-2a", "ua-1", "1.7", "2.0"])
def test_standards_are_met(standard: str) -> None:
    document = TypstEngine().render(job_of("outbox:invoice", standards=[standard]))
    assert document.pages == 1
    family, _, level = standard.partition("-")
    if family in {"a", "ua"}:
        name = b"pdfaid:part" if family == "a" else b"pdfuaid:part"
        assert b"<" + name + b">" + level[:1].encode() in document.content


def test_the_version_of_a_template_is_that_of_all_files_it_names(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "main.typ").write_text('#import "parts/a.typ": x\n#x')
    (tmp_path / "parts/a.typ").write_text('#import "/b.typ": y\n#let x = y')
    (tmp_path / "b.typ").write_text("#let y = [one]")
    (tmp_path / "other.typ").write_text("not named")
    engine = TypstEngine()

    def version() -> tuple[str, bytes]:
        document = engine.render(job_of("main", folder=tmp_path))
        return document.template_version, document.content

    first = version()
    (tmp_path / "other.typ").write_text("changed, but nobody's")
    assert version() == first
    (tmp_path / "b.typ").write_text("#let y = [three]")
    changed = version()
    assert changed[0] != first[0]
    assert changed[1] != first[1], "a warm compiler sees the change"
    (tmp_path / "b.typ").write_text("#let y = [one]")
    assert version() == first


# -- hostile templates ----------------------------------------------------------------------------

REASONS = {"endless": "render_timeout", "memory": "render_memory"}


def test_hostile_templates_fail_with_their_reason_and_the_pool_goes_on(tmp_path: Path) -> None:
    folder = hostile(tmp_path)

    async def act(pool: RenderPool) -> dict[str, tuple[str, str]]:
        told: dict[str, tuple[str, str]] = {}
        for name in HOSTILE:
            with pytest.raises(RenderFailed) as failed:
                await pool.render(job_of(name, folder=folder))
            told[name] = (failed.value.reason, failed.value.fault)
            assert "secret" not in str(failed.value).replace("secret.txt", "")
            assert (await pool.render(job_of("good", folder=folder))).document.pages == 1
        return told

    told = with_pool(act, cpu_s=1, memory_bytes=512 << 20)
    assert told == {n: (REASONS.get(n, "render_error"), "template") for n in HOSTILE}


def test_who_waits_longer_than_a_document_may_take_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system does not count its processor time: it sleeps, or is stopped."""
    monkeypatch.setattr(pool_module, "BUSY_FACTOR", 0.2)
    folder = hostile(tmp_path)

    async def act(pool: RenderPool) -> None:
        await pool.render(job_of("good", folder=folder))
        [pid] = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(RenderFailed) as failed:
            await pool.render(job_of("good", folder=folder))
        assert failed.value.reason == "render_timeout"
        assert pool.pids == []

    with_pool(act, cpu_s=1)


def test_a_child_that_is_killed_from_outside_is_no_fault_of_the_template(tmp_path: Path) -> None:
    folder = hostile(tmp_path)

    async def act(pool: RenderPool) -> None:
        await pool.render(job_of("good", folder=folder))
        [pid] = pool.pids
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(RenderFailed) as failed:
            await pool.render(job_of("good", folder=folder))
        assert (failed.value.reason, failed.value.fault) == ("render_killed", "system")
        assert (await pool.render(job_of("good", folder=folder))).document.pages == 1

    with_pool(act)


def test_children_stay_warm_and_are_replaced_when_worn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = hostile(tmp_path)

    async def used(pool: RenderPool, times: int) -> set[int]:
        seen: set[int] = set()
        for _ in range(times):
            await pool.render(job_of("good", folder=folder))
            seen.update(pool.pids)
        return seen

    async def act(pool: RenderPool) -> None:
        assert len(await used(pool, 5)) == 1
        monkeypatch.setattr(pool_module, "DOCUMENTS_MAX", 6)
        before = await used(pool, 1)
        assert before == set(), "after its sixth document it went"
        monkeypatch.setattr(pool_module, "RSS_BYTES_MAX", 1)
        assert await used(pool, 2) == set(), "one that has grown goes at once"

    with_pool(act)


def test_a_large_worker_does_not_wear_its_children_out(tmp_path: Path) -> None:
    """Linux counts the memory of whoever forked a process into its peak, also over exec."""
    folder = hostile(tmp_path)
    ballast = b"x" * (pool_module.RSS_BYTES_MAX + 2**20)

    async def act(pool: RenderPool) -> None:
        await pool.render(job_of("good", folder=folder))
        assert len(pool.pids) == 1

    with_pool(act)
    assert len(ballast) > pool_module.RSS_BYTES_MAX


def test_an_engine_that_is_not_there_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = (
        "import sys; sys.modules['typst'] = None; import processors.rendering.child as c; c.main()"
    )

    async def act(pool: RenderPool) -> RenderFailed:
        start = asyncio.create_subprocess_exec

        async def without(*args: Any, **options: Any) -> Any:
            return await start(sys.executable, "-P", "-c", hidden, *args[-2:], **options)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", without)
        with pytest.raises(RenderFailed) as failed:
            await pool.render(job_of("outbox:invoice"))
        return failed.value

    failed = with_pool(act)
    assert (failed.reason, failed.fault) == ("engine_missing", "missing")


# -- what a child is left with --------------------------------------------------------------------


@pytest.fixture
def secret_environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OUTBOX_SECRET_KEY", "not-for-children")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-children")
    with open(os.devnull) as held:  # noqa: PTH123 (a descriptor that must not be inherited)
        os.set_inheritable(held.fileno(), True)
        yield


@pytest.mark.usefixtures("secret_environ")
def test_a_child_has_no_secrets_no_descriptors_and_no_network(tmp_path: Path) -> None:
    folder = hostile(tmp_path)

    async def act(pool: RenderPool) -> None:
        await pool.render(job_of("good", folder=folder))
        [pid] = pool.pids
        process = Path(f"/proc/{pid}")
        assert b"not-for-children" not in process.joinpath("environ").read_bytes()
        kinds = {str(path.readlink()) for path in process.joinpath("fd").iterdir()}
        assert {kind.partition(":")[0] for kind in kinds} <= {"pipe", "/dev/null"}
        status = process.joinpath("status").read_text()
        assert "Seccomp:\t2" in status
        assert "NoNewPrivs:\t1" in status

    with_pool(act)


CONFINED = """
import os, socket, subprocess
from processors.rendering.confinement import confine
print(confine(1 << 30))
for attempt in (
    lambda: socket.socket(),
    lambda: socket.socket(socket.AF_UNIX),
    lambda: socket.socketpair(),
    lambda: os.execv("/bin/true", ["true"]),
    lambda: bytearray(2 << 30),
):
    try:
        attempt()
        print("possible")
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
"""


def test_confinement_leaves_no_socket_no_program_and_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONFINED], capture_output=True, text=True, check=True
    )
    given_up, *tried = done.stdout.splitlines()
    assert "seccomp" in given_up
    assert tried == ["PermissionError"] * 4 + ["MemoryError"]


def test_a_child_answers_what_an_engine_raises() -> None:
    class Engine:
        version = "1"

        def render(self, _job: Any) -> Any:
            raise raised

    job = {"root": "/", "template": "x", "event": "{}", "at": 0, "standards": [], "cpu_s": 1000}
    raised: BaseException = MemoryError()
    assert perform(Engine(), dict(job))[0]["reason"] == "render_memory"
    raised = ZeroDivisionError("by zero")
    head, content = perform(Engine(), dict(job))
    assert (head, content) == (
        {"reason": "render_error", "error": "ZeroDivisionError: by zero"},
        b"",
    )


def test_content_is_what_is_hashed() -> None:
    """The name of a document is that of its bytes, whoever renders it."""

    async def act(pool: RenderPool) -> str:
        rendered = await pool.render(job_of("outbox:invoice"))
        return hashlib.sha256(rendered.document.content).hexdigest()

    assert with_pool(act) == with_pool(act)

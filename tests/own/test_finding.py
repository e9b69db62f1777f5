"""Where processors are found, and what is said where they cannot be."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import outbox
from outbox.errors import UsageError
from outbox.processing import RESERVED
from outbox.settings import Settings, load_settings
from processors.kinds import KINDS, list_processors, specify
from processors.own import find_processors

ONE = """
import outbox
@outbox.processor({name!r}, config={config})
async def one(event, ctx):
    '''Does one thing.

    And no other.'''
"""

Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module into a folder of the user's; it is forgotten at the end."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def write(path: str, text: str = "", *, name: str = "sync.one", config: str = "None") -> None:
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text or ONE.format(name=name, config=config))
        importlib.invalidate_caches()

    yield write
    for loaded in set(sys.modules) - before:
        del sys.modules[loaded]


def found(*imports: str) -> dict[str, Any]:
    return dict(find_processors(Settings(imports=imports)))


def test_they_are_found_in_modules_and_their_submodules(write: Write) -> None:
    write("mine.py")
    write("pack/__init__.py", "from pack import jobs")
    write("pack/jobs.py", name="sync.two")
    write("pack/unloaded.py", name="sync.three")
    assert sorted(found("mine", "pack")) == ["sync.one", "sync.two"]
    assert found() == {}


def test_an_installed_package_announces_its_own(write: Write) -> None:
    write("mine.py")
    write("theirs.py", name="sync.two")
    write("mine-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1\n")
    points = "[outbox.processors]\nall = mine\none = theirs:one\n"
    write("mine-1.dist-info/entry_points.txt", points)
    assert sorted(found()) == ["sync.one", "sync.two"]
    assert sorted(found("mine")) == ["sync.one", "sync.two"], "found twice, it is one"
    write("mine-1.dist-info/entry_points.txt", "[outbox.processors]\nbad = nothing_there\n")
    with pytest.raises(UsageError, match="entry point bad = nothing_there"):
        found()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_here", "--import mine cannot be imported: ModuleNotFoundError: No module"),
        ("1 / 0", "--import mine cannot be imported: ZeroDivisionError: division by zero"),
        ("def (", "--import mine cannot be imported: SyntaxError"),
        ("import outbox\noutbox.processor('pdf')", "'pdf' is a built-in kind's"),
    ],
)
def test_what_cannot_be_imported_is_one_line(write: Write, text: str, said: str) -> None:
    write("mine.py", text)
    with pytest.raises(UsageError) as caught:
        found("mine")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_module_that_is_not_there_is_looked_for_where(write: Write) -> None:
    with pytest.raises(UsageError, match="in this folder and among the installed packages"):
        found("mine")


def test_two_of_one_name_are_refused(write: Write) -> None:
    write("mine.py")
    write("other.py")
    with pytest.raises(UsageError, match=r"two processors are named sync\.one"):
        found("mine", "other")


def test_a_subscription_takes_what_the_decorator_says(write: Write) -> None:
    write("mine.py", config="dict")
    spec = specify(Settings(imports=("mine",)), "sync.one", {"a": 1})
    assert (spec.kind, spec.processor, spec.config) == ("processor", "sync.one", {"a": 1})
    assert (spec.concurrency, spec.timeout) == (10, timedelta(minutes=15))
    with pytest.raises(UsageError, match=r"no kind 'sync\.x'.*sync\.one.*--import MODULE"):
        specify(Settings(imports=("mine",)), "sync.x", {})


def test_the_list_holds_kinds_and_processors(write: Write) -> None:
    write("mine.py")
    rows = {row["name"]: row for row in list_processors(Settings(imports=("mine",)))}
    assert rows.keys() == {*KINDS, "sync.one"}
    assert rows["sync.one"]["about"] == "Does one thing."
    assert (rows["sync.one"]["module"], rows["sync.one"]["runs"]) == ("mine", "loop")


@pytest.mark.parametrize("name", [*sorted(RESERVED), "", "a b", "sync..x", ".x", "x" * 201, "é.x"])
def test_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        outbox.processor(name)


def test_built_in_kinds_are_reserved() -> None:
    assert set(KINDS) <= RESERVED


@pytest.mark.parametrize(
    "options",
    [{"timeout": "0s"}, {"timeout": "soon"}, {"concurrency": 0}, {"retry": "5s,1s"}],
)
def test_defaults_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        outbox.processor("sync.x", **options)


def test_only_a_function_of_a_module_is_isolated() -> None:
    with pytest.raises(UsageError, match="ordinary function at the top of a module"):
        outbox.processor("sync.x", isolated=True)(lambda _event, _ctx: None)


def test_modules_come_from_flags_the_environment_and_the_file(tmp_path: Path) -> None:
    assert load_settings({}, {"OUTBOX_IMPORT": "a, b.c"}).imports == ("a", "b.c")
    assert load_settings({"imports": "x"}, {"OUTBOX_IMPORT": "a"}).imports == ("x",)
    path = tmp_path / "outbox.toml"
    path.write_text('import = ["a", "b"]')
    settings = load_settings({"config": str(path)}, {})
    assert settings.imports == ("a", "b")
    assert settings.shown()["import"] == ["a", "b"]
    with pytest.raises(UsageError, match=r"--import: 'a\.py-x'.*without \.py"):
        load_settings({"imports": "a.py-x"}, {})


def test_the_decorator_is_light() -> None:
    """An application that defines processors need not load what delivers them."""
    import subprocess

    code = "import sys, outbox; outbox.processor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    heavy = {"psycopg", "click", "dramatiq", "structlog", "asyncio", "sqlalchemy", "redis"}
    assert heavy.isdisjoint(done.stdout.split())

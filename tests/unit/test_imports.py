"""Folders are layers: who may import whom, how large things may grow, what may not be named."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("outbox", "processors", "cli")
PURE = {"lifecycle", "retry", "outcome", "effects", "history", "durations", "errors", "pulse"}
FRAMEWORKS = {"starlette", "uvicorn", "fastapi", "flask", "werkzeug", "django"}
SERVER = ("outbox.realtime.rest", "outbox.realtime.server")
BROKERS = {"dramatiq", "redis", "pika"}
HEAVY = {
    *("psycopg", "sqlalchemy", "click", "rich", "structlog", "orjson", "cryptography"),
    *("httptools", "pycares", "uvloop", "asyncio", "http.client", "urllib.request"),
    *BROKERS,
    *FRAMEWORKS,
    *("jwt", "websockets"),
}
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70


def sources() -> list[Path]:
    found = [*ROOT.glob("outbox/**/*.py"), *ROOT.glob("processors/**/*.py"), ROOT / "cli.py"]
    return sorted(path for path in found if path.exists())


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def only_for_types(tree: ast.Module) -> set[ast.AST]:
    """What stands under `if TYPE_CHECKING:`, which never runs."""
    guards = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    )
    return {inner for guard in guards for part in guard.body for inner in ast.walk(part)}


def imported(path: Path) -> Iterator[str]:
    """Every module a file imports when it runs, wherever in the file the import stands."""
    tree = ast.parse(path.read_text())
    unseen = only_for_types(tree)
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree):
        if node in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def is_in(name: str, *modules: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def violations(owner: str, name: str) -> Iterator[str]:
    """The rules, for one import of one module."""
    top, own_top = name.partition(".")[0], owner.partition(".")[0]
    if top in LAYERS and LAYERS.index(top) > LAYERS.index(own_top):
        yield "imports point inward: cli -> processors -> outbox"
    if is_in(owner, *(f"outbox.{pure}" for pure in PURE)):
        pure_too = is_in(name, *(f"outbox.{pure}" for pure in PURE))
        if not pure_too and top not in sys.stdlib_module_names:
            yield "a pure module imports the standard library alone"
    if top in {"psycopg", "psycopg_pool"} and not is_in(owner, "outbox.store", "outbox.embedded"):
        yield "only the store and the embedded servers touch psycopg"
    if top == "sqlalchemy" and not is_in(owner, "outbox.store.emit"):
        yield "only outbox.store.emit knows sqlalchemy"
    if top in BROKERS and own_top != "processors":
        yield "only processors touch dramatiq and the brokers behind it"
    if top in FRAMEWORKS and not is_in(owner, "outbox.receivers", *SERVER):
        yield "a web framework belongs to its module in outbox.receivers, or to the stand-in server"
    if top == "jwt" and not is_in(owner, "outbox.realtime.tokens"):
        yield "only the stand-in server reads tokens"
    if top == "tests":
        yield "the product knows nothing of its tests"
    if top in {"pytest", "hypothesis"} and not is_in(owner, "outbox.testing"):
        yield "test tools belong to outbox.testing"
    if is_in(name, "outbox.testing") and not is_in(owner, "outbox.testing"):
        yield "nothing leans on outbox.testing"


def test_imports_point_inward_and_each_library_has_its_owner() -> None:
    broken = [
        f"{module_name(path)} imports {name}: {rule}"
        for path in sources()
        for name in imported(path)
        for rule in violations(module_name(path), name)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("outbox.relay", "processors.http"),
        ("processors.broker", "cli"),
        ("outbox.retry", "orjson"),
        ("outbox.retry", "outbox.store.connect"),
        ("outbox.relay", "psycopg"),
        ("outbox.store.connect", "sqlalchemy.orm"),
        ("outbox.worker", "dramatiq"),
        ("cli", "redis"),
        ("outbox.signature", "flask"),
        ("outbox.realtime.channel", "starlette.websockets"),
        ("outbox.realtime.rest", "jwt"),
        ("outbox.commands.dead", "tests.conftest"),
        ("outbox.testing.machine", "tests.profiles"),
        ("outbox.worker", "hypothesis"),
        ("outbox.commands.demo", "outbox.testing.clock"),
    ],
)
def test_the_rules_catch_what_they_are_for(owner: str, name: str) -> None:
    assert list(violations(owner, name))


def test_importing_outbox_stays_light() -> None:
    code = "import sys, outbox; print(*sys.modules, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT
    )
    loaded = done.stdout.split()
    assert not [name for name in loaded if is_in(name, *HEAVY)]


A_DAEMON = """
import asyncio, sys
import cli, outbox.commands.run, outbox.runtime
from outbox.settings import Settings
from processors.kinds import open_processors
async def open_and_close():
    async with open_processors(Settings()) as opened:
        print(*opened, file=sys.stderr)
asyncio.run(open_and_close())
print(*sys.modules, sep='\\n')
import rich.console
"""


def test_a_daemon_that_sends_webhooks_loads_nothing_for_mail_documents_or_colours() -> None:
    """It starts in two thirds of the time, and Rich is there for the demo all the same."""
    done = subprocess.run(
        [sys.executable, "-c", A_DAEMON], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "webhook" in done.stderr
    unwanted = ("rich", "pygments", "jinja2", "typst", "obstore", "processors.mail")
    assert not [name for name in done.stdout.split() if is_in(name, *unwanted)]


IMPORT_EACH = """
import os, sys, threading
# What others wrote is imported once for all; it is not what is looked at.
import asyncio, click, cryptography.x509, dramatiq, jinja2, psycopg, redis, sqlalchemy
def audit(event, args):
    if event in ('socket.connect', 'socket.bind', 'subprocess.Popen', 'os.fork'):
        raise SystemExit(f'{event} at import')
for name in sys.argv[1:]:
    if not (child := os.fork()):
        sys.addaudithook(audit)
        __import__(name)
        assert threading.active_count() == 1, threading.enumerate()
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print(name, 'does more than define', file=sys.stderr)
"""


@pytest.mark.parametrize("part", range(4))
def test_importing_a_module_does_nothing_but_define(part: int) -> None:
    """No thread, no socket, no output: things are built where they are wired. Each module is the
    first that its process imports; nothing is measured there."""
    names = [module_name(path) for path in sources()[part::4]]
    environ = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EACH, *names],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environ,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_modules_and_functions_stay_small_and_say_what_they_own(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= MODULE_LINES_MAX
    assert ast.get_docstring(tree), "a module opens with what it owns and promises"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} has {lines} lines"


def tracked_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file()]


def tracked_texts() -> Iterator[tuple[Path, str]]:
    for path in tracked_files():
        if path != Path(__file__).resolve():
            yield path, path.read_text(errors="replace")


# Folders of one machine. The folders every system has (/tmp, /var, /usr, /dev, /etc) may be named.
MACHINE_PATH = re.compile(r"(?<![\w.*/-])/(?:root|home|work|Users|opt|mnt|srv|workspace)/[\w.-]+")
UNFINISHED = re.compile(r"\b(?:TODO|FIXME|XXX|HACK|NotImplementedError)\b")
REGISTRY = re.compile(r"--(?:extra-)?index-url|--find-links|pypi\.org/simple|files\.pythonhosted")


def test_the_repository_names_no_machine_and_leaves_nothing_unfinished() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path, text in tracked_texts()
        for pattern in (MACHINE_PATH, UNFINISHED, REGISTRY)
        for match in pattern.finditer(text)
    ]
    assert not found, "\n".join(found)


def test_the_map_of_the_tests_names_every_folder() -> None:
    told = set(
        re.findall(r"^\| `(\w+)/`", (ROOT / "tests" / "README.md").read_text(), re.MULTILINE)
    )
    tests = [path for path in tracked_files() if path.is_relative_to(ROOT / "tests")]
    folders = {path.relative_to(ROOT / "tests").parts[0] for path in tests}
    assert {name for name in folders if (ROOT / "tests" / name).is_dir()} <= told

"""The wheel is whole: it runs from an empty environment, whatever stands in the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """Run in an environment of its own and return standard output; errors show both outputs."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    settings = {
        key: value
        for key, value in os.environ.items()
        if key not in hidden and not key.startswith("OUTBOX_")
    }
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=cwd, env=settings
    )
    assert done.returncode == 0, (
        f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}"
    )
    return done.stdout


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    out = tmp_path / "dist"
    build = ["-m", "build", "--wheel", "--no-isolation", "--outdir"]
    run(sys.executable, *build, out, ROOT, cwd=tmp_path)
    (built,) = out.glob("outboxd-*.whl")
    return built


def test_the_wheel_holds_the_code_and_the_sql_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    code = [*ROOT.glob("outbox/**/*.py"), *ROOT.glob("processors/**/*.py"), ROOT / "cli.py"]
    data = [path for path in ROOT.glob("sql/**/*") if path.is_file()]
    expected = {path.relative_to(ROOT).as_posix() for path in code}
    templates = (ROOT / "processors/rendering/templates").iterdir()
    expected |= {path.relative_to(ROOT).as_posix() for path in templates}
    expected |= {f"outbox/{path.relative_to(ROOT).as_posix()}" for path in data}
    assert expected <= names
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"outbox", "processors", "cli.py"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.timeout(400)
def test_the_installed_wheel_runs_in_a_folder_with_its_own_cli_and_processors(
    wheel: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    # Our pip fills it, and what is never imported is not compiled: both would take seconds.
    run(sys.executable, "-m", "venv", "--without-pip", empty, cwd=tmp_path)
    target: list[str | Path] = ["--python", empty / "bin" / "python"]
    pinned: list[str | Path] = ["--constraint", ROOT / "constraints.txt", f"{wheel}[embedded]"]
    options = ["install", "--quiet", "--no-compile"]
    run(sys.executable, "-m", "pip", *target, *options, *pinned, cwd=tmp_path)

    application = tmp_path / "application"
    (application / "processors").mkdir(parents=True)
    for decoy in ("cli.py", "processors/__init__.py", "outbox.py"):
        (application / decoy).write_text("raise SystemExit('the wrong module was imported')\n")
    outbox = empty / "bin" / "outbox"
    assert "0.1.0" in run(outbox, "--version", cwd=application)

    summary = json.loads(run(outbox, "demo", "--orders", "50", "--json", cwd=application))
    assert summary["orders"] == 50
    assert summary["documents"] == summary["emails"] > 0
    assert summary["lost"] == summary["dead"] == summary["duplicates"] == 0
    assert summary["delivered"] == summary["deliveries"] == summary["signatures_verified"] > 0

"""Copies of the tree to break, and pytest runs inside them.

A run never touches the checkout: a copy stands in a temporary folder, with its own `sql/` and its
packages first on the path, and is mended after each mutant.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutants.mutant import ROOT, Mutant
from tests.mutants.witness import VARIABLE

PARTS = ("outbox", "processors", "sql", "tests", "docs", "cli.py", "pyproject.toml", "README.md")
PLUGIN = "tests.mutants.witness"
GRACE_S = 10.0


@dataclass(frozen=True, slots=True)
class Run:
    """How a pytest process ended. `code` is None where it ran out of time."""

    code: int | None
    failures: tuple[dict[str, Any], ...]
    output: str


class Copy:
    """One copy of the tree."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "tree"
        self._witness = folder / "witness"
        self._examples = folder / "examples"
        self.root.mkdir(parents=True)
        forget = shutil.ignore_patterns("__pycache__", ".*")
        for part in PARTS:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, self.root / part, ignore=forget)
            else:
                shutil.copy2(source, self.root / part)

    @contextmanager
    def broken(self, mutant: Mutant) -> Iterator[None]:
        """The mutant's edits, inside; as before, afterwards. Raises Rotten."""
        files = {self.root / edit.path for edit in mutant.edits}
        before = {file: file.read_bytes() for file in files}
        try:
            for edit in mutant.edits:
                edit.apply(self.root)
            self._forget(files)
            yield
        finally:
            for file, content in before.items():
                file.write_bytes(content)
            self._forget(files)

    def _forget(self, files: set[Path]) -> None:
        """A compiled file is told by its second and its size; a mutant may change neither."""
        for file in files:
            if file.suffix == ".py":
                Path(importlib.util.cache_from_source(str(file))).unlink(missing_ok=True)

    def pytest(self, tests: Sequence[str], seed: int, limit_s: float, *options: str) -> Run:
        """Run tests here, with a fixed seed, until the first failure unless `options` say more."""
        self._witness.write_text("")
        shutil.rmtree(self._examples, ignore_errors=True)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", PLUGIN]
        command += [f"--hypothesis-seed={seed}", *options, *tests]
        code, output = _run(command, self.root, self._environment(), limit_s)
        told = self._witness.read_text().splitlines()
        return Run(code, tuple(json.loads(line) for line in told), output)

    def _environment(self) -> dict[str, str]:
        # What is measured or set for the checkout is not meant for its copies.
        alien = ("OUTBOX_", "PYTEST_", "COV_", "COVERAGE_", "HYPOTHESIS_")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(alien)}
        return plain | {
            VARIABLE: str(self._witness),
            "PYTHONPATH": str(self.root),
            "HYPOTHESIS_PROFILE": "ci",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(self._examples),
        }


def _run(
    command: list[str], cwd: Path, environment: dict[str, str], limit_s: float
) -> tuple[int | None, str]:
    """Run in a session of its own; after `limit_s` ask it to end, then end all of it."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=GRACE_S)
        return None, ""
    else:
        return process.returncode, output
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

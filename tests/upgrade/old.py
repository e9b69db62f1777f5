"""Runs programs as processes: those of an earlier migration level, or the present ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Programs:
    """The packages and the SQL of an earlier commit in `folder`; the present ones without."""

    folder: Path | None = None

    @property
    def environ(self) -> dict[str, str]:
        """What makes a child import them in place of the present ones. Its lines are not ours to
        measure."""
        if self.folder is None:
            return {}
        return {
            "PYTHONPATH": str(self.folder),
            **{name: "" for name in os.environ if name.startswith("COVERAGE_")},
        }

    def statement(self, name: str) -> str:
        """The text of one of their statements."""
        return self._file(name).read_text()

    def knows(self, name: str) -> bool:
        """Whether they have a statement."""
        return self._file(name).exists()

    def _file(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / "sql" / "statements" / f"{name}.sql"

    def run(
        self, *args: str, url: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command to its end."""
        given = {**os.environ, "OUTBOX_DATABASE_URL": url, **(environ or {}), **self.environ}
        return subprocess.run(
            [sys.executable, "-P", "-m", "cli", *args],
            env=given, cwd="/", capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip

    def run_ok(self, *args: str, url: str, environ: Mapping[str, str] | None = None) -> str:
        """Run one command that must succeed; its output."""
        done = self.run(*args, url=url, environ=environ)
        assert done.returncode == 0, done.stderr
        return done.stdout

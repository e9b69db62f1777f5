"""A running program of the bench: told and telling in lines of JSON, never outliving this one.

It stands in a session of its own, so that Ctrl-C reaches the bench alone, which then ends it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

from outbox.bench.usage import rss_mb_max
from outbox.errors import OutboxError

ANSWER_S_MAX = 60.0
END_S = 8.0


class Program:
    """A program. What it says on stderr lies in a file of `folder`, for its last words."""

    def __init__(
        self, name: str, command: Sequence[str], environ: Mapping[str, str], folder: Path
    ) -> None:
        self.name = name
        self._log = folder / f"{name}.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(environ),
                start_new_session=True,
            )
        self._read = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def rss_mb_max(self) -> float | None:
        """The most memory it has held."""
        return rss_mb_max(self.pid)

    def check(self) -> None:
        """Raise OutboxError, with its last words, where it has ended."""
        if self._process.poll() is not None:
            raise OutboxError(f"{self.name} ended early: {self._last_words()}")

    def ask(self, message: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a message, if there is one, and return the next line. Raises OutboxError."""
        assert self._process.stdin is not None
        if message is not None:
            with suppress(BrokenPipeError):  # its end is seen below
                self._process.stdin.write(json.dumps(message).encode() + b"\n")
                self._process.stdin.flush()
        return self._line()

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        until = monotonic() + ANSWER_S_MAX
        while b"\n" not in self._read:
            if not select.select([self._process.stdout], [], [], max(0.0, until - monotonic()))[0]:
                raise OutboxError(f"{self.name} does not answer")
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                self._process.wait()
                self.check()
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        return told

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit code {self._process.returncode}"

    def end(self) -> None:
        """Let it end within `END_S` seconds, else make it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

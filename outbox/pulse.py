"""What a running attempt tells while it runs, and what it hears: its progress and its metadata on
the one side, whether it is still wanted on the other.

Shared by the event loop and the thread that performs; owns no connection. Who watches it reads
`news` about once a second (outbox/watch.py). Pure.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

METADATA_CHARS_MAX = 8192
NOTE_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class News:
    """What an attempt has told so far: a percentage, a line for people, and JSON text."""

    percent: float | None = None
    note: str | None = None
    metadata: str | None = None


class Pulse:
    """The two directions of one attempt."""

    def __init__(self) -> None:
        self.metadata: dict[str, Any] = {}
        self._progress: tuple[float | None, str | None] = (None, None)
        self._told = News()
        self._called_off = False

    def tell(self, percent: float | None, note: str | None) -> None:
        """Say how far it is."""
        self._progress = (percent, note)

    def call_off(self) -> None:
        """Say that nobody waits for it any more."""
        self._called_off = True

    @property
    def called_off(self) -> bool:
        """Whether it is to end."""
        return self._called_off

    def news(self) -> News | None:
        """What is new since the last time, or None. What cannot be written as JSON, or is larger
        than 8,192 characters, is left as it was."""
        percent, note = self._progress
        found = News(percent, note, self._metadata())
        if found == self._told:
            return None
        self._told = found
        return found

    def _metadata(self) -> str | None:
        try:
            text = json.dumps(self.metadata, default=str) if self.metadata else None
        except (TypeError, ValueError, RuntimeError, RecursionError):
            return self._told.metadata  # RuntimeError: it grew while it was read
        if text is not None and (len(text) > METADATA_CHARS_MAX or "\\u0000" in text):
            return self._told.metadata
        return text

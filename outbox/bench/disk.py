"""How long the disk takes meanwhile: a write and fdatasync of our own beside those of PostgreSQL.

A commit waits for its disk whatever this program does: a p99 beside a disk that stands still for a
quarter of a second is the disk's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic

from outbox.bench.report import percentile
from outbox.errors import OutboxError

EVERY_S = 0.1
BLOCK = bytes(8192)
"""As much as a page of PostgreSQL; always in the same place, as in a file of its log."""


@contextmanager
def disk_waits(folder: Path | None) -> Iterator[list[float]]:
    """Milliseconds of each write to a file in `folder`, complete when the block has ended; none
    where there is no folder, because the disk is that of a server elsewhere. Raises OutboxError
    where the disk is full or fails."""
    waits: list[float] = []
    failed: list[OSError] = []
    if folder is None:
        yield waits
        return
    over = Event()
    path = folder / "disk"
    thread = Thread(target=_write, args=(path, over, waits, failed), name="disk", daemon=True)
    thread.start()
    try:
        yield waits
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)
    if failed:
        raise OutboxError(f"cannot write to {folder}: {failed[0].strerror}")


def _write(path: Path, over: Event, waits: list[float], failed: list[OSError]) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            while not over.is_set():
                began_at = monotonic()
                os.pwrite(file.fileno(), BLOCK, 0)
                os.fdatasync(file.fileno())
                waits.append(1000 * (monotonic() - began_at))
                over.wait(EVERY_S)
    except OSError as error:
        failed.append(error)


def told(waits: Sequence[float]) -> dict[str, float] | None:
    """What stands in a document; None where nothing was measured."""
    if not waits:
        return None
    names = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(waits, part), 1) for name, part in names.items()}
